"""Concatenations and dynamic slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import Array, Draw, Makers, P, Program, on

PASS: Final = "movement"


def _arg(least: int = 1, most: int = 3, size: int = 0) -> Any:
    return lambda d: d.anything(d.shape(least, most, size))


def _pieces(count: int, fun: Callable[..., Any]) -> Any:
    """A maker: arrays that differ in length along one axis, and this axis."""

    def make(d: Draw) -> Program:
        shape = list(d.shape(1, 3, 1))
        axis = d.axis(tuple(shape))
        first = d.anything(tuple(shape))
        args = [d.like((*shape[:axis], d.size(1), *shape[axis + 1 :]), first.dtype) for _ in range(count)]
        return P(lambda *arrays: fun(d, axis, *arrays), *args)

    return make


def _halves(d: Draw, x: Any) -> Any:
    axis = d.axis(x.shape)
    at = d.whole(1, x.shape[axis] - 1)
    if d.pick(True, False):
        return lax.concatenate(lax.split(x, (at, x.shape[axis] - at), axis), axis)
    return lax.concatenate(
        [lax.slice_in_dim(x, 0, at, axis=axis), lax.slice_in_dim(x, at, x.shape[axis], axis=axis)], axis
    )


def _part_of_join(d: Draw, axis: int, *arrays: Any) -> Any:
    """A part of one piece, or of two that are not cut."""
    joined = lax.concatenate(arrays, axis)
    start = arrays[0].shape[axis]
    if d.pick(True, False):
        return lax.slice_in_dim(joined, start, start + d.whole(1, arrays[1].shape[axis]), axis=axis)
    return lax.slice_in_dim(joined, start, joined.shape[axis], axis=axis)


def _taken_apart(d: Draw, axis: int, *arrays: Any) -> Any:
    return lax.split(lax.concatenate(arrays, axis), [a.shape[axis] for a in arrays], axis)


def _with_empty(d: Draw, axis: int, x: Any, y: Any) -> Any:
    empty = lax.slice_in_dim(x, 0, 0, axis=axis)
    return lax.concatenate([x, empty, y] if d.pick(True, False) else [empty, y], axis)


def _at(d: Draw, x: Any, inside: bool = False) -> tuple[list[Any], list[int]]:
    """Constant starts, also out of bounds, and sizes of a window."""
    sizes = [d.whole(0, n) for n in x.shape]
    sizes[0] = max(x.shape[0] - 1, 0)
    starts = [np.int32(d.whole(0, n) if inside else d.whole(-3, n + 3)) for n in x.shape]
    return starts, sizes


def _moving(d: Draw, fun: Callable[..., Any], least: int = 1) -> Program:
    """A program of an array and a number between -2 and 9."""
    x = d.anything(d.shape(1, 2, least))
    start: Array = np.asarray(d.whole(-2, 9), np.int32)
    return P(
        lambda x, i: fun(d, x, [i] + [np.int32(0)] * (x.ndim - 1)),
        x,
        jnp.asarray(start),
        prepare="inline,cse,dce",
    )


def _window(x: Any) -> list[int]:
    return [max(x.shape[0] - 1, 0), *x.shape[1:]]


def _part(x: Any) -> Any:
    return lax.slice(x, [0] * x.ndim, _window(x))


def _updated_twice(d: Draw, x: Any, at: Any) -> Any:
    first = lax.dynamic_update_slice(x, _part(x), at)
    return lax.dynamic_update_slice(first, lax.rev(_part(x), (0,)), at)


MAKERS: Final[Makers] = {
    "concatenate-of-empty": (
        _pieces(1, lambda d, axis, x: lax.concatenate_p.bind(x, dimension=axis)),
        _pieces(2, _with_empty),
    ),
    "concatenate-of-concatenate": (
        _pieces(3, lambda d, axis, x, y, z: lax.concatenate([lax.concatenate([x, y], axis), z], axis)),
    ),
    "concatenate-of-adjacent": (on(_arg(1, 3, 2), _halves),),
    "slice-of-concatenate": (_pieces(3, _part_of_join), _pieces(2, _part_of_join)),
    "split-of-concatenate": (_pieces(2, _taken_apart),),
    "split-in-one": (on(_arg(), lambda d, x: (lambda a: lax.split(x, (x.shape[a],), a))(d.axis(x.shape))),),
    "tile-once": (on(_arg(), lambda d, x: jnp.tile(x, (1,) * x.ndim)),),
    "unstack-of-stack": (
        on(_arg(), lambda d, x, y: (lambda a: jnp.unstack(jnp.stack([x, y], a), axis=a))(d.axis(x.shape)), 2),
    ),
    "stack-of-unstack": (
        on(_arg(1, 3, 1), lambda d, x: (lambda a: jnp.stack(jnp.unstack(x, axis=a), a))(d.axis(x.shape))),
    ),
    "dynamic-slice-of-everything": (
        lambda d: _moving(d, lambda d, x, at: lax.dynamic_slice(x, at, x.shape)),
    ),
    "dynamic-slice-at-constant": (on(_arg(), lambda d, x: lax.dynamic_slice(x, *_at(d, x))),),
    "update-of-everything": (
        lambda d: _moving(d, lambda d, x, at: lax.dynamic_update_slice(x, lax.rev(x, (0,)), at)),
        lambda d: _moving(d, lambda d, x, at: lax.dynamic_update_slice(x, x[:0], at)),
    ),
    "slice-of-update": (
        lambda d: _moving(
            d,
            lambda d, x, at: lax.dynamic_slice(
                lax.dynamic_update_slice(x, lax.rev(_part(x), (0,)), at), at, _window(x)
            ),
            2,
        ),
    ),
    "update-of-update": (lambda d: _moving(d, _updated_twice, 2),),
}

ALIKE: Final[Makers] = {
    "concatenate-of-empty": (_pieces(2, lambda d, axis, x, y: lax.concatenate([x, y], axis)),),
    "concatenate-of-concatenate": (
        on(
            lambda d: d.anything((2, 2)),
            lambda d, x, y: lax.concatenate([lax.concatenate([x, y], 0), lax.concatenate([y, x], 0)], 1),
            2,
        ),
    ),
    "concatenate-of-adjacent": (
        on(lambda d: d.anything((4,)), lambda d, x: lax.concatenate([x[2:], x[:2]], 0)),
        on(lambda d: d.anything((4,)), lambda d, x: lax.concatenate([x[:2], x[3:]], 0)),
    ),
    "slice-of-concatenate": (
        on(
            lambda d: d.anything((3,)),
            lambda d, x, y: (lambda z: (z[1:5], z))(lax.concatenate([x, y], 0)),
            2,
        ),
    ),
    "split-of-concatenate": (
        on(lambda d: d.anything((3,)), lambda d, x, y: lax.split(lax.concatenate([x, y], 0), (2, 4)), 2),
    ),
    "split-in-one": (on(lambda d: d.anything((3,)), lambda d, x: lax.split(x, (1, 2))),),
    "tile-once": (on(lambda d: d.anything((3,)), lambda d, x: jnp.tile(x, (2,))),),
    "unstack-of-stack": (
        on(lambda d: d.anything((2, 2)), lambda d, x, y: jnp.unstack(jnp.stack([x, y], 1), axis=0), 2),
    ),
    "stack-of-unstack": (
        on(lambda d: d.anything((3,)), lambda d, x: jnp.stack(jnp.unstack(x)[::-1])),
        on(lambda d: d.anything((2, 2)), lambda d, x: jnp.stack(jnp.unstack(x), 1)),
    ),
    "dynamic-slice-of-everything": (
        lambda d: _moving(d, lambda d, x, at: lax.dynamic_slice(x, at, _window(x)), 2),
    ),
    "dynamic-slice-at-constant": (
        lambda d: _moving(d, lambda d, x, at: lax.dynamic_slice(x, at, _window(x)), 2),
    ),
    "update-of-everything": (
        lambda d: _moving(d, lambda d, x, at: lax.dynamic_update_slice(x, _part(x), at), 2),
    ),
    "slice-of-update": (
        lambda d: _moving(
            d,
            lambda d, x, at: lax.dynamic_slice(
                lax.dynamic_update_slice(x, _part(x), at), [np.int32(0)] * x.ndim, _window(x)
            ),
            2,
        ),
    ),
    "update-of-update": (
        lambda d: _moving(
            d,
            lambda d, x, at: lax.dynamic_update_slice(
                lax.dynamic_update_slice(x, _part(x), at), _part(x)[1:], at
            ),
            3,
        ),
    ),
}
