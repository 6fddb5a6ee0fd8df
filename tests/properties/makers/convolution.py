"""Convolutions."""

from __future__ import annotations

from typing import Any, Final

import jax
import numpy as np
from jax import lax

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program

PASS: Final = "convolution"

_NEAR: Final = "sums in another order, which may overflow on the way"
_DROPS: Final = "zeros and infinities that cancel on the way are others"

_DIAGONAL: Final[Any] = np.eye(3, dtype="float32")[None, None]
"""A kernel that is no product of a column and a row."""

_PLANES: Final = ("NHWC", "HWIO", "NHWC")


def _program(fun: Any, *args: Any) -> Program:
    return P(fun, *args, overflows=_NEAR, drops=_DROPS)


def _depthwise(d: Draw) -> Program:
    channels, width, times = d.size(2, 5), d.size(1, 3), d.pick(1, 2)
    x, w = d.floats((d.size(1, 3), channels, d.size(5, 8))), (channels * times, 1, width)
    stride, padding = d.pick(1, 2), d.pick("SAME", "VALID", ((2, 0),))
    return _program(
        lambda x, w: lax.conv_general_dilated(x, w, (stride,), padding, feature_group_count=channels),
        x,
        d.like(w, x.dtype),
    )


def _depthwise_gradient(d: Draw) -> Program:
    channels, width = d.size(2, 5), d.size(2, 3)
    x, w = (
        d.floats((d.size(2, 3), channels, d.size(5, 8)), "float32"),
        d.like((channels, 1, width), "float32"),
    )

    def gradient(x: Any, w: Any) -> Any:
        _, back = jax.vjp(
            lambda w: lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=channels), w
        )
        return back(x)

    return _program(gradient, x, w)


def _pointwise(d: Draw) -> Program:
    x, w, stride = d.wide((2, 24, 24, 16)), d.wide((1, 1, 16, 32)), d.pick(1, 2)
    return _program(
        lambda x, w: lax.conv_general_dilated(x, w, (stride, stride), "VALID", dimension_numbers=_PLANES),
        x,
        w,
    )


def _whole(d: Draw) -> Program:
    x, w = d.wide((8, 16, 8, 8)), d.wide((16, 16, 8, 8))
    return _program(lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID"), x, w)


def _separable(d: Draw) -> Program:
    column, row = d.rng.uniform(0.5, 1, (2, 3))
    kernel: Any = np.tile(np.outer(column, row).astype("float32"), (2, 1, 1, 1))
    padding = d.pick("SAME", "VALID")
    return _program(
        lambda x: lax.conv_general_dilated(x, kernel, (1, 1), padding, feature_group_count=2),
        d.like((2, 2, 8, 8), "float32"),
    )


def _long(d: Draw) -> Program:
    x, w = d.like((1, 1, 8192), "float32"), d.like((1, 1, 1024), "float32")
    return P(lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME"), x, w, flavours=("random", "special"))


def _cascade(d: Draw) -> Program:
    x, k = d.wide((d.size(1, 3), 1, 64)), d.wide((1, 1, 3))
    return _program(
        lambda x, k, m: lax.conv_general_dilated(
            lax.conv_general_dilated(x, k, (1,), "VALID"), m, (1,), "VALID"
        ),
        x,
        k,
        k,
    )


def _two(d: Draw) -> Program:
    x, k = d.wide((2, 3, 8)), d.wide((2, 3, 3))
    sign, side = d.pick(1.0, -1.0), d.pick(True, False)

    def fun(a: Any, b: Any, c: Any) -> Any:
        if side:
            one, two = (
                lax.conv_general_dilated(a, b, (1,), "SAME"),
                lax.conv_general_dilated(a, c, (1,), "SAME"),
            )
        else:
            one, two = (
                lax.conv_general_dilated(b, a, (1,), "SAME"),
                lax.conv_general_dilated(c, a, (1,), "SAME"),
            )
        return one + two if sign > 0 else one - two

    return _program(fun, *((x, k, k) if side else (k, x, x)))


MAKERS: Final[Makers] = {
    "depthwise-as-shifts": (_depthwise, _depthwise),
    "depthwise-gradient-as-sums": (_depthwise_gradient,),
    "pointwise-as-dot": (_pointwise,),
    "whole-window-as-dot": (_whole,),
    "separable-kernel": (_separable,),
    "long-kernel-by-fourier": (_long,),
    "cascaded-filters": (_cascade,),
    "sum-of-filters": (_two,),
}


def _stays(fun: Any, *shapes: tuple[int, ...]) -> Any:
    return lambda d: P(fun, *(d.like(s, "float32") for s in shapes), prepare=SIMPLIFIED)


def _filter(x: Any, w: Any) -> Any:
    return lax.conv_general_dilated(x, w, (1,) * (x.ndim - 2), "SAME")


ALIKE: Final[Makers] = {
    "depthwise-as-shifts": (_stays(_filter, (2, 3, 8), (3, 3, 3)),),
    "depthwise-gradient-as-sums": (
        _stays(lambda x, w: jax.vjp(lambda w: _filter(x, w), w)[1](x), (2, 3, 8), (3, 3, 3)),
    ),
    "pointwise-as-dot": (
        _stays(_filter, (2, 16, 16, 16), (32, 16, 2, 1)),
        _stays(_filter, (1, 2, 4, 4), (2, 2, 1, 1)),
    ),
    "whole-window-as-dot": (
        _stays(lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID"), (8, 16, 9, 8), (16, 16, 8, 8)),
    ),
    "separable-kernel": (
        _stays(
            lambda x: lax.conv_general_dilated(x, _DIAGONAL, (1, 1), "SAME"),
            (2, 1, 8, 8),
        ),
    ),
    "long-kernel-by-fourier": (_stays(_filter, (1, 1, 256), (1, 1, 64)),),
    "cascaded-filters": (_stays(lambda x, k: _filter(_filter(x, k), k), (1, 1, 64), (1, 1, 3)),),
    "sum-of-filters": (
        _stays(lambda x, k, y: _filter(x, k) + _filter(y, k[::-1]), (2, 3, 8), (3, 3, 3), (2, 3, 8)),
    ),
}
