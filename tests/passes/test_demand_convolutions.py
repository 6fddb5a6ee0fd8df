"""Demand: parts, sums and single entries of convolutions and products."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.export import to_callable
from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, optimised
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(inline,fold,algebra,movement,cse,dce,demand)"
NHWC = ("NHWC", "HWIO", "NHWC")

X, K = array((2, 12, 10, 3)), array((3, 3, 3, 4), seed=1)
A, B, C = array((6, 5)), array((5, 7), seed=1), array((7,), seed=2)
H, W = array((2, 3, 5)), array((2, 5, 7), seed=1)
ROWS = jnp.array([0, 3, -1, 2, 6, 1])
I32 = jnp.int32


def conv(x: Any, k: Any, padding: Any = "SAME", strides: Any = (1, 1), **more: Any) -> jax.Array:
    return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=NHWC, **more)


def uneven(x: Any, k: Any) -> jax.Array:
    return conv(x, k, ((2, 3), (0, 1)), (2, 1), rhs_dilation=(2, 1))


def turned(x: Any, k: Any) -> jax.Array:
    return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "HWNC"))


def test_places_of_a_convolution_are_cut_out_of_its_input() -> None:
    programs: dict[str, Any] = {
        "first rows": (lambda x, k: conv(x, k)[:, :4], (X, K)),
        "steps": (lambda x, k: conv(x, k, "VALID")[:, 3:9:2, 1:4], (X, K)),
        "strides, and an example": (lambda x, k: conv(x, k, "SAME", (2, 2))[:1, -2:, :, 1:2], (X, K)),
        "uneven padding": (lambda x, k: uneven(x, k)[:, 1:2], (X, K)),
        "one place": (lambda x, k: conv(x, k)[:, 5, -1], (X, K)),
        "out of bounds": (lambda x, k, i: lax.dynamic_slice_in_dim(conv(x, k), i, 3, 1), (X, K, I32(11))),
        "by number": (
            lambda x, k, i: lax.dynamic_slice(conv(x, k, "SAME", (2, 2)), (i, i, 0, 0), (1, 2, 5, 4)),
            (X, K, I32(1)),
        ),
    }
    with profit.disregarded():
        for name, (graph, report) in all_kept(programs, passes=PASSES).items():
            assert report.rules["part-of-convolution"] == 1, name
            [made] = [node for node in graph.walk() if node.op == "conv_general_dilated"]
            assert made.result.aval.size < 12 * 10 * 8 / 2, name


def test_what_is_read_reaches_into_the_padding() -> None:
    with profit.disregarded():
        graph = optimised(lambda x, k: conv(x, k)[:, :4], X, K, passes=PASSES)
    [cut, made] = list(graph)
    assert cut.op == "slice" and cut.result.shape == (2, 5, 10, 3)
    assert made.params["padding"] == ((1, 0), (1, 1))


def test_convolutions_that_are_not_cut() -> None:
    programs: dict[str, Any] = {
        "spread input": (lambda x, k: conv(x, k, ((1, 1), (1, 1)), lhs_dilation=(2, 1))[:, :4], (X, K)),
        "nearly all": (lambda x, k: conv(x, k)[:, :11], (X, K)),
        "also read whole": (lambda x, k: (lambda y: (y[:, :4], y.sum(1)))(conv(x, k)), (X, K)),
        "padding alone": (lambda x, k: conv(x, k, ((3, 3), (0, 0)))[:, :1], (X, K)),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, grad=False).items():
            assert "part-of-convolution" not in report.rules, name


def test_sums_of_convolutions() -> None:
    programs: dict[str, Any] = {
        "features": (lambda x, k: conv(x, k).sum(-1), (X, K)),
        "examples": (lambda x, k: conv(x, k).sum(0), (X, K)),
        "places": (lambda x, k: conv(x, k).sum((1, 2)), (X, K)),
        "mean": (lambda x, k: conv(x, k, "VALID", (2, 3)).mean((1, 2)), (X, K)),
        "places and examples": (lambda x, k: uneven(x, k).sum((0, 1, 2)), (X, K)),
        "wide margins": (lambda x, k: conv(x, k, ((5, 4), (0, 9)), (1, 3)).sum((1, 2)), (X, K)),
        "taps apart": (lambda x, k: conv(x, k, ((8, 7), (2, 6)), rhs_dilation=(7, 4)).sum((1, 2)), (X, K)),
        "all": (lambda x, k: conv(x, k).sum(), (X, K)),
        "other layout": (lambda x, k: turned(x, k).sum((0, 1)), (X, K)),
        "bias": (lambda x, k: (k[0, 0, 0] + conv(x, k)).mean((1, 2)), (X, K)),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES).items():
            assert report.rules["sum-of-convolution"] == 1, name


def test_what_all_taps_meet_is_added_up_once() -> None:
    with profit.disregarded():
        graph = optimised(lambda x, k: conv(x, k).sum((1, 2)), X, K, passes=PASSES)
    largest = [node for node in graph if node.op == "reduce_sum" and node.operands[0].shape[1] == 10]
    assert len(largest) == 1
    assert "pad" not in graph.to_text() and "transpose" not in graph.to_text()
    infinite = X.at[0, 0, 0, 0].set(jnp.inf)
    [result] = to_callable(graph)(infinite, K)
    assert jnp.isfinite(result[1]).all() and not jnp.isfinite(result[0]).any()


def test_sums_that_stay() -> None:
    programs: dict[str, Any] = {
        "one of two": (lambda x, k: conv(x, k).sum(1), (X, K)),
        "scaled": (lambda x, k: (conv(x, k) * x[..., :1]).sum((1, 2)), (X, K)),
        "groups": (lambda x, k: conv(x, k, feature_group_count=3).sum(-1), (X, array((3, 3, 1, 6)))),
        "half": (
            lambda x, k: conv(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16)).sum(-1),
            (X, K),
        ),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, grad=False, vmap=False).items():
            assert "sum-of-convolution" not in report.rules, name


def test_entries_of_products() -> None:
    programs: dict[str, Any] = {
        "along": (lambda a, b, i: jnp.take_along_axis(a @ b, i[:, None], 1), (A, B, ROWS.at[4].set(9))),
        "pairs": (lambda a, b, i: (a @ b)[jnp.arange(6), i], (A, B, ROWS)),
        "vmap": (lambda a, b, i: jax.vmap(lambda q, j: q[j])(a @ b, i), (A, B, ROWS)),
        "layer": (lambda a, b, c, i: jax.nn.relu(a @ b + c)[jnp.arange(6), i] * 2, (A, B, C, ROWS)),
        "batches": (
            lambda h, w, i: jnp.take_along_axis(h @ w, i, -1),
            (H, W, ROWS.reshape(2, 3, 1)),
        ),
        "tokens": (
            lambda h, b, i: jnp.take_along_axis(jnp.einsum("btd,dv->btv", h, b), i[..., None], -1)[..., 0],
            (H, B, ROWS.reshape(2, 3)),
        ),
        "columns": (lambda a, b, i: jnp.take_along_axis(a @ b, i[None, :5], 0), (A, B[:, :5], ROWS % 6)),
    }
    with profit.disregarded():
        for name, (graph, report) in all_kept(programs, passes=PASSES).items():
            assert report.rules["entries-of-dot"] == 1, name
            assert not any(node.op == "dot_general" for node in graph.walk()), name


def test_entries_that_stay() -> None:
    programs: dict[str, Any] = {
        "also read whole": (lambda a, b, i: (lambda y: (y[jnp.arange(6), i], y * 2))(a @ b), (A, B, ROWS)),
        "whole rows": (lambda a, b, i: (a @ b)[i[:, None] % 6], (A, B, ROWS)),
        "no product": (lambda a, i: jnp.sin(a)[jnp.arange(6), i % 5], (A, ROWS)),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, grad=False).items():
            assert "entries-of-dot" not in report.rules, name
