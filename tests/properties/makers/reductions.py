"""Reductions of transposes and broadcasts, transposes around products."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from jax import lax

from tests.properties._draw import Draw, Makers, P, Program, on

PASS: Final = "movement"


_COMPLEX: Final = "XLA's product of complex numbers on CPU rounds by the order of its operands in memory"


SELECTING: Final = (lax.reduce_max, lax.reduce_min)


def _reduced_transpose(d: Draw, x: Any, *ops: Any) -> Any:
    """A reduction over some axes of a transpose that keeps the others in order."""
    return d.pick(*ops)(lax.transpose(x, (1, 0, 2)), d.pick((0,), (1,), (0, 1)))


def _repeated(d: Draw, x: Any) -> Any:
    """An array repeated along a new first dimension, and the axes to reduce it over."""
    wide = lax.broadcast_in_dim(x, (d.whole(2, 3), *x.shape), tuple(range(1, x.ndim + 1)))
    return wide, (0,) if d.pick(True, False) else tuple(range(wide.ndim))


def _product(d: Draw, side: int) -> Program:
    """A product of a transpose that leaves the free dimensions in order."""
    b, m, k, n = (d.size(1, 5) for _ in range(4))
    dtype = d.pick("float32", "bfloat16", "int32", "complex64")
    x, w = d.like((k, b, m), dtype), d.like((b, k, n), dtype)
    numbers = (((2,), (1,)), ((0,), (0,)))

    def fun(x: Any, w: Any) -> Any:
        return lax.dot_general(lax.transpose(x, (1, 2, 0)), w, numbers)

    def other(x: Any, w: Any) -> Any:
        return lax.dot_general(w, lax.transpose(x, (1, 2, 0)), (((1,), (2,)), ((0,), (0,))))

    return P(fun if side == 0 else other, x, w, rounds=_COMPLEX if dtype == "complex64" else "")


def _turned_product(d: Draw) -> Program:
    b, m, k, n = (d.size(1, 5) for _ in range(4))
    dtype = d.pick("float32", "bfloat16", "int32", "complex64")
    rounds = _COMPLEX if dtype == "complex64" else ""
    if d.pick(True, False):
        both = d.like((m, k), dtype), d.like((k, n), dtype)
        return P(lambda x, w: lax.transpose(x @ w, (1, 0)), *both, rounds=rounds)
    numbers = (((2,), (1,)), ((0,), (0,)))
    return P(
        lambda x, w: lax.transpose(lax.dot_general(x, w, numbers), (0, 2, 1)),
        d.like((b, m, k), dtype),
        d.like((b, k, n), dtype),
        rounds=rounds,
    )


def _over_units(d: Draw, kind: str, *ops: Any) -> Program:
    shape = (d.size(), 1, d.size(), 1)
    axes = d.pick((1,), (3,), (1, 3))
    op = d.pick(*ops)
    return P(lambda x: op(x, axes), getattr(d, kind)(shape))


MAKERS: Final[Makers] = {
    "reduction-over-units": (
        lambda d: _over_units(d, "reals", *SELECTING),
        lambda d: _over_units(d, "floats", lax.reduce_prod),
        lambda d: _over_units(d, "ints", lax.reduce_sum, lax.reduce_xor),
        lambda d: _over_units(d, "bools", lax.reduce_and, lax.reduce_or),
    ),
    "sum-over-units": (lambda d: _over_units(d, "floats", lax.reduce_sum),),
    "reduction-of-transpose": (
        on(
            lambda d: d.ints(d.shape(3, 3, 1)),
            lambda d, x: _reduced_transpose(d, x, *SELECTING, lax.reduce_sum),
        ),
        on(
            lambda d: d.floats(d.shape(3, 3, 1)),
            lambda d, x: d.pick(*SELECTING)(lax.transpose(x, (1, 0, 2)), (d.pick(0, 1),)),
        ),
        on(
            lambda d: d.floats(d.shape(2, 2, 1)),
            lambda d, x: lax.argmax(lax.transpose(x, (1, 0)), d.pick(0, 1), np.int32),
        ),
    ),
    "float-reduction-of-transpose": (
        on(
            lambda d: d.floats(d.shape(3, 3, 1)),
            lambda d, x: _reduced_transpose(d, x, lax.reduce_sum, lax.reduce_prod),
        ),
    ),
    "selection-of-broadcast": (
        on(lambda d: d.reals(d.shape(0, 2, 1)), lambda d, x: d.pick(*SELECTING)(*_repeated(d, x))),
    ),
    "integer-sum-of-broadcast": (
        on(lambda d: d.ints(d.shape(0, 2, 1)), lambda d, x: lax.reduce_sum(*_repeated(d, x))),
    ),
    "sum-of-broadcast": (
        on(lambda d: d.floats(d.shape(0, 2, 1)), lambda d, x: lax.reduce_sum(*_repeated(d, x))),
    ),
    "dot-of-transpose": (lambda d: _product(d, 0), lambda d: _product(d, 1)),
    "transpose-of-dot": (_turned_product,),
}

ALIKE: Final[Makers] = {
    "reduction-over-units": (
        on(lambda d: d.floats((3, 1)), lambda d, x: lax.reduce_sum(x, (1,))),
        on(lambda d: d.floats((3, 1)), lambda d, x: lax.reduce_max(x, (0, 1))),
    ),
    "sum-over-units": (on(lambda d: d.floats((3, 2)), lambda d, x: lax.reduce_sum(x, (1,))),),
    "reduction-of-transpose": (
        on(lambda d: d.floats((2, 3)), lambda d, x: lax.reduce_sum(x.T, (0,))),
        on(lambda d: d.floats((2, 3, 4)), lambda d, x: lax.reduce_max(lax.transpose(x, (2, 1, 0)), (1,))),
    ),
    "float-reduction-of-transpose": (
        on(lambda d: d.floats((2, 3, 4)), lambda d, x: lax.reduce_sum(lax.transpose(x, (2, 1, 0)), (1,))),
    ),
    "selection-of-broadcast": (
        on(lambda d: d.reals((2,)), lambda d, x: lax.reduce_max(lax.broadcast_in_dim(x, (3, 2), (1,)), (1,))),
    ),
    "integer-sum-of-broadcast": (
        on(
            lambda d: d.floats((2,)), lambda d, x: lax.reduce_sum(lax.broadcast_in_dim(x, (3, 2), (1,)), (0,))
        ),
    ),
    "sum-of-broadcast": (
        on(
            lambda d: d.floats((2,)), lambda d, x: lax.reduce_sum(lax.broadcast_in_dim(x, (3, 2), (1,)), (1,))
        ),
    ),
    "dot-of-transpose": (
        on(lambda d: d.floats((3, 3)), lambda d, x, y: (lambda t: (t @ y, t))(lax.transpose(x, (1, 0))), 2),
    ),
    "transpose-of-dot": (
        on(lambda d: d.floats((3, 3)), lambda d, x, y: (lambda p: (lax.transpose(p, (1, 0)), p))(x @ y), 2),
    ),
}
