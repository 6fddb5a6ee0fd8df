from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.binding import binding_time
from lepton_jax.ir.graph import Graph, Value

W = jax.ShapeDtypeStruct((4, 4), jnp.float32)
X = jax.ShapeDtypeStruct((4,), jnp.float32)
STACK = jax.ShapeDtypeStruct((3, 4, 4), jnp.float32)
_SHARED = jax.jit(lambda x: jnp.sin(x))


def early_ops(fun: Any, *args: Any, params: tuple[int, ...] = (0,)) -> tuple[Graph, list[str]]:
    """The graph, and the operations (of regions too) with results that depend on the parameters alone."""
    graph = trace(fun, *args)
    early = binding_time(graph, params)
    return graph, [node.op for node in graph.walk() if any(value in early for value in node.results)]


def outputs(fun: Any, *args: Any, params: tuple[int, ...] = (0,)) -> list[bool]:
    graph = trace(fun, *args)
    early = binding_time(graph, params)
    return [value in early for value in graph.outputs]


def test_what_depends_on_parameters_alone() -> None:
    graph, ops = early_ops(lambda w, x: jnp.sin(w.T * 2) @ jnp.cos(x), W, X)
    assert ops == ["transpose", "mul", "sin"]
    early = binding_time(graph, [0])
    w, x = graph.inputs
    assert w in early and x not in early
    assert graph.outputs[0] not in early
    assert graph.outputs[0] in binding_time(graph, [0, 1])


def test_constants_are_early() -> None:
    graph = trace(lambda x: x + jnp.arange(4.0) * 2, X)
    early = binding_time(graph, [])
    constants = [v for node in graph for v in node.operands if v.is_const]
    assert constants and all(v in early for v in constants)
    assert "iota" in [v.op for v in early] or any(v.op == "mul" for v in early)


def test_positions_are_checked() -> None:
    with pytest.raises(IndexError, match="has 1 inputs, there is none at 1"):
        binding_time(trace(jnp.sin, X), [1])


def test_calls_are_early_only_if_all_are() -> None:
    assert outputs(lambda w, x: (_SHARED(w), _SHARED(w)), W, X) == [True, True]
    assert outputs(lambda w, x: (_SHARED(w), _SHARED(x + w)), W, W) == [False, False]


def test_arguments_of_a_call_are_told_apart() -> None:
    inner = jax.jit(lambda w, x: (w * 2, x * 2, w + x))
    assert outputs(lambda w, x: inner(w, x), W, W) == [True, False, False]


def test_branches_depend_on_the_predicate() -> None:
    def fun(w: jax.Array, x: jax.Array) -> Any:
        inside = lax.cond(w[0, 0] > 0, lambda v: jnp.sin(v), lambda v: v, w)
        outside = lax.cond(x[0, 0] > 0, lambda v: jnp.cos(v), lambda v: v, w)
        return inside, outside

    assert outputs(fun, W, W) == [True, False]
    assert {"sin", "cos"} <= set(early_ops(fun, W, W)[1])


def test_scans_over_stacked_parameters() -> None:
    def fun(stack: jax.Array, x: jax.Array) -> Any:
        def layer(h: jax.Array, w: jax.Array) -> Any:
            scale = jnp.abs(w).max()
            return jnp.tanh((w / scale) @ h), (scale, h)

        return lax.scan(layer, x, stack)

    graph, ops = early_ops(fun, STACK, X)
    assert "abs" in ops and "reduce_max" in ops and "div" in ops and "dot_general" not in ops
    assert [value in binding_time(graph, [0]) for value in graph.outputs] == [False, True, False]


def test_carries_are_late_if_they_start_or_become_late() -> None:
    def fun(w: jax.Array, x: jax.Array) -> Any:
        def step(carry: Any, _: Any) -> Any:
            a, b, c = carry
            return (a * 2, b + c, c * 2), None

        return lax.scan(step, (w, w, x), None, length=3)[0]

    assert outputs(fun, W, W) == [True, False, False]


def test_while_loops_depend_on_how_often_they_run() -> None:
    def fun(w: jax.Array, x: jax.Array) -> Any:
        own = lax.while_loop(lambda v: v[0, 0] < 9, lambda v: v * 2, w)
        until = lax.while_loop(lambda s: s[1][0, 0] < 9, lambda s: (s[0] * 3, s[1] + 1), (w, x))
        return own, until

    assert outputs(fun, W, W) == [True, False, False]


def test_effects_callbacks_and_references_are_late() -> None:
    def fun(w: jax.Array) -> Any:
        called = jax.pure_callback(lambda v: v, W, w)
        ref = jax.new_ref(w)
        ref[0, 0] = 1.0
        return called, ref[...], jnp.sin(w)

    assert outputs(fun, W) == [False, False, True]


def test_effects_inside_a_call_do_not_taint_its_other_results() -> None:
    @jax.jit
    def inner(w: jax.Array) -> Any:
        jax.debug.print("{}", w[0, 0])
        return jnp.sin(w), jax.pure_callback(lambda v: v, W, w)

    assert outputs(lambda w: inner(w), W) == [True, False]


def test_random_numbers_are_functions_of_their_key() -> None:
    key = jax.random.key(0)

    def fun(w: jax.Array, key: jax.Array) -> Any:
        return w + jax.random.normal(jax.random.key(1), (4, 4)), w + jax.random.uniform(key, (4, 4))

    assert outputs(fun, W, key) == [True, False]
    assert outputs(fun, W, key, params=(0, 1)) == [True, True]


def test_linear_solves_and_shards() -> None:
    def solve(w: jax.Array, b: jax.Array) -> Any:
        def run(v: jax.Array) -> Any:
            return lax.custom_linear_solve(lambda x: w @ x, v, lambda _, y: y, lambda _, y: y)

        return run(w[0]), run(b)

    assert outputs(solve, W, X) == [True, False]
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    part = jax.P("d")

    def double(w: Any, x: Any) -> Any:
        return w * 2, x * 2

    both = jax.shard_map(double, mesh=mesh, in_specs=(part, part), out_specs=(part, part))
    assert outputs(lambda w: both(w, w), W) == [True, True]
    assert outputs(both, W, X) == [False, False]


def test_custom_rules_and_checkpoints() -> None:
    assert outputs(lambda w, x: jax.nn.relu(w), W, X) == [True]
    assert outputs(lambda w, x: jax.checkpoint(lambda a, b: (jnp.sin(a), b * 2))(w, x), W, X) == [True, False]


def test_batch_norm_at_inference_folds() -> None:
    """What a later pass needs: scale and shift depend on parameters, the activations do not."""

    def norm(p: dict[str, jax.Array], x: jax.Array) -> Any:
        scale = p["gamma"] * lax.rsqrt(p["var"] + 1e-5)
        return x * scale + (p["beta"] - p["mean"] * scale)

    p = {name: X for name in ("beta", "gamma", "mean", "var")}
    graph = trace(norm, p, W)
    early: frozenset[Value] = binding_time(graph, range(4))
    late = [node.op for node in graph if node.results[0] not in early and node.op != "broadcast_in_dim"]
    assert late == ["mul", "add"]


def test_long_programs_take_linear_time() -> None:
    def fun(w: jax.Array, x: jax.Array) -> Any:
        for _ in range(1000):
            w = jnp.sin(w)
            x = x + w
        return x

    graph = trace(fun, W, W)
    early = binding_time(graph, [0])
    assert sum(1 for node in graph if node.result in early) == 1000
