"""Rules that must pay: what counts as superfluous, and what a loop computes only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.ir import trace
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.rewrite import PassContext, node_rule, rewrite, run_rules
from lepton_jax.rewrite.profit import compared, is_fixed, superfluous
from lepton_jax.rewrite.rule import Outcome
from lepton_jax.targets import get_target

A = jnp.ones((256, 256))


def to_the_right(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return a @ (b @ c)


@node_rule("dot_general", must_pay=True)
def regroup(node: Node, ctx: PassContext) -> Outcome:
    """(a @ b) @ c → a @ (b @ c)"""
    inner = node.operands[0].node
    if inner is None or inner.op != "dot_general":
        return None
    return rewrite(to_the_right, *inner.operands, node.operands[1])


def context() -> PassContext:
    return PassContext(get_target("cpu"), explain=True)


def fires(fun: Callable[..., Any], *args: Any) -> int:
    return run_rules(trace(fun, *args), [regroup], context())


def last(graph: Graph) -> Node:
    node = graph.outputs[0].node
    assert node is not None
    return node


def test_a_rule_that_must_pay_fires_where_it_saves_time() -> None:
    assert fires(lambda a, b, c: (a @ b) @ c, A, A, A[:, :1]) == 1
    assert fires(lambda a, b, c: (a @ b) @ c, A[:1], A, A) == 0


def test_where_it_does_not_pay_the_user_is_told_why() -> None:
    ctx = context()
    run_rules(trace(lambda a, b, c: (a @ b) @ c, A[:1], A, A), [regroup], ctx)
    assert "instead of" in ctx.misses[0].reason and "on cpu, as estimated" in ctx.misses[0].reason


def test_what_is_read_elsewhere_is_not_saved() -> None:
    assert fires(lambda a, b, c: ((ab := a @ b) @ c, ab), A, A, A[:, :1]) == 0


def test_superfluous_is_what_only_the_node_needs() -> None:
    graph = trace(lambda x, y: jnp.sin(x) * (kept := jnp.cos(y)) + jnp.exp(kept), 1.0, 2.0)
    assert [n.op for n in superfluous(last(graph), set())] == ["add", "exp", "mul", "cos", "sin"]
    product = last(graph).operands[0].node
    assert product is not None
    assert [n.op for n in superfluous(product, set())] == ["mul", "sin"]
    assert [n.op for n in superfluous(product, {product.operands[0]})] == ["mul"]


def test_an_existing_value_costs_nothing() -> None:
    graph = trace(lambda x: jnp.sin(jnp.cos(x)), A)
    inner = last(graph).operands[0].node
    assert inner is not None
    before, after = compared(inner.operands[0], last(graph), context())
    assert before > 0 and after == 0


@pytest.mark.parametrize("loop", ["fori", "scan", "while"])
def test_what_a_loop_computes_once_counts_once(loop: str) -> None:
    """(a @ b) @ c in a loop that changes c: XLA computes a @ b in front of it, so regrouping loses."""

    def body(a: Any, b: Any, c: Any) -> Any:
        return (a @ b) @ c

    def run(a: Any, b: Any, c: Any) -> Any:
        if loop == "fori":
            return jax.lax.fori_loop(0, 50, lambda _, c: body(a, b, c), c)
        if loop == "scan":
            return jax.lax.scan(lambda c, _: (body(a, b, c), None), c, None, length=50)[0]
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: body(a, b, c), c)

    assert fires(run, A, A, A[:, :1]) == 0


def test_what_changes_on_every_iteration_counts_every_time() -> None:
    def run(a: Any, b: Any, c: Any) -> Any:
        return jax.lax.fori_loop(0, 50, lambda _, x: ((a * x[0, 0]) @ b) @ x, c)

    assert fires(run, A, A, A[:, :1]) == 1


def test_what_a_rewrite_makes_fixed_counts_once() -> None:
    """(x @ b) @ c in a loop that changes x: x @ (b @ c) does half the work, as b @ c is done before it."""
    assert fires(lambda a, b, c: jax.lax.fori_loop(0, 50, lambda _, x: (x @ b) @ c, a), A, A, A) == 1


def test_fixed_is_what_no_iteration_changes() -> None:
    graph = trace(lambda a, c: jax.lax.fori_loop(0, 5, lambda i, c: jnp.sin(a) + jnp.cos(c) * i, c), 1.0, 2.0)
    body = last(graph).regions[-1]
    found = {node.op: is_fixed(node.results[0]) for node in body}
    assert found["sin"] and not found["cos"] and not found["mul"]
