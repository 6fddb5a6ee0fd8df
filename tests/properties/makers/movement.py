"""Transposes, views and broadcasts."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import Draw, Makers, P, Program, on

PASS: Final = "movement"


def _arg(least: int = 0, most: int = 3, size: int = 0) -> Any:
    return lambda d: d.anything(d.shape(least, most, size))


def _spread(d: Draw, x: Any, more: int = 2, least: int = 1) -> Any:
    """A broadcast to further dimensions, and along dimensions of size one."""
    rank = x.ndim + d.whole(least if x.ndim == 0 else 0, more)
    dims = sorted(int(i) for i in d.rng.choice(rank, x.ndim, replace=False))
    shape = [d.size(1, 5) for _ in range(rank)]
    for i, at in enumerate(dims):
        shape[at] = x.shape[i] if x.shape[i] != 1 or d.pick(True, False) else shape[at]
    if rank == x.ndim and tuple(shape) == x.shape:
        shape, dims = [3, *shape], [i + 1 for i in dims]
    return lax.broadcast_in_dim(x, shape, dims)


def _proper_cut(d: Draw, x: Any, strides: bool = True) -> Any:
    """A slice that is not all of an array."""
    axis = d.axis(x.shape)
    part = lax.slice_in_dim(x, 1, x.shape[axis], axis=axis)
    return part if strides is False else lax.slice_in_dim(part, 0, part.shape[axis], d.pick(1, 2), axis)


def _pad(d: Draw, x: Any, config: Any, number: Any = 0) -> Any:
    return lax.pad(x, np.asarray(number).astype(x.dtype), config)


def _same_view(d: Draw, x: Any) -> Any:
    """A view that changes nothing, which JAX does not leave out by itself."""
    if d.pick(True, False):
        return lax.squeeze_p.bind(x, dimensions=())
    return lax.transpose_p.bind(x, permutation=tuple(range(x.ndim)))


def _moved_number(d: Draw) -> Program:
    """One number throughout, moved about."""
    x = d.anything(d.shape(1, 3, 1))
    y = np.full(x.shape, d.pick(0, 1)).astype(x.dtype)

    def fun(x: Any) -> Any:
        held = d.pick(lambda: y, lambda: jnp.full(x.shape, y.flat[0]))()
        ways = (
            lambda: lax.transpose(held, d.order(x.ndim)),
            lambda: lax.reshape(held, (1, x.size)),
            lambda: lax.rev(held, (d.axis(x.shape),)),
            lambda: lax.concatenate([held, held], d.axis(x.shape)),
            lambda: _proper_cut(d, held),
            lambda: _pad(d, held, [(1, 0, 0)] * x.ndim, y.flat[0]),
        )
        return d.pick(*ways)(), x

    return P(fun, x)


def _turned(d: Draw, x: Any) -> Any:
    """A transpose that is not the identity."""
    order = [*range(1, x.ndim), 0]
    return lax.transpose(x, d.pick(order, order[::-1] if x.ndim > 2 else order))


def _reversed(d: Draw, x: Any) -> Any:
    dims = {d.axis(x.shape), d.axis(x.shape)}
    return lax.rev(x, tuple(sorted(dims)))


def _equal_rows(d: Draw, x: Any) -> Any:
    wide = lax.broadcast_in_dim(x, (3, *x.shape), tuple(range(1, x.ndim + 1)))
    return lax.rev(wide, (0, 1) if x.ndim and d.pick(True, False) else (0,))


def _elementwise(d: Draw, x: Any, s: Any) -> Any:
    wide = lax.broadcast_in_dim(s, x.shape, ())
    ops = (
        (lax.add, lax.sub, lax.mul, lax.max, lax.min)
        if x.dtype != bool
        else (lax.bitwise_and, lax.bitwise_or)
    )
    op = d.pick(*ops, lax.eq)
    return op(x, wide) if d.pick(True, False) else op(wide, x)


def _and_scalar(d: Draw, fun: Any) -> Program:
    x = d.reals(d.shape(1, 3))
    return P(lambda x, s: fun(d, x, s), x, d.like((), x.dtype))


def _chosen_by_scalar(d: Draw) -> Program:
    x = d.anything(d.shape(1, 3))
    return P(lambda p, x, y: lax.select_n(lax.broadcast_in_dim(p, x.shape, ()), x, y), d.bools(()), x, x)


MAKERS: Final[Makers] = {
    "view-to-same-shape": (on(_arg(), _same_view),),
    "view-of-view": (
        on(_arg(2, 3), lambda d, x: lax.reshape(lax.reshape(x, (x.size,)), (1, 1, x.size))),
        on(
            _arg(1, 3),
            lambda d, x: lax.reshape(lax.expand_dims(x, (d.whole(0, x.ndim),)), (1, 1, x.size, 1, 1)),
        ),
        on(
            lambda d: d.anything((d.size(), d.size(), 1)),
            lambda d, x: lax.transpose(lax.squeeze(x, (2,))[None], (1, 0, 2)),
        ),
    ),
    "movement-of-splat": (_moved_number, _moved_number),
    "broadcast-of-broadcast": (
        on(
            _arg(0, 2),
            lambda d, x: _spread(d, _spread(d, x)),
        ),
    ),
    "broadcast-of-unit-view": (
        on(
            lambda d: d.anything((1, d.size())),
            lambda d, x: lax.broadcast_in_dim(lax.squeeze(x, (0,)), (3, x.size), (1,)),
        ),
        on(
            lambda d: d.anything((d.size(2), 1, d.size(2))),
            lambda d, x: lax.broadcast_in_dim(lax.squeeze(x, (1,)), (x.shape[0], 2, x.shape[2]), (0, 2)),
        ),
        on(_arg(1, 2, 2), lambda d, x: _spread(d, lax.reshape(x, (*x.shape, 1)))),
    ),
    "unit-view-of-broadcast": (
        on(_arg(0, 2), lambda d, x: lax.expand_dims(_spread(d, x), (0,))),
        on(
            _arg(0, 2),
            lambda d, x: lax.squeeze(
                lax.broadcast_in_dim(x, (2, 1, *x.shape), tuple(range(2, x.ndim + 2))), (1,)
            ),
        ),
        on(_arg(0, 0), lambda d, x: lax.reshape(lax.broadcast_in_dim(x, (2, 3), ()), (3, 2))),
    ),
    "tile-of-units": (on(lambda d: d.anything((2, 1, 3)), lambda d, x: jnp.tile(x, (1, d.whole(2, 4), 1))),),
    "transpose-of-broadcast": (
        on(
            _arg(0, 1),
            lambda d, x: _turned(d, lax.broadcast_in_dim(x, (2, 3, *x.shape), tuple(range(2, 2 + x.ndim)))),
        ),
        on(
            _arg(2, 2, 1),
            lambda d, x: lax.transpose(lax.broadcast_in_dim(x, (5, *x.shape), (1, 2)), (2, 1, 0)),
        ),
    ),
    "elementwise-with-broadcast-scalar": (lambda d: _and_scalar(d, _elementwise),),
    "select-by-broadcast-scalar": (_chosen_by_scalar,),
    "transpose-of-transpose": (on(_arg(2, 4), lambda d, x: _turned(d, _turned(d, x))),),
    "rev-of-rev": (on(_arg(1, 3), lambda d, x: _reversed(d, _reversed(d, x))),),
    "rev-of-equals": (
        on(_arg(0, 2), _equal_rows),
        on(
            _arg(1, 2),
            lambda d, x: lax.rev(lax.slice_in_dim(jnp.concatenate([x, x]), 0, min(x.shape[0], 1)), (0,)),
        ),
    ),
}

ALIKE: Final[Makers] = {
    "view-to-same-shape": (on(lambda d: d.anything((3, 3)), lambda d, x: lax.transpose(x, (1, 0))),),
    "view-of-view": (
        on(lambda d: d.anything((2, 3)), lambda d, x: lax.reshape(lax.transpose(x, (1, 0)), (6,))),
    ),
    "movement-of-splat": (
        on(lambda d: d.anything((3,)), lambda d, x: _pad(d, jnp.zeros_like(x), [(1, 0, 0)], 1)),
        on(lambda d: d.anything((3,)), lambda d, x: jnp.concatenate([jnp.zeros_like(x), x])),
    ),
    "broadcast-of-broadcast": (
        on(_arg(1, 2), lambda d, x: _spread(d, -_spread(d, x) if x.dtype != bool else ~_spread(d, x))),
    ),
    "broadcast-of-unit-view": (
        on(lambda d: d.anything((2, 3)), lambda d, x: _spread(d, lax.reshape(x, (6,)))),
    ),
    "unit-view-of-broadcast": (
        on(
            lambda d: d.anything((2,)),
            lambda d, x: lax.reshape(lax.broadcast_in_dim(x, (3, 2), (1,)), (2, 3)),
        ),
    ),
    "tile-of-units": (on(lambda d: d.anything((2, 1, 3)), lambda d, x: jnp.tile(x, (2, 3, 1))),),
    "transpose-of-broadcast": (
        on(
            lambda d: d.anything((2, 3)),
            lambda d, x: (lambda y: (lax.transpose(y, (2, 1, 0)), y))(
                lax.broadcast_in_dim(x, (5, 2, 3), (1, 2))
            ),
        ),
    ),
    "elementwise-with-broadcast-scalar": (
        on(lambda d: d.reals((3,)), lambda d, x: x[None] + lax.broadcast_in_dim(x, (2, 3), (1,))),
    ),
    "select-by-broadcast-scalar": (
        on(
            lambda d: d.bools((3,)),
            lambda d, p: lax.select_n(
                lax.broadcast_in_dim(p, (2, 3), (1,)), np.ones((2, 3), "f"), np.zeros((2, 3), "f")
            ),
        ),
    ),
    "transpose-of-transpose": (
        on(lambda d: d.floats((2, 3)), lambda d, x: lax.transpose(-lax.transpose(x, (1, 0)), (1, 0))),
    ),
    "rev-of-rev": (on(lambda d: d.floats((2, 3)), lambda d, x: lax.rev(-lax.rev(x, (0,)), (0,))),),
    "rev-of-equals": (
        on(lambda d: d.anything((3,)), lambda d, x: lax.rev(lax.broadcast_in_dim(x, (2, 3), (1,)), (1,))),
    ),
}
