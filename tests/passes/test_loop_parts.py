"""What passes on loops weigh: which operations may run at once, what they take, and what a change saves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import io_callback

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.importer import trace
from lepton_jax.passes.loops._parts.credit import credited
from lepton_jax.passes.loops._parts.worth import rows, stuck, temporaries, too_large, total_bytes
from lepton_jax.rewrite import PassContext, erase_dead
from lepton_jax.targets import get_target

X = jnp.ones((4, 8))


def context(target: str = "cpu", explain: bool = False) -> PassContext:
    return PassContext(get_target(target), explain=explain)


def node_of(fun: Any, *args: Any, op: str) -> Node:
    """The only operation of this kind in a function."""
    (node,) = [node for node in trace(fun, *args) if node.op == op]
    return node


def told(x: Any) -> Any:
    io_callback(lambda value: None, None, x, ordered=True)
    return x


STUCK: dict[str, tuple[Any, str, str]] = {
    "effect": (lambda x: lax.map(told, x), "scan", "has effects"),
    "branch": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), "cond", "depends on the iteration"),
    "loop": (
        lambda x: lax.while_loop(lambda y: y[0, 0] < 9, jnp.exp, x),
        "while",
        "depends on the iteration",
    ),
    "branch in a loop": (
        lambda x: lax.map(lambda y: lax.cond(y[0] > 0, jnp.sin, jnp.cos, y), x),
        "scan",
        "cond depends on the iteration",
    ),
    "barrier": (lambda x: lax.optimization_barrier(x), "optimization_barrier", "keeps its place"),
    "bits": (
        lambda x: jax.random.bits(jax.random.key(0, impl="rbg"), x.shape),
        "random_bits",
        "other numbers in a batch",
    ),
}


@pytest.mark.parametrize("name", STUCK)
def test_what_keeps_its_place(name: str) -> None:
    fun, op, reason = STUCK[name]
    node = node_of(fun, X, op=op)
    assert reason in (stuck(node) or "")
    free = name in ("branch", "loop", "branch in a loop")
    assert (stuck(node, branches=True) is None) == free


def test_what_may_run_at_once() -> None:
    def free(x: Any) -> Any:
        noise = jax.random.bits(jax.random.key(0, impl="threefry2x32"), x.shape)
        return lax.map(lambda y: jax.checkpoint(jnp.sin)(y) @ x.T, x), noise

    assert [stuck(node) for node in trace(free, X)] == [None] * len(list(trace(free, X)))


def test_rows_of_products() -> None:
    vector, matrix = jnp.ones(8), jnp.ones((8, 5))
    assert rows(node_of(jnp.dot, vector, matrix, op="dot_general"), 1) == 1
    assert rows(node_of(jnp.dot, X, matrix, op="dot_general"), 1) == 4
    assert rows(node_of(jnp.dot, X, matrix, op="dot_general"), 0) == 5
    batched = node_of(jnp.matmul, jnp.ones((3, 4, 8)), jnp.ones((3, 8, 5)), op="dot_general")
    assert rows(batched, 1) == 4
    image, kernel = jnp.ones((1, 2, 6)), jnp.ones((7, 2, 3))
    convolved = node_of(lambda a, b: lax.conv(a, b, (1,), "SAME"), image, kernel, op="conv_general_dilated")
    assert rows(convolved, 1) == 7 * 6


def test_bytes_that_an_iteration_makes() -> None:
    def body(x: Any) -> Any:
        moved = jnp.broadcast_to(x.T[None], (3, 8, 4))  # moves of data fuse
        inner = lax.map(lambda y: jnp.sin(y) + 1, x)
        return moved * 2, inner

    graph = trace(body, X)
    assert total_bytes(graph.outputs) == 4 * (96 + 32)
    assert temporaries(graph) == 4 * (96 + 32 + 2 * 8)


def test_how_much_memory_a_change_may_take() -> None:
    mebibyte = float(1 << 20)
    assert too_large(16 * mebibyte, 0, context()) is None
    assert "in place of 4" in (too_large(17 * mebibyte, 4 * mebibyte, context()) or "")
    assert too_large(17 * mebibyte, 5 * mebibyte, context()) is None
    assert too_large(300 * mebibyte, 300 * mebibyte, context("gpu")) is None
    assert "300 MiB for all" in (too_large(300 * mebibyte, 300 * mebibyte, context()) or "")


def chained() -> tuple[Graph, list[Node]]:
    graph = trace(lambda x: jnp.sin(jnp.exp(x) @ jnp.ones((8, 8))), X)
    return graph, list(graph)


@pytest.mark.parametrize("explain", [True, False])
def test_the_last_rule_is_credited_with_what_is_saved(explain: bool) -> None:
    _, nodes = chained()
    (product,) = [node for node in nodes if node.op == "dot_general"]
    ctx = context(explain=explain)
    ctx.fire("first", product)
    with credited(product, ctx):
        ctx.fire("second", product)
        ctx.fire("last", product)
        product.result.replace_uses(product.operands[0])
        erase_dead(product)
    saved = ctx.seconds(node_cost(product)) if explain else 0.0
    assert [a.saving for a in ctx.applications] == pytest.approx([0.0, 0.0, saved])
    assert not explain or saved > 0
    with credited(nodes[0], ctx):
        pass
    assert ctx.applications[-1].saving == pytest.approx(saved)
