"""Integer convolutions: each gets the form that is fast on CPU, and every bit stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.binding import store
from tests.passes._lowering import Case, check_cases, int8, lowered

FIRST = ("NCHW", "OIHW", "NCHW")
LAST = ("NHWC", "HWIO", "NHWC")


def case(
    x: tuple[int, ...],
    kernel: tuple[int, ...],
    rules: Mapping[str, int],
    *,
    layout: tuple[str, str, str] = LAST,
    strides: tuple[int, ...] = (1, 1),
    padding: Any = "SAME",
    target: str = "cpu",
    dot_products: str = "yes",
    **params: Any,
) -> Case:
    """One convolution of int8 arrays."""

    def run(x: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=layout,
            preferred_element_type=jnp.int32,
            **params,
        )

    passes = f"integer-convolution{{dot_products={dot_products}}},products"
    return Case(run, (int8(*x), int8(*kernel)), rules, passes=passes, target=target)


FILLED = {"few-outputs-filled-up": 1}
STEM, PATCHES = {"stem-by-space-to-depth": 1}, {"few-channels-as-product": 1}
AS_PRODUCT = {"small-image-as-product": 1, "product-by-rows": 1}
MANY = {"many-channels-as-product": 1, "product-by-rows": 1}
FLOATS, UNUSUAL = {"few-channels-in-floats": 1}, {"unusual-in-floats": 1}
SHIFTS, MOVED = {"integer-depthwise-as-shifts": 1}, {"channels-last": 1}
DOT = {"integer-pointwise-as-dot": 1}
SMALL = (1, 12, 12, 32)

CASES = {
    "good as it is": case(SMALL, (3, 3, 32, 32), {}),
    "little work": case((1, 4, 4, 32), (3, 3, 32, 4), {}),
    "channels first": case((1, 32, 8, 9), (32, 32, 3, 3), MOVED, layout=FIRST),
    "mixed layouts": case((1, 8, 9, 32), (3, 3, 32, 32), MOVED, layout=("NHWC", "HWIO", "NCHW")),
    "one tap, channels first": case((2, 64, 8, 8), (64, 64, 1, 1), MOVED | DOT, layout=FIRST),
    "one tap, strides": case((1, 16, 16, 64), (1, 1, 64, 64), DOT, strides=(2, 2)),
    "stem": case((1, 24, 26, 3), (7, 7, 3, 16), STEM, strides=(2, 2)),
    "stem, odd and cut off": case(
        (1, 25, 31, 4), (7, 8, 4, 16), STEM, strides=(2, 2), padding=((1, -1), (5, 3))
    ),
    "stem with holes in its kernel": case(
        (1, 30, 30, 3), (5, 5, 3, 64), {}, strides=(2, 2), rhs_dilation=(2, 1)
    ),
    "few channels": case((1, 16, 16, 3), (3, 3, 3, 32), PATCHES),
    "16 channels, strides and holes": case(
        (1, 24, 24, 16),
        (3, 3, 16, 16),
        FILLED,
        strides=(2, 1),
        padding=((1, 2), (0, 3)),
        rhs_dilation=(2, 1),
    ),
    "16 channels, many outputs": case((1, 16, 16, 16), (3, 3, 16, 32), {}),
    "small stem": case((1, 48, 48, 3), (3, 3, 3, 16), STEM, strides=(2, 2)),
    "depthwise": case((1, 18, 18, 64), (3, 3, 1, 64), SHIFTS, feature_group_count=64),
    "depthwise, two for each, channels first": case(
        (1, 32, 18, 18), (64, 1, 3, 3), SHIFTS, layout=FIRST, feature_group_count=32
    ),
    "two groups": case((1, 8, 8, 64), (3, 3, 32, 64), {"few-groups-apart": 1}, feature_group_count=2),
    "many groups": case((1, 10, 10, 64), (3, 3, 8, 64), {"groups-in-floats": 1}, feature_group_count=8),
    "holes in the image": case(
        (1, 9, 9, 16), (3, 3, 16, 16), UNUSUAL, padding=((0, 0), (0, 0)), lhs_dilation=(2, 2)
    ),
    "holes and groups": case(
        (1, 9, 8, 16),
        (4, 3, 8, 32),
        UNUSUAL,
        strides=(1, 2),
        padding=((2, 1), (-1, 3)),
        lhs_dilation=(2, 3),
        feature_group_count=2,
    ),
    "volumes, in parts": case(
        (1, 6, 6, 5, 80),
        (3, 3, 3, 80, 8),
        UNUSUAL,
        layout=("NDHWC", "DHWIO", "NDHWC"),
        strides=(1, 2, 1),
    ),
    "rows": case((2, 80, 32), (5, 32, 32), {"rows-as-images": 1}, layout=("NWC", "WIO", "NWC"), strides=(2,)),
    "rows, channels first": case(
        (2, 32, 80),
        (32, 32, 5),
        {"rows-as-images": 1} | MOVED,
        layout=("NCW", "OIW", "NCW"),
        strides=(1,),
        padding=((3, 1),),
        rhs_dilation=(2,),
    ),
}

NO: Any = {"dot_products": "no"}

WITHOUT = {
    "stem": case((1, 24, 26, 3), (7, 7, 3, 16), FLOATS, strides=(2, 2), **NO),
    "few channels": case((1, 16, 16, 16), (3, 3, 16, 32), FLOATS, rhs_dilation=(2, 1), **NO),
    "few channels, large kernel": case((1, 16, 16, 16), (9, 9, 16, 16), {}, **NO),
    "32 channels": case(SMALL, (3, 3, 32, 32), {}, **NO),
    "many channels": case((1, 5, 6, 256), (3, 3, 256, 16), MANY, strides=(2, 1), **NO),
}


VNNI: Any = {"dot_products": "vnni"}

SMALL_IMAGES = {
    "small image": case((2, 7, 7, 128), (3, 3, 128, 16), AS_PRODUCT, **VNNI),
    "to a small image": case((1, 9, 10, 128), (3, 3, 128, 16), AS_PRODUCT, strides=(2, 2), **VNNI),
    "few channels": case((1, 7, 7, 64), (3, 3, 64, 64), {}, **VNNI),
    "large image": case((1, 17, 16, 128), (3, 3, 128, 32), {}, **VNNI),
    "large kernel": case((1, 7, 7, 128), (9, 9, 128, 4), {}, **VNNI),
    "three channels": case((1, 16, 16, 3), (3, 3, 3, 32), PATCHES, **VNNI),
    "one tap": case((1, 7, 7, 128), (1, 1, 128, 64), DOT, **VNNI),
}


def test_convolutions_of_small_images_as_products_give_the_same_bits() -> None:
    check_cases(SMALL_IMAGES)


def test_every_form_without_dot_products_gives_the_same_bits() -> None:
    check_cases(WITHOUT)


def test_every_form_gives_the_same_bits() -> None:
    graphs = check_cases(CASES)
    assert [node.op for node in graphs["channels first"]] == [
        *("transpose", "jit", "transpose", "jit"),
        *("conv_general_dilated", "optimization_barrier", "transpose"),
    ]


def test_extreme_sums_are_exact() -> None:
    shifts = case((1, 20, 20, 64), (8, 8, 1, 64), SHIFTS, feature_group_count=64)
    floats = case((1, 12, 12, 16), (8, 8, 16, 16), FLOATS, **NO)
    parts = case((1, 9, 9, 130), (3, 3, 130, 2), UNUSUAL, padding=((3, 3), (3, 3)), lhs_dilation=(1, 2))
    for worst, most in ((shifts, 64), (floats, 1024), (parts, 6 * 130)):
        x, kernel = jnp.full_like(worst.args[0], -128), jnp.full_like(worst.args[1], -128)
        assert lowered(worst)[1] == worst.rules
        flat = jax.jit(lambda *a, f=worst: (f.fun(*a), lepton.optimize(f.fun, f.passes)(*a)))
        before, after = flat(x, kernel)
        np.testing.assert_array_equal(before, after)
        assert int(before.max()) == most * 128 * 128


def test_kernels_of_products_are_kept_by_rows() -> None:

    def run(kernel: Any, x: Any) -> Any:
        return lax.conv_general_dilated(
            x, store(kernel), (1, 1), "SAME", dimension_numbers=LAST, preferred_element_type=jnp.int32
        )

    f: Any = lepton.optimize(run, "integer-convolution{dot_products=no}", params=0)
    kernel, x = int8(3, 3, 256, 16), int8(1, 4, 4, 256)
    prepared = f.prepare(kernel, x)
    assert [array.shape for array in prepared.arrays] == [(16, 9 * 256)]
    np.testing.assert_array_equal(f.apply(prepared, x), run(kernel, x))


def test_maxima_of_integers_are_maxima_of_parts() -> None:
    def maxima(x: Any, window: tuple[int, ...], strides: tuple[int, ...], padding: Any, apart: Any) -> Any:
        least = np.iinfo(x.dtype).min
        return lax.reduce_window(
            x, np.asarray(least, x.dtype), lax.max, window, strides, padding, window_dilation=apart
        )

    none = ((0, 0),) * 4
    programs: dict[str, tuple[Any, int]] = {
        "3×3": (lambda x: maxima(x, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 0), (0, 0)), None), 1),
        "along channels": (lambda x: maxima(x, (1, 1, 2, 3), (1, 1, 2, 1), none, None), 1),
        "apart": (lambda x: maxima(x, (1, 3, 1, 1), (1, 1, 1, 1), none, (1, 2, 1, 1)), 1),
        "large": (lambda x: maxima(x, (1, 10, 10, 1), (1, 1, 1, 1), none, None), 0),
        "all padding": (
            lambda x: maxima(x, (1, 2, 1, 1), (1, 1, 1, 1), ((0, 0), (2, 0), *none[2:]), None),
            0,
        ),
    }
    x, fast = int8(2, 12, 11, 4), {}
    for name, (fun, count) in programs.items():
        graph, rules = lowered(Case(fun, (x,), {}, params=(), passes="integer-convolution"))
        assert rules == ({"maximum-of-shifts": count} if count else {}), name
        fast[name] = lepton.ir.to_callable(graph)
    found = jax.jit(lambda x: {name: (programs[name][0](x), *f(x)) for name, f in fast.items()})(x)
    for name, (before, after) in found.items():
        np.testing.assert_array_equal(before, after, err_msg=name)


def test_other_targets_and_dtypes_are_left_alone() -> None:
    assert lowered(case((1, 32, 8, 8), (32, 32, 3, 3), {}, layout=FIRST, target="gpu"))[1] == {}
    plain = case((1, 32, 8, 8), (32, 32, 3, 3), {}, layout=FIRST)
    wide = tuple(a.astype(jnp.int32) for a in plain.args)
    assert lowered(Case(plain.fun, wide, {}, passes="integer-convolution"))[1] == {}


def test_any_number_of_images_is_no_failure() -> None:
    (images,) = jax.export.symbolic_shape("images")
    kernel, x = int8(3, 3, 3, 8), int8(2, 12, 12, 3)
    for layout, shape in ((LAST, (images, 12, 12, 3)), (FIRST, (images, 3, 12, 12))):
        one = case((1, 12, 12, 3), (3, 3, 3, 8), {}, layout=(layout[0], "HWIO", layout[2]))
        fun = lepton.optimize(one.fun, one.passes, strict=True)
        exported = jax.export.export(jax.jit(fun))(jax.ShapeDtypeStruct(shape, jnp.int8), kernel)
        given = x if layout is LAST else jnp.moveaxis(x, 3, 1)
        np.testing.assert_array_equal(exported.call(given, kernel), one.fun(given, kernel))


def test_channels_first_stay_on_the_fast_path() -> None:
    """XLA would take the transposes into the convolution and widen its kernel."""

    def net(kernel: Any, x: Any) -> Any:
        for _ in range(2):
            images = lax.round(x).astype(jnp.int8)
            y = lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=FIRST, preferred_element_type=jnp.int32
            )
            x = jnp.maximum(y.astype(jnp.float32) * 0.001, 0)
        return x

    f: Any = lepton.optimize(net, "inline,integer-convolution", params=0)
    args = int8(32, 32, 3, 3), int8(1, 32, 14, 14).astype(jnp.float32)
    prepared = f.prepare(*args)
    compiled = f.jit_of(prepared).lower(prepared, args[1]).compile()
    assert "s32[3,3,32,32]" not in compiled.as_text() and "s32[32,32,3,3]" not in compiled.as_text()
    np.testing.assert_allclose(compiled(prepared, args[1]), net(*args), 1e-6)
