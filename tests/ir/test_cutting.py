"""Cutting programs: what is left computes what the whole computed at the indices that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.cutting import Cut, CutError, cut_cost, cut_graph, evaluate_cut, inline_calls, take
from lepton_jax.ir.cutting.cut import evenly_spaced
from lepton_jax.ir.dimensions import analyse
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import trace

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32)
COLUMNS = np.array([0, 2, 3, 7])
FAST: Any = {"xla_backend_optimization_level": 0}


def spread(x: jax.Array) -> Any:
    """Indices, sizes and constants along the dimension that is cut."""
    weights = np.arange(8, dtype=np.float32)
    return x * weights + lax.iota(jnp.float32, 8) + jnp.zeros((3, 8)), jnp.ones((8, 3)) * x.T


def windows(x: jax.Array) -> Any:
    """Padding on both sides, slices with steps, what is joined, turned round and split again."""
    wide = jnp.pad(x, ((0, 0), (2, 3)))[:, 2:10]
    parts = jnp.split(jnp.concatenate([wide, x[:, ::-1][:, ::-1]], 1), 2, 1)
    return wide[:, :8:1], parts[0] + parts[1]


def partly(x: jax.Array) -> Any:
    """Rows are picked, all of what is cut stays within the window."""
    rows = jnp.array([2, 0])
    moved = lax.dynamic_slice(x, (jnp.int32(1), jnp.int32(0)), (2, 8))
    return x[rows], moved, lax.dynamic_update_slice(x, moved, (0, 0)), x.at[rows].add(1.0)


def loops(x: jax.Array) -> Any:
    """Loops and branches carry what is cut."""

    def step(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return carry + row, jnp.tanh(carry * row)

    last, every = lax.scan(step, jnp.zeros(8), x)
    branch = lax.cond(x[0, 0] > 0, lambda x: x * 2, lambda x: x + jnp.zeros(8), x)
    count, grown = lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.5), (0, x))
    return last, every, branch, count * 1.0, grown, jax.checkpoint(jnp.sin)(x)


@jax.custom_vjp
def twice_the_slope(x: jax.Array) -> jax.Array:
    return jnp.sin(x) * jnp.ones(x.shape)


twice_the_slope.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (2 * jnp.cos(x) * g + jnp.zeros(x.shape),))


def custom(x: jax.Array) -> Any:
    """Derivative rules of their own, at 0 too."""
    return jax.nn.relu(x - x[:, :1] * 0), twice_the_slope(x), jax.nn.silu(x), jax.nn.logsumexp(x, 0)


def reshaped(x: jax.Array) -> Any:
    """Two dimensions made one and back, others spread."""
    outer = x[:, :, None] * jnp.arange(2.0)
    flat = outer.reshape(3, 16)
    return flat, jnp.broadcast_to(flat.reshape(3, 8, 2)[:, :, :1], (3, 8, 4)), outer.transpose(1, 0, 2)


PROGRAMS: list[Callable[..., Any]] = [spread, windows, partly, loops, custom, reshaped]


def cut_of(fun: Callable[..., Any], kept: dict[tuple[int, int], Any], *args: Any) -> tuple[Graph, Cut]:
    graph = inline_calls(trace(fun, *args))
    return graph, Cut.found(analyse(graph, outputs="free"), kept)


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda fun: fun.__name__)
def test_what_is_left_is_as_it_was(fun: Callable[..., Any]) -> None:
    graph, cut = cut_of(fun, {(0, 1): COLUMNS}, X)
    wholes = [v for v in graph.outputs if v not in cut.kept]
    assert len(wholes) < len(graph.outputs)

    def loss(fun: Callable[..., Any], x: Any) -> Any:
        return sum(jnp.sum(jnp.sin(each)) for each in fun(x))

    def whole(x: Any) -> Any:
        return [
            take(each, cut.of(value))
            for each, value in zip(jax.tree.leaves(fun(x)), graph.outputs, strict=True)
        ]

    def small(x: Any) -> Any:
        return evaluate_cut(graph, [x], cut)

    def both(x: Any) -> Any:
        left = x[:, COLUMNS]
        return (whole(x), jax.jvp(whole, (x,), (x * 0.5,))[1]), (
            small(left),
            jax.jvp(small, (left,), (left * 0.5,))[1],
        )

    def backward(x: Any) -> Any:
        """As `both`, for a custom_vjp, which has no forward mode."""
        left = x[:, COLUMNS]
        return (whole(x), jax.grad(lambda x: loss(whole, x))(x)[:, COLUMNS]), (
            small(left),
            jax.grad(lambda x: loss(small, x))(left),
        )

    expected, found = jax.jit(backward if fun is custom else both, compiler_options=FAST)(X)
    for right, left in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


def test_groups_of_convolutions_follow_the_kernel() -> None:
    def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=8
        )

    x, kernel = X[None], jnp.asarray(RNG.normal(size=(3, 1, 8)), jnp.float32)
    graph, cut = cut_of(depthwise, {(1, 2): COLUMNS}, x, kernel)
    (found,) = evaluate_cut(graph, [x[..., COLUMNS], kernel[..., COLUMNS]], cut)
    np.testing.assert_allclose(found, depthwise(x, kernel)[..., COLUMNS], rtol=1e-6)
    smaller = cut_graph(graph, cut)
    assert "feature_group_count=4" in smaller.to_text()
    assert cut_cost(graph, cut).flops == cut_cost(graph, Cut({})).flops / 2


def test_layers_of_a_scan_go() -> None:
    def layers(x: jax.Array, weights: jax.Array) -> jax.Array:
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    weights = jnp.asarray(RNG.normal(size=(4, 8, 8)), jnp.float32)
    graph, cut = cut_of(layers, {(1, 0): np.array([0, 3])}, X, weights)
    (found,) = evaluate_cut(graph, [X, weights[::3]], cut)
    np.testing.assert_allclose(found, layers(X, weights[::3]), rtol=1e-6)
    assert "length=2" in cut_graph(graph, cut).to_text()


def test_means_divide_by_what_is_left() -> None:
    graph, cut = cut_of(lambda x: x.mean(1), {(0, 1): COLUMNS}, X)
    (found,) = evaluate_cut(graph, [X[:, COLUMNS]], cut)
    np.testing.assert_allclose(found, X[:, COLUMNS].mean(1), rtol=1e-6)


def test_random_numbers_are_drawn_for_what_is_left() -> None:
    def drop(x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0)

    graph, cut = cut_of(drop, {(0, 1): COLUMNS}, X, jax.random.key(0))
    (found,) = evaluate_cut(graph, [X[:, COLUMNS], jax.random.key(0)], cut)
    assert found.shape == (3, 4) and 0 < np.count_nonzero(found) < found.size


def test_wrong_arguments_are_refused() -> None:
    graph, cut = cut_of(lambda x: x[:, :, None].reshape(24), {}, X)
    with pytest.raises(TypeError, match="takes 1 arrays, got 2"):
        evaluate_cut(graph, [X, X], cut)
    graph = inline_calls(trace(lambda x: jnp.sort(x, 1) + X, X))
    by_hand = Cut({graph.inputs[0]: (None, COLUMNS)})
    with pytest.raises(CutError, match=r"add cannot be made smaller.*test_cutting"):
        evaluate_cut(graph, [X[:, COLUMNS]], Cut({**by_hand.kept, graph.outputs[0]: (None, COLUMNS)}))


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([0, 1, 2], (0, 1)), ([1, 3, 5], (1, 2)), ([4], (4, 1)), ([0, 1, 3], None), ([2, 1], None), ([], None)],
)
def test_even_spacing(indices: list[int], expected: tuple[int, int] | None) -> None:
    assert evenly_spaced(np.array(indices, np.int64)) == expected


def test_taking_keeps_numpy_arrays() -> None:
    array = np.arange(24).reshape(4, 6)
    found = take(array, (np.array([0, 2]), np.array([1, 2, 5])))
    assert isinstance(found, np.ndarray) and found.tolist() == [[1, 2, 5], [13, 14, 17]]
    traced = take(jnp.asarray(array), (np.array([0, 2]), np.array([1, 2, 5])))
    np.testing.assert_array_equal(traced, found)
