"""Facts on what passes through calls, branches, loops and operations that nobody knows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node
from tests.ir._facts import F32, MATRIX, facts, graph_of
from tests.ir._observe import observe, wrong_facts


def test_calls_take_what_holds_at_every_call() -> None:
    inner = jax.jit(lambda x, y: x + y)
    graph = trace(lambda x: inner(x, 1.0) * inner(x, 1.0), F32)
    body = graph_of(graph, "jit")
    assert facts_of(body.inputs[1]).is_one and not facts_of(body.inputs[0]).is_one
    both = trace(lambda x: inner(x, 1.0) * inner(x, 2.0), F32)
    shared = graph_of(both, "jit")
    assert len(shared.parents) == 2
    assert facts_of(shared.inputs[1]).splat is None
    assert (facts_of(shared.inputs[1]).least, facts_of(shared.inputs[1]).most) == (1.0, 2.0)


def test_a_shared_region_fed_by_its_own_result_ends() -> None:
    inner = jax.jit(lambda x: jnp.abs(x) + 1)
    graph = trace(lambda x: inner(inner(inner(x))), F32)
    assert len(graph_of(graph, "jit").parents) == 3
    assert facts_of(graph.outputs[0]).least > 0


def test_facts_are_dropped_when_a_region_gets_another_user() -> None:
    inner = jax.jit(lambda x: x * 1)
    graph = trace(lambda x: (inner(jnp.float32(2.0)), x), F32)
    (call,) = graph
    body = call.regions[0]
    assert facts_of(body.outputs[0]).splat is not None
    again = Node(
        "jit", call.primitive, [graph.inputs[0]], [v.aval for v in call.results], call.params, regions=[body]
    )
    graph.append(again)
    assert facts_of(body.outputs[0]).splat is None
    assert facts_of(again.result).splat is None


def test_branches() -> None:
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    same = facts(lambda p, x: lax.cond(p, lambda v: jnp.abs(v), lambda v: v * v, x), flag, F32)
    assert same.nonnegative
    apart = facts(
        lambda p, x: lax.cond(p, lambda v: jnp.zeros_like(v), lambda v: jnp.ones_like(v), x), flag, F32
    )
    assert apart.splat is None and (apart.least, apart.most) == (0, 1) and apart.finite


def test_loops_keep_what_does_not_change() -> None:
    def fun(x: jax.Array) -> Any:
        def step(carry: Any, row: jax.Array) -> Any:
            fixed, moving = carry
            return (fixed, moving - 1), (fixed * row, jnp.tril(x), moving)

        return lax.scan(step, (jnp.full((), 2.0), jnp.full((), 2.0)), jnp.abs(x))

    graph = trace(fun, MATRIX)
    assert not wrong_facts(observe(graph, [jnp.arange(9.0).reshape(3, 3) - 4]))
    fixed, moving, scaled, lower, stacked = map(facts_of, graph.outputs)
    assert fixed.splat == 2 and moving.splat is None and stacked.splat is None
    assert scaled.nonnegative and lower.lower
    *_, moved, row = graph_of(graph, "scan").inputs
    assert facts_of(row).nonnegative and not facts_of(moved).nonnegative


def test_while_loops() -> None:
    def fun(x: jax.Array) -> Any:
        return lax.while_loop(lambda s: s[1] < s[0], lambda s: (s[0], s[1] + 1), (jnp.float32(9.0), x))

    graph = trace(fun, F32)
    assert facts_of(graph.outputs[0]).splat == 9 and facts_of(graph.outputs[1]).splat is None
    (loop,) = graph
    cond, body = loop.regions
    assert facts_of(cond.inputs[0]).splat == facts_of(body.inputs[0]).splat == 9


def test_custom_rules_and_checkpoints_are_looked_into() -> None:
    assert facts(jax.nn.relu, F32).nonnegative
    assert facts(jax.checkpoint(lambda x: jnp.exp(x)), F32).nonnegative

    @jax.custom_vjp
    def f(x: jax.Array) -> jax.Array:
        return jnp.abs(x)

    f.defvjp(lambda x: (jnp.abs(x), None), lambda _, g: (g,))
    assert facts(f, F32).nonnegative


def test_unknown_operations_say_what_the_dtype_says() -> None:
    def fun(x: jax.Array) -> Any:
        return jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct((2,), jnp.uint8), x)

    found = facts(fun, jax.ShapeDtypeStruct((2,), jnp.uint8))
    assert (found.low, found.high) == (0, 255) and found.splat is None


def test_mutable_references_are_unknown() -> None:
    def fun(x: jax.Array) -> Any:
        ref = jax.new_ref(jnp.zeros(3))
        ref[0] = x
        return ref[...]

    graph = trace(fun, F32)
    for node in graph:
        assert all(facts_of(v).splat is None for v in node.results if v.op != "broadcast_in_dim")
