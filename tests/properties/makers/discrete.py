"""Logic, integers, complex parts, reductions of one number."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import Draw, Makers, P, Program, on

PASS: Final = "algebra"

SHIFTS: Final = (lax.shift_left, lax.shift_right_logical, lax.shift_right_arithmetic)
LOGIC: Final = (lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor)


def _full(d: Draw, x: Any, number: Any) -> Any:
    return jnp.broadcast_to(d.of(x, number), x.shape)


def _ones(d: Draw, x: Any) -> Any:
    """All bits set."""
    return d.of(x, ~np.zeros((), x.dtype))


def _absorbed(d: Draw, x: Any, y: Any) -> Any:
    outer, inner = d.pick(*LOGIC[:2]), d.pick(*LOGIC[:2])
    return d.either(outer, x, d.either(inner, x, y))


def _shifted_twice(d: Draw, x: Any) -> Any:
    shift = d.pick(*SHIFTS)
    return shift(shift(x, _full(d, x, d.whole(0, 5))), _full(d, x, d.whole(0, 7)))


def _constant(d: Draw, kind: str = "reals") -> Program:
    """A reduction of one number."""
    x = getattr(d, kind)(d.shape(1, 3, 1))
    number = d.pick(0, 1, 3)
    axes = tuple(sorted({d.axis(x.shape), d.axis(x.shape)}))
    reduce = d.pick(jnp.max, jnp.min)
    return P(lambda x: (reduce(jnp.full(x.shape, number, x.dtype), axes), x), x)


def _total(kind: str) -> Any:
    def make(d: Draw) -> Program:
        x = getattr(d, kind)(d.shape(1, 3))
        axes = tuple(sorted({d.axis(x.shape), d.axis(x.shape)}))
        number = d.pick(0, 1, 3, 100)
        return P(lambda x: lax.reduce_sum(jnp.full(x.shape, number, x.dtype), axes), x)

    return make


def _picked_from_one(d: Draw) -> Program:
    x = d.reals(d.shape(1, 3, 1))
    axis, pick = d.axis(x.shape), d.pick(lax.argmax, lax.argmin)
    return P(lambda x: pick(jnp.full(x.shape, 2, x.dtype), axis, np.int32), x)


def _unit_axis(d: Draw, *ops: Any) -> Program:
    shape = list(d.shape(1, 3))
    axis = d.axis(tuple(shape))
    shape[axis] = 1
    op, reverse = d.pick(*ops), d.pick(True, False)
    return P(lambda x: op(x, axis=axis, reverse=reverse), d.floats(tuple(shape)))


def _no_axes(d: Draw, x: Any) -> Any:
    return d.pick(lax.reduce_sum, lax.reduce_prod, lax.reduce_max, lax.reduce_min)(x, ())


MAKERS: Final[Makers] = {
    "logic-of-same": (on("discrete", lambda d, x: d.pick(*LOGIC[:2])(x, x)),),
    "and-with-constant": (
        on("discrete", lambda d, x: d.either(jnp.bitwise_and, x, d.pick(_ones(d, x), d.of(x, 0)))),
    ),
    "or-with-constant": (
        on("discrete", lambda d, x: d.either(jnp.bitwise_or, x, d.pick(_ones(d, x), d.of(x, 0)))),
    ),
    "xor-with-constant": (
        on("discrete", lambda d, x: d.either(jnp.bitwise_xor, x, d.pick(_ones(d, x), d.of(x, 0)))),
    ),
    "xor-of-same": (on("discrete", lambda d, x: x ^ x),),
    "logic-with-not": (on("discrete", lambda d, x: d.either(d.pick(*LOGIC), x, ~x)),),
    "absorb": (on("discrete", _absorbed, 2),),
    "not-of-not": (on("discrete", lambda d, x: ~(~x)),),
    "remainder-of-one": (
        on("ints", lambda d, x: lax.rem(x, _full(d, x, 1))),
        on("signed", lambda d, x: lax.rem(x, _full(d, x, -1))),
    ),
    "remainder-of-smaller": (
        on("signed", lambda d, x: lax.rem(lax.rem(x, _full(d, x, 5)), _full(d, x, d.pick(5, 7, -9)))),
        on(
            lambda d: d.like(None, "uint8"),
            lambda d, x: lax.rem(x.astype("int32"), _full(d, x.astype("int32"), 256)),
        ),
    ),
    "quotient-of-smaller": (
        on("signed", lambda d, x: lax.div(lax.rem(x, _full(d, x, 5)), _full(d, x, d.pick(5, 7, -9)))),
    ),
    "shift-by-zero": (on("ints", lambda d, x: d.pick(*SHIFTS)(x, _full(d, x, 0))),),
    "shift-of-zero": (on("ints", lambda d, x: d.pick(*SHIFTS)(_full(d, x, 0), x)),),
    "shift-of-shift": (on("ints", _shifted_twice),),
    "shift-of-nonnegative": (
        on(
            lambda d: d.like(None, "uint8"),
            lambda d, x: lax.shift_right_arithmetic(x.astype("int32"), np.int32(d.pick(8, 12, 31))),
        ),
    ),
    "real-of-complex": (
        on(lambda d: d.floats(None, "float32"), lambda d, x, y: lax.real(lax.complex(x, y)), 2),
    ),
    "imag-of-complex": (
        on(lambda d: d.floats(None, "float32"), lambda d, x, y: lax.imag(lax.complex(x, y)), 2),
    ),
    "complex-of-parts": (on("complexes", lambda d, z: lax.complex(lax.real(z), lax.imag(z))),),
    "conj-of-conj": (on("complexes", lambda d, z: jnp.conj(jnp.conj(z))),),
    "real-of-conj": (on("complexes", lambda d, z: lax.real(jnp.conj(z))),),
    "imag-of-conj": (on("complexes", lambda d, z: lax.imag(jnp.conj(z))),),
    "conj-of-complex": (
        on(lambda d: d.floats(None, "float32"), lambda d, x, y: jnp.conj(lax.complex(x, y)), 2),
    ),
    "reduce-nothing": (on("reals", _no_axes),),
    "reduce-number": (_constant,),
    "sum-integer": (_total("ints"),),
    "sum-number": (_total("floats"),),
    "argmax-of-number": (_picked_from_one,),
    "cumulate-one": (lambda d: _unit_axis(d, lax.cumprod, lax.cummax, lax.cummin),),
    "cumulative-sum-of-one": (lambda d: _unit_axis(d, lax.cumsum), lambda d: _unit_axis(d, lax.cumlogsumexp)),
}

ALIKE: Final[Makers] = {
    "logic-of-same": (on("ints", lambda d, x: x & ~x),),
    "and-with-constant": (on("ints", lambda d, x: x & d.of(x, 1)),),
    "or-with-constant": (on("ints", lambda d, x: x | d.of(x, 1)),),
    "xor-with-constant": (on("ints", lambda d, x: x ^ d.of(x, 1)),),
    "xor-of-same": (on("discrete", lambda d, x, y: x ^ y, 2),),
    "logic-with-not": (on("discrete", lambda d, x, y: x & ~y, 2),),
    "absorb": (on("discrete", lambda d, x, y: x & (x ^ y), 2),),
    "not-of-not": (on("signed", lambda d, x: ~(-x)),),
    "remainder-of-one": (on("floats", lambda d, x: lax.rem(x, _full(d, x, 1.0))),),
    "remainder-of-smaller": (on("signed", lambda d, x: lax.rem(lax.rem(x, _full(d, x, 5)), _full(d, x, 4))),),
    "quotient-of-smaller": (on("signed", lambda d, x: lax.div(lax.rem(x, _full(d, x, 5)), _full(d, x, -4))),),
    "shift-by-zero": (on("ints", lambda d, x: d.pick(*SHIFTS)(x, _full(d, x, 1))),),
    "shift-of-zero": (on("ints", lambda d, x: d.pick(*SHIFTS)(_full(d, x, 1), x)),),
    "shift-of-shift": (
        on("ints", lambda d, x: lax.shift_right_logical(lax.shift_left(x, _full(d, x, 2)), _full(d, x, 2))),
    ),
    "shift-of-nonnegative": (
        on("signed", lambda d, x: lax.shift_right_arithmetic(x, _full(d, x, 2))),
        on(
            lambda d: d.like(None, "uint8"),
            lambda d, x: lax.shift_right_arithmetic(x.astype("int32"), np.int32(7)),
        ),
    ),
    "real-of-complex": (
        on(lambda d: d.floats(None, "float32"), lambda d, x, y: lax.imag(lax.complex(x, y)), 2),
    ),
    "imag-of-complex": (
        on(lambda d: d.floats(None, "float32"), lambda d, x, y: lax.real(lax.complex(x, y)), 2),
    ),
    "complex-of-parts": (on("complexes", lambda d, z: lax.complex(lax.imag(z), lax.real(z))),),
    "conj-of-conj": (on("complexes", lambda d, z: jnp.conj(-jnp.conj(z))),),
    "real-of-conj": (on("complexes", lambda d, z: lax.imag(jnp.conj(z))),),
    "imag-of-conj": (on("complexes", lambda d, z: lax.real(jnp.conj(z))),),
    "conj-of-complex": (
        on(
            lambda d: d.floats(None, "float32"),
            lambda d, x, y: (lambda z: (jnp.conj(z), z))(lax.complex(x, y)),
            2,
        ),
    ),
    "reduce-nothing": (on(lambda d: d.reals((2, 1)), lambda d, x: lax.reduce_max(x, (1,))),),
    "reduce-number": (
        on(lambda d: d.like((3,), "float32"), lambda d, x: jnp.max(np.arange(3.0, dtype="f")) + x),
    ),
    "sum-integer": (on(lambda d: d.like((3,), "int32"), lambda d, x: jnp.sum(np.arange(3, dtype="i")) + x),),
    "sum-number": (
        on(lambda d: d.like((4,), "float32"), lambda d, x: jnp.sum(np.full(4, 3e38, "f")) + x),
        on(lambda d: d.like((4,), "float32"), lambda d, x: jnp.sum(np.full(4, np.nan, "f")) + x),
    ),
    "argmax-of-number": (on(lambda d: d.like((3,), "float32"), lambda d, x: jnp.argmax(x)),),
    "cumulate-one": (
        on(lambda d: d.floats((1, 2)), lambda d, x: lax.cummax(x, axis=1)),
        on(lambda d: d.floats((1, 2)), lambda d, x: lax.cumlogsumexp(x, axis=0)),
    ),
    "cumulative-sum-of-one": (on(lambda d: d.floats((1, 2)), lambda d, x: lax.cumsum(x, axis=1)),),
}
