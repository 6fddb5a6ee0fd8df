"""Convolutions of int8 numbers in the form that is fast on CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import TAME, Draw, Maker, Makers, P, Program
from tests.properties.makers.requantize import both, codes, program, scale

PASS: Final = "integer-convolution{dot_products=yes}"

_ROWS: Final = ("NHWC", "HWIO", "NHWC")
_PLANES: Final = ("NCHW", "OIHW", "NCHW")
_LAYOUTS: Final = (_PLANES, ("NHWC", "HWIO", "NCHW"), ("NCHW", "HWIO", "NHWC"), ("NHWC", "OIHW", "NHWC"))

Shape = tuple[int, ...]


def _program(
    x: Shape, kernel: Shape, *, layout: tuple[str, str, str] = _ROWS, dtype: str = "int8", **params: Any
) -> Program:
    """A convolution of an image NHWC with a kernel HWIO, both laid out as the layout says."""
    into: Any = [x["NHWC".index(c)] for c in layout[0]], [kernel["HWIO".index(c)] for c in layout[1]]
    how: Any = {"window_strides": (1, 1), "padding": "SAME", **params}

    def fun(x: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            x, kernel, dimension_numbers=layout, preferred_element_type=jnp.int32, **how
        )

    return P(
        fun,
        *(jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype)) for shape in into),
        flavours=(*TAME, "extreme"),
    )


def _padding(d: Draw) -> Any:
    return d.pick("SAME", "VALID", ((1, 2), (0, 3)), ((2, -1), (1, 1)))


def _other_layout(d: Draw) -> Program:
    return _program(
        (d.size(1, 3), 9, 10, 32),
        (d.size(2, 3), 3, 32, 32),
        layout=d.pick(*_LAYOUTS),
        padding=_padding(d),
        window_strides=(1, d.pick(1, 2)),
        rhs_dilation=(d.pick(1, 2), 1),
    )


def _few_channels(d: Draw) -> Program:
    channels = d.pick(1, 3, 4)
    kernel = (3, d.size(2, 3), channels, 64)
    return _program((2, 18, 20, channels), kernel, padding=_padding(d), rhs_dilation=(1, d.pick(1, 2)))


def _few_outputs(d: Draw) -> Program:
    channels, outputs = d.pick(5, 16, 31), d.pick(8, 16, 23)
    return _program(
        (4, 18, 20, channels),
        (3, 3, channels, outputs),
        padding=_padding(d),
        window_strides=(d.pick(1, 2), 1),
        rhs_dilation=(1, d.pick(1, 2)),
    )


def _few_groups(d: Draw) -> Program:
    groups = d.whole(2, 4)
    return _program(
        (d.size(1, 3), 8, 9, 32 * groups),
        (3, d.size(2, 3), 32, 16 * groups),
        padding=_padding(d),
        feature_group_count=groups,
    )


def _many_groups(d: Draw) -> Program:
    groups = d.pick(4, 8)
    return _program(
        (d.size(1, 3), 16, 15, 8 * groups),
        (3, d.size(2, 3), 8, 16 * groups),
        padding=_padding(d),
        layout=d.pick(_ROWS, _PLANES),
        feature_group_count=groups,
    )


def _depthwise(d: Draw) -> Program:
    channels, times = d.pick(32, 48), d.pick(1, 2)
    return _program(
        (1, 20, 24, channels),
        (3, 3, 1, channels * times),
        padding=_padding(d),
        layout=d.pick(_ROWS, _PLANES),
        window_strides=(1, d.pick(1, 2)),
        feature_group_count=channels,
    )


def _one_tap(d: Draw) -> Program:
    stride = d.pick(1, 2)
    return _program(
        (2, 12, 13, 64), (1, 1, 64, 48), padding=d.pick("VALID", "SAME"), window_strides=(stride, stride)
    )


def _stem(d: Draw) -> Program:
    channels = d.whole(1, 4)
    return _program(
        (1, d.whole(28, 31), d.whole(28, 31), channels),
        (d.whole(3, 8), d.whole(3, 8), channels, 64),
        padding=_padding(d),
        window_strides=(2, 2),
    )


_PLAIN: Final = "integer-convolution{dot_products=no}"
_VNNI: Final = "integer-convolution{dot_products=vnni}"


def _few_in_floats(d: Draw) -> Program:
    channels, strides = d.pick(3, 8, 16), (d.pick(1, 2), 1)
    made = _program((2, 19, 20, channels), (3, d.size(2, 3), channels, 48), window_strides=strides)
    return replace(made, passes=_PLAIN)


def _many(d: Draw) -> Program:
    made = _program((1, 6, d.whole(5, 7), 256), (3, d.size(2, 3), 256, 8), padding=_padding(d))
    return replace(made, passes=_PLAIN)


def _small(d: Draw) -> Program:
    made = _program((1, 6, d.whole(5, 7), 128), (3, d.size(2, 3), 128, 16), padding=_padding(d))
    return replace(made, passes=_VNNI)


def _holes(d: Draw) -> Program:
    channels = d.pick(16, 140)
    return _program(
        (1, 9, 8, channels),
        (3, 4, channels, 16),
        padding=d.pick(((1, 2), (0, 3)), ((2, -1), (1, 1)), ((0, 0), (2, 2))),
        window_strides=(d.pick(1, 2), 1),
        lhs_dilation=(2, d.pick(1, 3)),
        layout=d.pick(_ROWS, _PLANES),
    )


def _rows(d: Draw) -> Program:
    layout, stride = d.pick(("NWC", "WIO", "NWC"), ("NCW", "OIW", "NCW"), ("NWC", "OIW", "NCW")), d.pick(1, 2)
    sizes = dict(zip("NWCIO", (2, 60, 32, 32, 48), strict=True))
    into = [[sizes[c] for c in layout[0]], [5 if c == "W" else sizes[c] for c in layout[1]]]

    def fun(x: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            x, kernel, (stride,), "SAME", dimension_numbers=layout, preferred_element_type=jnp.int32
        )

    shapes = (jax.ShapeDtypeStruct(tuple(shape), jnp.int8) for shape in into)
    return P(fun, *shapes, flavours=(*TAME, "extreme"))


def _maxima(x: Any, taps: int, stride: int, low: int, apart: int = 1) -> Any:
    pads = ((0, 0), (low, 0), (0, low), (0, 0))
    window, strides, spread = (1, taps, taps, 1), (1, stride, stride, 1), (1, apart, apart, 1)
    least = np.asarray(np.iinfo(x.dtype).min, x.dtype)
    return lax.reduce_window(x, least, lax.max, window, strides, pads, window_dilation=spread)


def _pool(d: Draw) -> Program:
    taps, stride = d.whole(2, 3), d.whole(1, 2)
    low, apart = d.pick((0, 1), (0, 2), (taps - 1, 1))
    return P(lambda x: _maxima(x, taps, stride, low, apart), d.ints((2, 9, 8, 3)))


def _codes_twice(d: Draw) -> Program:
    def fun(x: Any, m: Any) -> Any:
        found = codes(x, m)
        return found, found.astype(jnp.float32) * scale(m)

    return program(fun)


MAKERS: Final[Makers] = {
    "few-channels-in-floats": (_few_in_floats, _few_in_floats),
    "many-channels-as-product": (_many,),
    "small-image-as-product": (_small,),
    "unusual-in-floats": (_holes, _holes),
    "rows-as-images": (_rows, _rows),
    "maximum-of-shifts": (_pool, _pool),
    "codes-once": (_codes_twice,),
    "channels-last": (_other_layout, _other_layout),
    "few-channels-as-product": (_few_channels, _few_channels),
    "few-outputs-filled-up": (_few_outputs, _few_outputs),
    "few-groups-apart": (_few_groups,),
    "groups-in-floats": (_many_groups,),
    "integer-depthwise-as-shifts": (_depthwise,),
    "integer-pointwise-as-dot": (_one_tap,),
    "stem-by-space-to-depth": (_stem, _stem),
}


def _stays(x: Shape, kernel: Shape, **params: Any) -> Maker:
    return lambda d: _program(x, kernel, **params)


_SMALL: Final[tuple[Shape, Shape]] = (1, 12, 12, 32), (3, 3, 32, 32)

ALIKE: Final[Makers] = {
    "few-channels-in-floats": (
        lambda d: replace(_program((1, 16, 16, 17), (3, 3, 17, 32)), passes=_PLAIN),
        lambda d: replace(_program((1, 16, 16, 16), (9, 9, 16, 16)), passes=_PLAIN),
        _few_channels,
    ),
    "many-channels-as-product": (
        lambda d: replace(_program((1, 6, 6, 128), (3, 3, 128, 16)), passes=_PLAIN),
        _stays((1, 6, 6, 256), (3, 3, 256, 16)),
    ),
    "small-image-as-product": (
        lambda d: replace(_program((1, 17, 17, 128), (3, 3, 128, 16)), passes=_VNNI),
        _stays((1, 6, 6, 128), (3, 3, 128, 32)),
    ),
    "unusual-in-floats": (
        _stays(*_SMALL),
        _stays((1, 9, 9, 16), (3, 3, 16, 16), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2), dtype="int16"),
    ),
    "rows-as-images": (_stays(*_SMALL),),
    "maximum-of-shifts": (
        lambda d: P(lambda x: _maxima(x, 10, 1, 0), d.ints((1, 12, 12, 2))),
        lambda d: P(lambda x: _maxima(x, 2, 1, 2), d.ints((1, 12, 12, 2))),
        lambda d: P(lambda x: lax.reduce_max(x, (1,)), d.ints((1, 12, 12, 2))),
    ),
    "codes-once": (lambda d: program(codes), lambda d: program(lambda x, m: both(x, m)[1].astype(jnp.int8))),
    "channels-last": (
        _stays(*_SMALL),
        _stays(*_SMALL, layout=_PLANES, dtype="int16"),
        _stays((1, 4, 4, 32), (3, 3, 32, 4), layout=_PLANES),
    ),
    "few-channels-as-product": (
        _stays((1, 12, 12, 17), (3, 3, 17, 64)),
        _stays((1, 24, 24, 16), (4, 4, 16, 32)),
        _stays((1, 32, 32, 3), (3, 3, 3, 32), window_strides=(2, 1)),
    ),
    "few-outputs-filled-up": (
        _stays((1, 24, 24, 16), (3, 3, 16, 24)),
        _stays((1, 24, 24, 32), (3, 3, 32, 8)),
    ),
    "few-groups-apart": (
        _stays((1, 10, 10, 64), (3, 3, 8, 64), feature_group_count=8),
        _stays((1, 16, 16, 32), (3, 3, 16, 32), feature_group_count=2),
    ),
    "groups-in-floats": (
        _few_groups,
        _stays(*_SMALL),
        _stays((1, 8, 8, 640), (3, 3, 128, 40), feature_group_count=5),
    ),
    "integer-depthwise-as-shifts": (
        _stays((1, 18, 18, 64), (3, 3, 2, 64), feature_group_count=32),
        _stays((1, 18, 18, 1), (3, 3, 1, 64)),
    ),
    "integer-pointwise-as-dot": (
        _stays((2, 12, 12, 64), (2, 1, 64, 48)),
        _stays((2, 12, 12, 64), (1, 1, 64, 48), padding=((1, 0), (0, 0))),
    ),
    "stem-by-space-to-depth": (
        _stays((1, 32, 32, 3), (7, 2, 3, 32), window_strides=(2, 2)),
        _stays((1, 32, 32, 5), (7, 7, 5, 32), window_strides=(2, 2)),
        _stays((1, 32, 32, 3), (7, 7, 3, 32), window_strides=(2, 1)),
    ),
}
