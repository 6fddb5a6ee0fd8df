"""Demand: reads of a part go to what the array is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from tests.passes._check import all_kept, check, fired, optimised, rewrite_jaxpr, same
from tests.passes._golden import assert_every_gate
from tests.passes._movement import array, special

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,demand,dce)"
A, B = array((128, 64)), array((64, 96), seed=1)
H, W = array((4, 32, 64)), array((64, 96), seed=1)
SQUARE = array((64, 64)), array((64, 64), seed=1)

Program = Callable[..., Any]


def shapes(graph: Graph, op: str) -> list[tuple[int, ...]]:
    """The shapes of what an operation makes in a graph."""
    return [node.results[0].shape for node in graph.walk() if node.op == op]


def relu_of(h: jax.Array, w: jax.Array) -> jax.Array:
    return jax.nn.relu(h @ w + 1)


PRODUCTS: list[tuple[str, Program, tuple[Any, ...], tuple[int, ...]]] = [
    ("rows", lambda a, b: (a @ b)[:8], (A, B), (8, 96)),
    ("strided rows", lambda a, b: (a @ b)[3:67:8], (A, B), (8, 96)),
    ("columns", lambda a, b: (a @ b)[:, 90:], (A, B), (128, 6)),
    ("rows and columns", lambda a, b: (a @ b)[:8, -3:], (A, B), (8, 3)),
    ("one row", lambda a, b: (a @ b)[-1], (A, B), (1, 96)),
    ("a row by number", lambda a, b, i: (a @ b)[i], (A, B, jnp.int32(-3)), (1, 96)),
    ("an entry", lambda a, b, i, j: (a @ b)[i, j], (A, B, jnp.int32(2), jnp.int32(95)), (1, 1)),
    ("dynamic rows", lambda a, b, i: lax.dynamic_slice_in_dim(a @ b, i, 4), (A, B, jnp.int32(126)), (4, 96)),
    ("some rows", lambda a, b, i: (a @ b)[i], (A, B, jnp.array([3, -1, 100])), (3, 96)),
    ("rows in a square", lambda a, b, i: (a @ b)[i], (A, B, jnp.array([[3, -1], [0, 0]])), (4, 96)),
    (
        "a row of each",
        lambda h, w: jax.nn.softmax(h @ w + w[0])[jnp.arange(4), jnp.array([1, 31, -1, 0])],
        (H, W),
        (4, 1, 96),
    ),
    (
        "a row of each along an axis",
        lambda h, w: jnp.take_along_axis(jnp.tanh(h @ w), jnp.array([3, 0, 31, 2])[:, None, None], 1),
        (H, W),
        (4, 1, 96),
    ),
    (
        "two rows of each by vmap",
        lambda h, w: jax.vmap(lambda h, i: jnp.sin(h @ w)[i])(h, jnp.array([[1, 2]] * 4)),
        (H, W),
        (4, 2, 96),
    ),
    ("some columns", lambda a, b, i: (a @ b)[:, i], (A, B, jnp.array([3, -1])), (128, 2)),
    ("last token", lambda h, w: (h @ w)[:, -1], (H, W), (4, 1, 96)),
    ("one batch", lambda a, b: (a @ b)[2], (array((8, 32, 64)), array((8, 64, 32))), (1, 32, 32)),
    ("of a transpose", lambda a, b: jnp.sin((a @ b).T)[:8], (A, B), (8, 128)),
    ("of a sum", lambda a, b: (2 * (a @ b) + 1)[:8], (A, B), (8, 96)),
    ("of a softmax", lambda h, w: jax.nn.softmax(h @ w)[:, -1], (H, W), (4, 1, 96)),
    ("of a relu", lambda h, w: relu_of(h, w)[:, -1], (H, W), (4, 1, 96)),
    ("of a broadcast sum", lambda h, w: (h @ w + w[0])[:, -1], (H, W), (4, 1, 96)),
    ("of a reshape", lambda h, w: (h @ w).reshape(4, 32, 2, 48)[:, -1], (H, W), (4, 1, 96)),
    ("of heads", lambda h, w: (h @ w).reshape(4, 32, 2, 48)[:, :, 1], (H, W), (4, 32, 48)),
    ("of groups of rows", lambda a, b: (a @ b).reshape(8, 16, 96)[2:4], (A, B), (32, 96)),
    ("of a reversal", lambda a, b: jnp.tanh(a @ b)[::-1, ::-1][3:60:8], (A, B), (8, 96)),
    ("of a concatenation", lambda h, w: jnp.concatenate([h @ w, h], -1)[:, -1], (H, W), (4, 1, 96)),
    ("of a pad", lambda h, w: jnp.pad(h @ w, ((0, 0), (0, 0), (2, 1)))[:, -1], (H, W), (4, 1, 96)),
    ("of a cumulative sum", lambda h, w: jnp.cumsum(h @ w, -1)[:, 3], (H, W), (4, 1, 96)),
    ("twice", lambda a, b: jnp.tanh(a @ b)[:8] + jnp.exp(a @ b)[:8], (A, B), (8, 96)),
]


def test_only_the_part_is_multiplied() -> None:
    found = all_kept({name: (fun, args) for name, fun, args, _ in PRODUCTS}, passes=PASSES)
    for name, _, _, shape in PRODUCTS:
        assert shapes(found[name][0], "dot_general") == [shape], name


def test_the_graph_of_some_rows() -> None:
    graph = optimised(lambda a, b: (a @ b)[:8], A, B, passes=PASSES)
    assert [node.op for node in graph] == ["slice", "dot_general"]
    assert graph.outputs[0].shape == (8, 96)


def test_two_layers_are_computed_at_one_token() -> None:
    def network(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
        y = x + jax.nn.gelu(x @ w) @ v
        return jnp.sin(y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True) + 1e-5)

    args = array((4, 32, 64)), array((64, 128), seed=1) / 8, array((128, 64), seed=2) / 8
    graph = same(lambda *a: network(*a)[:, -1], *args, passes=PASSES)
    assert shapes(graph, "dot_general") == [(4, 1, 128), (4, 1, 64)]


def test_a_part_of_a_lookup_looks_up_less() -> None:
    table, ids = array((50, 64)), jnp.arange(64).reshape(2, 32) % 50
    graph = same(lambda t, w, i: (t @ w)[i][:, -1], table, W, ids, passes=PASSES)
    assert shapes(graph, "dot_general") == [(2, 96)]


CONVOLUTIONS: list[tuple[str, Program, tuple[int, ...]]] = [
    ("an image", lambda y: y[1], (1, 16, 16, 32)),
    ("features", lambda y: y[..., :4], (4, 16, 16, 4)),
    ("both", lambda y: y[0, ..., 3], (1, 16, 16, 1)),
]


def convolve(x: jax.Array, w: jax.Array, groups: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def test_only_the_part_is_convolved() -> None:
    args = array((4, 16, 16, 8)), array((3, 3, 8, 32), seed=1)
    programs = {name: (lambda x, w, part=part: part(convolve(x, w)), args) for name, part, _ in CONVOLUTIONS}
    found = all_kept(programs, passes=PASSES)
    for name, _, shape in CONVOLUTIONS:
        assert shapes(found[name][0], "conv_general_dilated") == [shape], name


LOOKALIKES: list[tuple[str, Program, tuple[Any, ...]]] = [
    ("the product is read elsewhere", lambda a, b: (lambda c: (c[:8], c.sum()))(a @ b), (A, B)),
    ("the product is returned", lambda a, b: (lambda c: (c[:8], c))(a @ b), (A, B)),
    ("two parts are read", lambda a, b: (lambda c: (c[:64], jnp.sin(c[64:])))(a @ b), (A, B)),
    ("nearly all is read", lambda a, b: (a @ b)[1:], (A, B)),
    ("more rows are read than there are", lambda a, b, i: (a @ b)[i], (A, B, jnp.arange(300) % 128)),
    ("XLA does it", lambda a: jnp.tanh(a)[:8], (A,)),
    ("too small to pay", lambda a, b: (a @ b)[:2], (array((4, 4)), array((4, 4)))),
    (
        "the part has its own rows for each example",
        lambda a, i: jnp.take_along_axis(a @ a.T, i, 1),
        (A, jnp.zeros((128, 1), int)),
    ),
    (
        "positions are added to rows of each",
        lambda a, i: jnp.tanh(a[:, None] + a[None, :, :])[jnp.arange(128), i],
        (A, jnp.zeros(128, int)),
    ),
    ("columns of all heads", lambda h, w: (h @ w).reshape(4, 32, 2, 48)[..., :5], (H, W)),
    ("the dimension is merged with another", lambda h, w: (h @ w).reshape(128, 96)[5:9], (H, W)),
    (
        "grouped features",
        lambda x, w: convolve(x, w, 8)[..., :2],
        (array((4, 16, 16, 8)), array((3, 3, 1, 8))),
    ),
    ("along a cumulative sum", lambda a: jnp.cumsum(a, 0)[:8], (A,)),
]


@pytest.mark.parametrize(("fun", "args"), [p[1:] for p in LOOKALIKES], ids=[p[0] for p in LOOKALIKES])
def test_nothing_changes(fun: Program, args: tuple[Any, ...]) -> None:
    assert fired(fun, *args, passes="inline,dce,fixpoint(movement,cse),demand") == fired(
        fun, *args, passes="inline,dce,fixpoint(movement,cse)"
    )


def test_nothing_changes_at_level_exact() -> None:
    assert fired(lambda a, b: (a @ b)[:8], A, B, passes=PASSES, level="exact") == {}
    assert fired(lambda a, b: (a @ b)[:8], A, B, passes="demand{level=exact}") == {}


def test_precision_and_types_are_kept() -> None:
    def fun(a: jax.Array, b: jax.Array) -> jax.Array:
        numbers = (((1,), (0,)), ((), ()))
        return lax.dot_general(
            a, b, numbers, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )[:8]

    a, b = A.astype(jnp.bfloat16), B.astype(jnp.bfloat16)
    graph = same(fun, a, b, passes=PASSES)
    (dot,) = [node for node in graph if node.op == "dot_general"]
    assert dot.params["precision"] == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    assert graph.outputs[0].dtype == jnp.float32


def test_other_types() -> None:
    programs = {
        dtype: (lambda a, b: (a @ b)[:8], (array((128, 64), dtype), array((64, 96), dtype, seed=1)))
        for dtype in ("bfloat16", "int32", "float16")
    }
    for dtype, (graph, _) in all_kept(programs, passes=PASSES).items():
        assert shapes(graph, "dot_general") == [(8, 96)], dtype


def test_rows_out_of_bounds_are_filled() -> None:
    rows = jnp.array([1, 500, -1])
    graph = same(lambda a, b, i: jnp.take(a @ b, i, axis=0), A, B, rows, passes=PASSES, grad=False)
    assert shapes(graph, "dot_general") == [(3, 96)]
    same(lambda a, b, i: (a @ b).at[i].get(mode="fill", fill_value=2), A, B, rows, passes=PASSES, grad=False)
    few = jnp.array([1, 127, -1], "int8")  # 128 is no int8
    same(lambda a, b, i: jnp.take(a @ b, i, axis=0), A, B, few, passes=PASSES, grad=False)
    closed = jax.make_jaxpr(lambda b: jnp.take(A @ b, rows, axis=0))(B)
    rewritten = to_callable(rewrite_jaxpr(closed, "f", PASSES)[0])
    gradient = jax.grad(lambda b: jnp.nansum(rewritten(b)[0]))(B)
    check(jax.grad(lambda b: jnp.nansum(jnp.take(A @ b, rows, axis=0)))(B), gradient)


def test_nan_in_the_part_stays() -> None:
    a = special((128, 64))
    graph = optimised(lambda a, b: (a @ b)[:8], a, B, passes=PASSES)
    assert shapes(graph, "dot_general") == [(8, 96)]
    same(lambda a, b: (a @ b)[:8], a, B, passes=PASSES, grad=False)


def test_no_part_at_all() -> None:
    graph = same(lambda a, b: (a @ b)[5:5], A, B, passes=PASSES)
    assert graph.outputs[0].shape == (0, 96)


def test_in_a_loop_what_is_the_same_each_time_stays_in_front() -> None:
    """XLA computes A @ B once for the whole loop; a row of A times B each time would cost more."""

    def rows(a: jax.Array, b: jax.Array) -> jax.Array:
        zeros = jnp.zeros(96)
        total: jax.Array = lax.fori_loop(0, 128, lambda i, total: total + jnp.sin((a @ b)[i]), zeros)
        return total

    assert "part-of-dot" not in fired(rows, A, B, passes=PASSES)


def test_a_forbidden_change_is_not_made() -> None:
    assert assert_every_gate(lambda h, w: jax.nn.softmax(h @ w)[:, -1], H, W, passes=PASSES) > 3


def test_symbolic_shapes_are_left_alone() -> None:
    (rows,) = jax.export.symbolic_shape("n")
    wide = jax.ShapeDtypeStruct((rows, 64), jnp.float32)
    assert "part-of-dot" not in fired(lambda a, b: (a @ b)[:, :8], wide, B, passes=PASSES)


def test_lines_of_each_product_without_its_other_dimension() -> None:
    """The gather drops a dimension of size one besides that of the lines."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(1,),
        collapsed_slice_dims=(1, 3),
        start_index_map=(1,),
        operand_batching_dims=(0,),
        start_indices_batching_dims=(0,),
    )

    def fun(a: jax.Array, b: jax.Array, i: jax.Array) -> jax.Array:
        y = lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))))
        return lax.gather(y, i[:, None], numbers, (1, 1, 3, 1), mode="clip")

    same(fun, array((4, 32, 64)), array((4, 64, 3, 1)), jnp.array([0, 31, 2, 99]), passes=PASSES)
