"""Ragged products by group."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from tests.properties._draw import TAME, Draw, Makers, P, Program

PASS: Final = "ragged-products"

_TURNED: Final = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
_SUMS: Final = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def _sizes(d: Draw, rows: int, groups: int) -> jax.Array:
    """How many rows each group has; they add up to fewer or more than there are, too."""
    most = 2 * rows // groups
    return jnp.asarray([d.pick(0, d.whole(0, most), most) for _ in range(groups)], jnp.int32)


def _rows(d: Draw, groups: int = 12, *, turned: bool = False, count: Any = jnp.int32) -> Program:
    rows, k, n, dtype = d.whole(60, 70), d.whole(60, 70), d.whole(60, 70), d.pick("float32", "bfloat16")
    sizes = _sizes(d, rows, groups).astype(count)

    def fun(x: Any, w: Any, sizes: Any) -> Any:
        return lax.ragged_dot_general(x, w, sizes, _TURNED) if turned else lax.ragged_dot(x, w, sizes)

    shape = (groups, n, k) if turned else (groups, k, n)
    return P(fun, d.like((rows, k), dtype), d.like(shape, dtype), sizes, flavours=TAME)


def _sums(d: Draw, rows: int = 256) -> Program:
    dtype = d.pick("float32", "bfloat16")
    sizes = _sizes(d, rows, 10)

    def fun(x: Any, y: Any, sizes: Any) -> Any:
        return lax.ragged_dot_general(x, y, sizes, _SUMS)

    return P(fun, d.like((rows, 34), dtype), d.like((rows, 50), dtype), sizes, flavours=TAME, grad=False)


def _codes(d: Draw, wanted: Any = jnp.int32) -> Program:
    rows, groups = d.whole(60, 70), 12
    sizes = _sizes(d, rows, groups)

    def fun(x: Any, w: Any, sizes: Any) -> Any:
        return lax.ragged_dot(x, w, sizes, preferred_element_type=wanted)

    return P(fun, d.ints((rows, 64), "int8"), d.ints((groups, 64, 70), "int8"), sizes)


MAKERS: Final[Makers] = {
    "rows-by-group": (_rows, lambda d: _rows(d, turned=True)),
    "sums-by-group": (_sums,),
    "int8-rows-by-group": (_codes,),
}

ALIKE: Final[Makers] = {
    "rows-by-group": (lambda d: _rows(d, groups=2), lambda d: _rows(d, count=jnp.int8)),
    "sums-by-group": (lambda d: _sums(d, rows=16),),
    "int8-rows-by-group": (lambda d: _codes(d, wanted=jnp.int8),),
}
