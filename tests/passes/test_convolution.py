"""Convolution: every form gives the same numbers, and only what pays is rewritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from lepton_jax.passes.lower._convolution.separable import factors_of
from lepton_jax.passes.lower._convolution.spectral import good_length, plan
from tests.passes._check import all_kept, check, fired, optimised, same
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,dce,convolution,inline)"
LAST = ("NHWC", "HWIO", "NHWC")
FIRST = ("NCHW", "OIHW", "NCHW")
LINE = ("NHC", "HIO", "NHC")

Program = Callable[..., jax.Array]
OURS = {
    "depthwise-as-shifts",
    "depthwise-gradient-as-sums",
    "pointwise-as-dot",
    "whole-window-as-dot",
    "long-kernel-by-fourier",
    "separable-kernel",
}


def conv(
    layout: tuple[str, str, str] = LAST,
    strides: tuple[int, ...] = (1, 1),
    padding: Any = "SAME",
    **params: Any,
) -> Program:
    def fun(x: jax.Array, w: jax.Array) -> jax.Array:
        numbers = lax.conv_dimension_numbers(x.shape, w.shape, layout)
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **params)

    return fun


def slope(fun: Program) -> Callable[..., Any]:
    return jax.grad(lambda x, w: jnp.sum(jnp.sin(fun(x, w))), (0, 1))


def rules_of(
    fun: Callable[..., Any], *args: Any, passes: str = PASSES, level: str = "reassociate"
) -> set[str]:
    return OURS & set(fired(fun, *args, passes=passes, level=level))


Table = dict[str, tuple[Program, tuple[int, ...], tuple[int, ...]]]


def programs_of(table: Table) -> dict[str, tuple[Program, tuple[Any, ...]]]:
    """Functions and their arguments."""
    return {name: (fun, (array(x), array(w, seed=1))) for name, (fun, x, w) in table.items()}


def convolutions(graph: Any) -> int:
    return sum(node.op == "conv_general_dilated" for node in graph.walk())


DEPTHWISE: Table = {
    "channels last": (conv(feature_group_count=3), (2, 6, 5, 3), (3, 3, 1, 3)),
    "channels first": (conv(FIRST, feature_group_count=3), (2, 3, 6, 5), (3, 1, 3, 3)),
    "stride": (conv(LAST, (2, 1), feature_group_count=3), (2, 7, 5, 3), (3, 2, 1, 3)),
    "no padding": (conv(padding="VALID", feature_group_count=3), (2, 6, 5, 3), (3, 3, 1, 3)),
    "uneven padding": (conv(padding=[(2, 0), (-1, 3)], feature_group_count=3), (2, 6, 5, 3), (3, 3, 1, 3)),
    "dilated kernel": (conv(rhs_dilation=(2, 3), feature_group_count=2), (1, 8, 9, 2), (3, 2, 1, 2)),
    "dilated input": (
        conv(padding=[(1, 2), (2, 1)], lhs_dilation=(2, 3), feature_group_count=2),
        (1, 4, 3, 2),
        (3, 2, 1, 2),
    ),
    "multiplier": (conv(feature_group_count=3), (2, 6, 5, 3), (3, 3, 1, 6)),
    "multiplier, channels first": (conv(FIRST, feature_group_count=3), (2, 3, 6, 5), (12, 1, 3, 3)),
    "sums of channels": (conv(feature_group_count=2), (2, 6, 5, 6), (3, 3, 3, 2)),
    "one channel": (conv(), (2, 6, 5, 1), (3, 3, 1, 4)),
    "line": (conv(LINE, (1,), [(2, 0)], feature_group_count=4), (2, 9, 4), (3, 1, 4)),
    "one tap": (conv(feature_group_count=3), (2, 6, 5, 3), (1, 1, 1, 3)),
}


def test_depthwise_convolutions_become_sums_of_shifts() -> None:
    for name, (graph, report) in all_kept(programs_of(DEPTHWISE), passes=PASSES).items():
        assert OURS & set(report.rules) == {"depthwise-as-shifts"}, name
        assert not convolutions(graph), name


def test_second_derivatives_of_depthwise_convolutions() -> None:
    fun, x, w = DEPTHWISE["line"]
    same(slope(fun), array(x), array(w, seed=1), passes=PASSES, export=False, vmap=False)


def test_depthwise_text() -> None:
    fun = conv(LINE, (1,), "VALID", feature_group_count=3)
    text = optimised(fun, array((1, 4, 3)), array((2, 1, 3)), passes=PASSES).to_text()
    assert [line.strip() for line in text.split("\n")[1:-1]] == [
        "%2: f32[2,3] = squeeze[dimensions=(1,)] %1",
        "%3: f32[1,3,3] = slice[limit_indices=(1,3,3) start_indices=(0,0,0) strides=(1,1,1)] %0",
        "%4: f32[1,3] = slice[limit_indices=(1,3) start_indices=(0,0) strides=(1,1)] %2",
        "%5: f32[1,3,3] = broadcast_in_dim[broadcast_dimensions=(0,2) shape=(1,3,3)] %4",
        "%6: f32[1,3,3] = mul %3 %5",
        "%7: f32[1,3,3] = slice[limit_indices=(1,4,3) start_indices=(0,1,0) strides=(1,1,1)] %0",
        "%8: f32[1,3] = slice[limit_indices=(2,3) start_indices=(1,0) strides=(1,1)] %2",
        "%9: f32[1,3,3] = broadcast_in_dim[broadcast_dimensions=(0,2) shape=(1,3,3)] %8",
        "%10: f32[1,3,3] = mul %7 %9",
        "%11: f32[1,3,3] = add %6 %10",
        "return %11",
    ]


def test_gradients_of_depthwise_convolutions() -> None:
    names = "channels last", "channels first", "stride", "multiplier", "line"
    chosen = programs_of({name: DEPTHWISE[name] for name in names})
    programs = {name: (slope(fun), args) for name, (fun, args) in chosen.items()}
    for name, (graph, report) in all_kept(programs, passes=PASSES, grad=False, export=False).items():
        assert OURS & set(report.rules) == {"depthwise-as-shifts", "depthwise-gradient-as-sums"}, name
        assert not convolutions(graph), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_numbers_are_added_up_in_float32(dtype: str) -> None:
    fun = conv(feature_group_count=3)
    args = array((2, 6, 5, 3), dtype), array((5, 5, 1, 3), dtype, seed=1)
    graph = optimised(fun, *args, passes=PASSES)
    assert all(node.result.dtype == jnp.float32 for node in graph if node.op == "add")
    assert graph.outputs[0].dtype == jnp.dtype(dtype)
    same(fun, *args, passes=PASSES, grad=False)


def test_the_preferred_element_type_stays() -> None:
    fun = conv(feature_group_count=3, preferred_element_type=jnp.float32)
    args = array((2, 6, 5, 3), "bfloat16"), array((3, 3, 1, 3), "bfloat16", seed=1)
    assert rules_of(fun, *args) == {"depthwise-as-shifts"}
    assert same(fun, *args, passes=PASSES, grad=False).outputs[0].dtype == jnp.float32


def test_nan_and_infinity_stay_where_they_are() -> None:
    fun = conv(feature_group_count=3)
    x, w = array((1, 6, 6, 3)), array((3, 3, 1, 3), seed=1)
    x = x.at[0, 2, 2, 1].set(jnp.nan).at[0, 5, 5, 0].set(jnp.inf)
    same(fun, x, w, passes=PASSES, grad=False)


LEFT_ALONE: Table = {
    "dense": (conv(), (2, 6, 5, 3), (3, 3, 3, 4)),
    "groups of several channels": (conv(feature_group_count=2), (2, 6, 5, 4), (3, 3, 2, 4)),
    "one channel feeds many": (conv(), (2, 6, 5, 1), (3, 3, 1, 32)),
    "more than 64 taps, little work": (conv(feature_group_count=3), (1, 6, 5, 3), (9, 9, 1, 3)),
    "another layout in the result": (
        conv(("NHWC", "HWIO", "NCHW"), feature_group_count=3),
        (2, 6, 5, 3),
        (3, 3, 1, 3),
    ),
    "no examples": (conv(feature_group_count=3), (0, 6, 5, 3), (3, 3, 1, 3)),
    "one tap, little work": (conv(), (1, 2, 2, 4), (1, 1, 4, 4)),
    "long kernel, many channels": (conv(LINE, (1,)), (1, 512, 32), (64, 32, 32)),
    "long kernel, many results": (conv(), (2, 64, 64, 3), (11, 11, 3, 48)),
    "long kernel with a stride": (conv(LINE, (2,)), (1, 20000, 1), (80, 1, 1)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_convolutions_that_are_left_alone(name: str) -> None:
    fun, x, w = LEFT_ALONE[name]
    assert rules_of(fun, array(x), array(w, seed=1)) == set()


def test_integers_are_left_alone() -> None:
    fun = conv(feature_group_count=3, preferred_element_type=jnp.int32)
    assert rules_of(fun, array((2, 6, 5, 3), "int8"), array((3, 3, 1, 3), "int8")) == set()


def test_only_on_cpu_and_not_at_level_exact() -> None:
    fun, x, w = DEPTHWISE["channels last"]
    args = array(x), array(w, seed=1)
    assert rules_of(fun, *args, level="exact") == set()
    assert "conv_general_dilated" in optimised(fun, *args, passes=PASSES, target="gpu").to_text()


POINTWISE: Table = {
    "channels last": (conv(), (2, 16, 8, 32), (1, 1, 32, 24)),
    "stride": (conv(LAST, (2, 3), "VALID"), (4, 32, 20, 32), (1, 1, 32, 24)),
    "many examples, channels first": (conv(FIRST), (2, 32, 16, 16), (24, 32, 1, 1)),
    "one example, channels first": (conv(FIRST), (1, 32, 16, 16), (24, 32, 1, 1)),
    "few places, channels first": (conv(FIRST), (16, 32, 4, 4), (24, 32, 1, 1)),
    "padding and holes": (
        conv(padding=[(1, 2), (-1, 0)], lhs_dilation=(2, 1)),
        (2, 16, 8, 32),
        (1, 1, 32, 24),
    ),
    "line": (conv(LINE, (1,)), (2, 128, 32), (1, 32, 24)),
    "another layout in the result": (conv(("NHWC", "OHWI", "CNHW")), (2, 16, 8, 32), (24, 1, 1, 32)),
}


def test_convolutions_of_one_tap_become_products() -> None:
    for name, (graph, report) in all_kept(programs_of(POINTWISE), passes=PASSES).items():
        assert OURS & set(report.rules) == {"pointwise-as-dot"}, name
        assert not convolutions(graph), name


@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_gradients_of_convolutions_of_one_tap(layout: tuple[str, str, str]) -> None:
    for strides in ((1, 1), (2, 2)):
        x, w = ((2, 32, 16, 32), (1, 1, 32, 24)) if layout == LAST else ((2, 32, 32, 16), (24, 32, 1, 1))
        args = array(x), array(w, seed=1)
        grads = slope(conv(layout, strides, "VALID"))
        assert rules_of(grads, *args) == {"pointwise-as-dot", "whole-window-as-dot"}
        same(grads, *args, passes=PASSES, grad=False, export=False)


def test_precision_and_types_go_with_the_product() -> None:
    fun = conv(precision=("highest", "default"), preferred_element_type=jnp.float32)
    args = array((2, 16, 8, 32), "bfloat16"), array((1, 1, 32, 24), "bfloat16", seed=1)
    text = optimised(fun, *args, passes=PASSES).to_text()
    assert "precision=(HIGHEST,DEFAULT) preferred_element_type=float32" in text
    turned = conv(FIRST, precision=("highest", "default"))
    text = optimised(turned, array((2, 32, 16, 16)), array((24, 32, 1, 1)), passes=PASSES).to_text()
    assert "precision=(DEFAULT,HIGHEST)" in text


def test_a_kernel_as_large_as_the_input() -> None:
    args = array((4, 8, 16, 8)), array((8, 16, 8, 64), seed=1)
    assert rules_of(conv(padding="VALID"), *args) == {"whole-window-as-dot"}
    same(conv(padding="VALID"), *args, passes=PASSES)
    assert rules_of(conv(padding="SAME"), *args) == set()


LONG: Table = {
    "line": (conv(LINE, (1,)), (1, 4200, 1), (128, 1, 1)),
    "padding": (conv(LINE, (1,), [(99, 7)]), (2, 4100, 1), (100, 1, 1)),
    "short signal": (conv(LINE, (1,)), (9, 500, 1), (400, 1, 1)),
    "channels": (conv(("NCH", "OIH", "NCH"), (1,)), (4, 3, 4000), (2, 3, 256)),
    "groups": (conv(LINE, (1,), "VALID", feature_group_count=4), (2, 2000, 8), (128, 2, 4)),
    "plane": (conv(feature_group_count=2), (2, 40, 36, 2), (15, 17, 1, 2)),
}


def test_long_kernels_go_through_fourier_space() -> None:
    for name, (graph, report) in all_kept(programs_of(LONG), passes=PASSES).items():
        assert OURS & set(report.rules) == {"long-kernel-by-fourier"}, name
        found = [node.op for node in graph.walk() if node.op in ("cond", "fft")]
        assert found == ["cond", "fft", "fft", "fft"], name


def test_convolve_as_people_write_it() -> None:
    def fun(x: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.convolve(x, k, "same")

    args = array((4096,)), array((256,), seed=1)
    assert rules_of(fun, *args) == {"long-kernel-by-fourier"}
    same(fun, *args, passes=PASSES)


@pytest.mark.parametrize("name", LONG)
def test_the_error_through_fourier_space_has_its_bound(name: str) -> None:
    fun, x, w = LONG[name]
    signal, kernel = np.asarray(array(x)), np.asarray(array(w, seed=1))
    signal = signal * np.float32(10.0) ** np.random.default_rng(2).uniform(-3, 3, x).astype(np.float32)
    [result] = jax.jit(to_callable(optimised(fun, signal, kernel, passes=PASSES)))(signal, kernel)
    with jax.enable_x64(True):
        exact = fun(jnp.asarray(signal, jnp.float64), jnp.asarray(kernel, jnp.float64))
    length = 2 * max(signal.size, kernel.size)
    bound = 8 * np.finfo(np.float32).eps * np.log2(length) * np.linalg.norm(signal) * np.linalg.norm(kernel)
    assert float(np.max(np.abs(np.asarray(result, np.float64) - np.asarray(exact)))) <= bound


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e38])
def test_numbers_that_fourier_space_cannot_hold_take_the_direct_way(number: float) -> None:
    fun, x, w = LONG["line"]
    signal, kernel = array(x).at[0, 4000, 0].set(number), array(w, seed=1) / 1e4
    graph = same(fun, signal, kernel, passes=PASSES, grad=False, export=False)
    [result] = jax.jit(to_callable(graph))(signal, kernel)
    touched = ~np.isfinite(np.asarray(result)).reshape(-1)
    assert touched.sum() == (0 if np.isfinite(number) else 128)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_numbers_do_not_go_through_fourier_space(dtype: str) -> None:
    fun, x, w = LONG["padding"]
    assert rules_of(fun, array(x, dtype), array(w, dtype)) == set()


def test_lengths_of_transforms() -> None:
    assert [good_length(n) for n in (1, 2, 3, 7, 17, 33, 4097)] == [1, 2, 3, 8, 18, 36, 4608]
    assert plan((100,), (64,)) == ((192,), 1)
    assert plan((8192,), (64,)) == ((256,), 64)
    assert plan((40, 40), (15, 15)) == ((60, 60), 1)


SIDES = np.array([1.0, 4.0, 6.0, 4.0, 1.0], np.float32), np.array([-1.0, 0.0, 1.5], np.float32)
KERNEL = np.outer(*SIDES)


def blurred(channels: int, multiplier: int = 1, kernel: Any = KERNEL, **params: Any) -> Program:
    many = np.stack([kernel * (c + 1) for c in range(channels * multiplier)], -1)[:, :, None]

    def fun(x: jax.Array) -> jax.Array:
        return conv(feature_group_count=channels, **params)(x, jnp.asarray(many))

    return fun


@pytest.mark.parametrize(
    ("fun", "channels"),
    [
        (blurred(3), 3),
        (blurred(1), 1),
        (blurred(2, multiplier=2), 2),
        (blurred(2, strides=(2, 3), padding=[(1, 2), (0, 3)], rhs_dilation=(2, 1)), 2),
        (blurred(2, kernel=np.ones((5, 5), np.float32)), 2),
    ],
    ids=["three", "one", "multiplier", "strides", "box"],
)
def test_constant_outer_products_become_two_convolutions(fun: Program, channels: int) -> None:
    x = array((2, 12, 13, channels))
    assert rules_of(fun, x) == {"separable-kernel", "depthwise-as-shifts"}
    same(fun, x, passes=PASSES)


def test_kernels_that_are_no_outer_products_stay_whole() -> None:
    rough = KERNEL + np.eye(5, 3, dtype=np.float32) * 1e-3
    assert rules_of(blurred(2, kernel=rough), array((2, 12, 13, 2))) == {"depthwise-as-shifts"}
    args = array((2, 12, 13, 2)), jnp.asarray(np.repeat(KERNEL[:, :, None, None], 2, -1))
    assert rules_of(conv(feature_group_count=2), *args) == {"depthwise-as-shifts"}
    assert factors_of(rough[None]) is None
    assert factors_of(np.full((1, 3, 3), np.nan, np.float32)) is None
    found = factors_of(KERNEL[None])
    assert found is not None
    column, row = found.arrays()
    np.testing.assert_allclose(column[0][:, None] * row[0], KERNEL, rtol=1e-6, atol=1e-6)


def test_in_a_loop_and_under_the_default_pipeline() -> None:
    fun, x, w = DEPTHWISE["channels last"]

    def looped(x: jax.Array, w: jax.Array) -> jax.Array:
        result: jax.Array = lax.fori_loop(0, 3, lambda i, y: jnp.tanh(fun(y, w)), x)
        return result

    args = array(x), array(w, seed=1)
    assert rules_of(looped, *args, passes="default,convolution") == {"depthwise-as-shifts"}
    graph = same(looped, *args, passes="default,fixpoint(convolution,inline,fold,algebra,movement,cse,dce)")
    assert not convolutions(graph)


def test_check_sees_a_wrong_convolution() -> None:
    fun, x, w = DEPTHWISE["channels last"]
    with pytest.raises(AssertionError):
        check(fun(array(x), array(w)), fun(array(x), array(w) * 1.01))
