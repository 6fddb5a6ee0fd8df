"""Slices and pads."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import Draw, Makers, on

PASS: Final = "movement"


def _arg(least: int = 0, most: int = 3, size: int = 0) -> Any:
    return lambda d: d.anything(d.shape(least, most, size))


def _cut(d: Draw, x: Any, strides: bool = True, least: int = 0) -> Any:
    """Some slice."""
    start, limit, step = [], [], []
    for n in x.shape:
        first = d.whole(0, max(n - least, 0))
        start.append(first)
        limit.append(d.whole(min(first + least, n), n))
        step.append(d.pick(1, 1, 2, 3) if strides else 1)
    return lax.slice(x, start, limit, step)


def _proper_cut(d: Draw, x: Any, strides: bool = True) -> Any:
    """A slice that is not all of an array."""
    axis = d.axis(x.shape)
    part = lax.slice_in_dim(x, 1, x.shape[axis], axis=axis)
    return part if strides is False else lax.slice_in_dim(part, 0, part.shape[axis], d.pick(1, 2), axis)


def _padding(d: Draw, rank: int, low: int, high: int, within: int = 0) -> list[tuple[int, int, int]]:
    return [(d.whole(low, high), d.whole(low, high), d.whole(0, within)) for _ in range(rank)]


def _pad(d: Draw, x: Any, config: Any, number: Any = 0) -> Any:
    return lax.pad(x, np.asarray(number).astype(x.dtype), config)


def _padded_twice(d: Draw, x: Any) -> Any:
    number = d.pick(0, 1)
    return _pad(d, _pad(d, x, _padding(d, x.ndim, 0, 2), number), _padding(d, x.ndim, 0, 2), number)


def _unpadded(d: Draw, x: Any) -> Any:
    return _pad(d, x, [(0, 0, d.whole(0, 2) if n <= 1 else 0) for n in x.shape])


def _cutting(d: Draw, x: Any) -> Any:
    config = [(-d.whole(0, n // 2), -d.whole(0, n // 2), 0) for n in x.shape]
    return _pad(d, x, [(-1, 0, 0), *config[1:]])


def _stacked(d: Draw, x: Any, y: Any) -> Any:
    axis = d.whole(0, x.ndim)
    return lax.slice_in_dim(jnp.stack([x, y], axis), 1, 2, axis=axis)


MAKERS: Final[Makers] = {
    "slice-of-everything": (
        on(
            _arg(1, 3),
            lambda d, x: lax.slice_p.bind(
                x, start_indices=(0,) * x.ndim, limit_indices=x.shape, strides=None
            ),
        ),
    ),
    "slice-of-slice": (
        on(_arg(1, 3, 1), lambda d, x: _cut(d, _proper_cut(d, x))),
        on(
            _arg(1, 3, 2),
            lambda d, x: (
                _proper_cut(d, jnp.split(x, [1], d.axis(x.shape) * 0)[1])
                if x.shape[0] > 2
                else _cut(d, _cut(d, _proper_cut(d, x)))
            ),
        ),
    ),
    "slice-of-broadcast": (
        on(
            _arg(1, 2, 1),
            lambda d, x: _cut(d, lax.broadcast_in_dim(x, (4, *x.shape), tuple(range(1, x.ndim + 1)))),
        ),
    ),
    "slice-of-pad": (
        on(
            _arg(1, 2),
            lambda d, x: (lambda y: lax.slice_in_dim(y, d.whole(0, 1), y.shape[0] - 1))(
                _pad(d, x, _padding(d, x.ndim, 1, 2), 1)
            ),
        ),
        on(_arg(1, 2), lambda d, x: lax.slice_in_dim(_pad(d, x, [(3, 0, 0)] * x.ndim), 0, d.whole(1, 2))),
    ),
    "slice-of-stack": (on(_arg(0, 2), _stacked, 2),),
    "pad-with-nothing": (on(_arg(1, 3), _unpadded),),
    "pad-that-cuts": (on(_arg(1, 3, 2), _cutting),),
    "pad-of-empty": (
        on(lambda d: d.anything((d.size(), 0, d.size())), lambda d, x: _pad(d, x, [(1, 2, 0)] * 3, 1)),
    ),
    "pad-of-pad": (on(_arg(1, 3), _padded_twice),),
}

ALIKE: Final[Makers] = {
    "slice-of-everything": (on(lambda d: d.anything((3,)), lambda d, x: lax.slice(x, (0,), (2,))),),
    "slice-of-slice": (
        on(lambda d: d.floats((5,)), lambda d, x: lax.slice(-lax.slice(x, (1,), (5,)), (1,), (3,))),
    ),
    "slice-of-broadcast": (
        on(
            lambda d: d.anything((3,)),
            lambda d, x: (lambda y: (lax.slice(y, (0, 1), (2, 3)), y))(lax.broadcast_in_dim(x, (2, 3), (1,))),
        ),
    ),
    "slice-of-pad": (
        on(lambda d: d.anything((3,)), lambda d, x: lax.slice(_pad(d, x, [(1, 1, 1)]), (1,), (4,))),
        on(lambda d: d.anything((3,)), lambda d, x: lax.slice(_pad(d, x, [(1, 1, 0)]), (1,), (4,), (2,))),
    ),
    "slice-of-stack": (
        on(lambda d: d.anything((3,)), lambda d, x, y: lax.slice(jnp.stack([x, y, x]), (0, 0), (2, 3)), 2),
    ),
    "pad-with-nothing": (on(lambda d: d.anything((3,)), lambda d, x: _pad(d, x, [(0, 0, 1)])),),
    "pad-that-cuts": (on(lambda d: d.anything((3,)), lambda d, x: _pad(d, x, [(-1, 1, 0)])),),
    "pad-of-empty": (on(lambda d: d.anything((3,)), lambda d, x: _pad(d, x, [(-3, 1, 0)])),),
    "pad-of-pad": (
        on(lambda d: d.anything((3,)), lambda d, x: _pad(d, _pad(d, x, [(1, 1, 0)], 0), [(1, 1, 0)], 1)),
        on(lambda d: d.anything((3,)), lambda d, x: _pad(d, _pad(d, x, [(1, 1, 0)]), [(-1, 1, 0)])),
        on(lambda d: d.anything((3,)), lambda d, x: _pad(d, _pad(d, x, [(1, 1, 1)]), [(1, 1, 1)])),
    ),
}
