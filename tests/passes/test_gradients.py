"""Gradients: what differentiation leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from tests.passes._check import check, fired, optimised, same
from tests.passes._golden import assert_every_gate, assert_text
from tests.passes._movement import array

SIMPLE = "inline,dce,fixpoint(fold,algebra,movement,cse,gradients,dce)"
PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,demand,gradients,dce)"

Program = Callable[..., Any]


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.walk()]


def sizes(graph: Graph, op: str) -> list[tuple[int, ...]]:
    return [node.results[0].shape for node in graph.walk() if node.op == op]


# Parts side by side


def pieces(count: int, axis: int = 0) -> Program:
    """The gradient of a sum over slices, each with a factor of its own."""

    def total(x: jax.Array) -> jax.Array:
        n = x.shape[axis] // count
        parts = (lax.slice_in_dim(x, i * n, (i + 1) * n, axis=axis) for i in range(count))
        return sum((jnp.sin(p).sum() * (i + 1) for i, p in enumerate(parts)), jnp.zeros(()))

    return jax.grad(total)


def rows(x: jax.Array) -> jax.Array:
    return sum((jnp.sin(x[i]).sum() * (i + 1) for i in range(5)), jnp.zeros(()))


def apart(x: jax.Array) -> jax.Array:
    return sum((jnp.sin(x[i : i + 2]).sum() * (i + 1) for i in (1, 4, 7, 10)), jnp.zeros(()))


def with_the_whole(x: jax.Array) -> jax.Array:
    return rows(x) + jnp.sum(x**3)


SLICES: list[tuple[str, Program, tuple[int, ...], int]] = [
    ("rows", pieces(4), (12, 3), 4),
    ("columns", pieces(8, 1), (3, 16), 8),
    ("a vector", pieces(6), (12,), 6),
    ("by number", jax.grad(rows), (5, 3), 5),
    ("with gaps", jax.grad(apart), (14, 3), 9),
    ("and the whole", jax.grad(with_the_whole), (7, 3), 6),
]


@pytest.mark.parametrize(("fun", "shape", "parts"), [s[1:] for s in SLICES], ids=[s[0] for s in SLICES])
def test_gradients_of_slices_are_put_side_by_side(fun: Program, shape: tuple[int, ...], parts: int) -> None:
    assert fired(fun, array(shape), passes=SIMPLE)["sum-of-pads"] == 1
    graph = same(fun, array(shape), passes=SIMPLE)
    (joined,) = [node for node in graph if node.op == "concatenate"]
    assert len(joined.operands) == parts
    assert "pad" not in ops(graph)


def test_the_graph_of_four_slices() -> None:
    def fun(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
        zero = np.float32(0)
        terms = [lax.pad(x, zero, [(2 * i, 6 - 2 * i, 0)]) for i, x in enumerate((a, b, c, d))]
        return (terms[3] + terms[1]) + (terms[0] + terms[2])

    assert_text(
        optimised(fun, *[array((2,), seed=i) for i in range(4)], passes="gradients,dce"),
        """
        graph fun(%0: f32[2], %1: f32[2], %2: f32[2], %3: f32[2]) {
          %4: f32[8] = concatenate[dimension=0] %0 %1 %2 %3
          return %4
        }
        """,
    )


def overlapping(x: jax.Array) -> jax.Array:
    return sum((jnp.sin(x[i : i + 3]).sum() * (i + 1) for i in range(6)), jnp.zeros(()))


def across(x: jax.Array) -> jax.Array:
    rows = (jnp.sin(x[i]).sum() for i in range(3))
    columns = (jnp.cos(x[:, i]).sum() for i in range(3))
    return sum((*rows, *columns), jnp.zeros(()))


def in_steps(x: jax.Array) -> jax.Array:
    return sum((jnp.sin(x[i::4]).sum() * (i + 1) for i in range(4)), jnp.zeros(()))


def padded_with_ones(x: jax.Array) -> jax.Array:
    return sum((jnp.pad(x[i : i + 1], ((i, 3 - i), (0, 0)), constant_values=1.0) for i in range(4)), x)


LOOKALIKES: list[tuple[str, Program, tuple[int, ...]]] = [
    ("they overlap", jax.grad(overlapping), (8, 3)),
    ("along both axes", jax.grad(across), (8, 3)),
    ("in steps", jax.grad(in_steps), (8, 3)),
    ("padded with ones", padded_with_ones, (4, 3)),
    ("two of them", pieces(2), (8, 3)),
    ("four columns", pieces(4, 1), (3, 8)),
]


@pytest.mark.parametrize(("fun", "shape"), [p[1:] for p in LOOKALIKES], ids=[p[0] for p in LOOKALIKES])
def test_other_sums_stay(fun: Program, shape: tuple[int, ...]) -> None:
    assert "sum-of-pads" not in fired(fun, array(shape), passes=SIMPLE)
    same(fun, array(shape), passes=SIMPLE)


def test_whole_numbers_are_put_side_by_side_too() -> None:
    def fun(x: jax.Array) -> jax.Array:
        return sum((jnp.pad(x[i : i + 1] * (i + 1), (i, 3 - i)) for i in range(4)), jnp.zeros(4, jnp.int32))

    x = jnp.arange(5, 9, dtype=jnp.int32)
    assert fired(fun, x, passes=SIMPLE)["sum-of-pads"] == 1
    same(fun, x, passes=SIMPLE)


# Zeros around gradients


def norm(x: jax.Array) -> jax.Array:
    y = x - x.mean(-1, keepdims=True)
    return y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5)


def block(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    y = norm(x + jax.nn.relu(x @ w + 0.5) @ v)
    return jnp.sum(jnp.sin(y[:, -1] * jnp.arange(1, 65)))


def logits(h: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.logsumexp((h @ w)[:, -1], -1))


def gated(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    y = x + (jax.nn.silu(x @ w) * jnp.tanh(x @ w)) @ v
    return jnp.sum(jnp.cos(y[:, 3:5]))


NETWORKS: list[tuple[str, Program, tuple[int, ...]]] = [
    ("last token", block, (0, 1, 2)),
    ("two tokens of a gated network", gated, (0, 1, 2)),
]

WEIGHTS = (array((4, 32, 64)), array((64, 128), seed=1) / 16, array((128, 64), seed=2) / 16)


@pytest.mark.parametrize(("fun", "by"), [n[1:] for n in NETWORKS], ids=[n[0] for n in NETWORKS])
def test_a_loss_of_some_tokens_is_differentiated_at_these_alone(fun: Program, by: tuple[int, ...]) -> None:
    graph = same(jax.grad(fun, by), *WEIGHTS, passes=PASSES)
    tokens = {shape[1] for shape in sizes(graph, "dot_general") if len(shape) == 3}
    assert len(tokens) == 1 and tokens <= {1, 2}


def test_last_token_logits() -> None:
    graph = same(jax.grad(logits, (0, 1)), WEIGHTS[0], WEIGHTS[1], passes=PASSES)
    assert sorted(sizes(graph, "dot_general")) == [(4, 1, 64), (4, 1, 128), (64, 128)]


def test_a_product_over_padded_dimensions() -> None:
    def fun(x: jax.Array, y: jax.Array) -> jax.Array:
        padded = lax.pad(x, np.float32(0), [(30, 34, 0), (0, 0, 0)])
        return padded.T @ (y > 0).astype(jnp.float32)

    x, y = array((64, 64)), array((128, 64), seed=1)
    assert "dot-of-pad" in fired(fun, x, y, passes=SIMPLE)
    same(fun, x, y, passes=SIMPLE)


KEPT: list[tuple[str, Program]] = [
    ("what may be infinite", lambda x, y: jnp.pad(x, ((30, 34), (0, 0))) * y),
    ("a product with what may be infinite", lambda x, y: jnp.pad(x, ((30, 34), (0, 0))).T @ y),
    ("ones", lambda x, y: jnp.pad(x, ((30, 34), (0, 0)), constant_values=1) * jnp.tanh(y)),
    ("in between", lambda x, y: lax.pad(x, np.float32(0), [(1, 0, 1), (0, 0, 0)]) * jnp.tanh(y)),
]


@pytest.mark.parametrize("fun", [k[1] for k in KEPT], ids=[k[0] for k in KEPT])
def test_zeros_that_differentiation_has_not_made(fun: Program) -> None:
    x, y = array((64, 64)), array((128, 64), seed=1).at[0, 0].set(jnp.inf)
    assert not {"dot-of-pad", "product-with-pad"} & fired(fun, x, y, passes=SIMPLE).keys()
    flat = to_callable(optimised(fun, x, y, passes=SIMPLE))
    check(fun(x, y), flat(x, y)[0])


EXACT: list[tuple[str, Program, str]] = [
    ("a negation", lambda p: -p, "map-of-pad"),
    ("a transpose", lambda p: p.T, "map-of-pad"),
    ("a sum", lambda p: p.sum(1), "sum-of-pad"),
    ("a sum over the zeros", lambda p: p.sum(0), "sum-of-pad"),
    ("new dimensions", lambda p: p[:, None], "view-of-pad"),
    ("a reshape", lambda p: p.reshape(9, 1, 3, 1), "view-of-pad"),
    ("parts of columns", lambda p: jnp.tile(p, (1, 2)).reshape(9, 2, 3) + p.reshape(9, 1, 3), "view-of-pad"),
    ("copies", lambda p: jnp.broadcast_to(p, (2, 9, 3)), "view-of-pad"),
    ("a sum with its like", lambda p: p + jnp.pad(p[2:6] ** 2, ((2, 3), (0, 0))), "sum-of-like-pads"),
    ("a choice", lambda p: jnp.where(jnp.arange(27).reshape(9, 3) % 2 == 0, p, 0.0), "choice-of-pad"),
    ("a wider type", lambda p: p.astype(jnp.bfloat16), "map-of-pad"),
]


@pytest.mark.parametrize(("fun", "rule"), [e[1:] for e in EXACT], ids=[e[0] for e in EXACT])
def test_what_is_done_to_padded_arrays(fun: Program, rule: str) -> None:
    def program(x: jax.Array) -> jax.Array:
        result: jax.Array = fun(lax.pad(x, np.float32(0), [(2, 3, 0), (0, 0, 0)]))
        return result

    x = array((4, 3))
    assert rule in fired(program, x, passes="inline,dce,gradients")
    same(program, x, passes=SIMPLE)


def test_nothing_changes_at_level_exact() -> None:
    assert "sum-of-pads" not in fired(pieces(4), array((12, 3)), passes=SIMPLE, level="exact")
    assert "dot-of-pad" not in fired(jax.grad(block), *WEIGHTS, passes=PASSES, level="exact")


def test_a_forbidden_change_is_not_made() -> None:
    assert assert_every_gate(pieces(4), array((12, 3)), passes=SIMPLE) > 0
