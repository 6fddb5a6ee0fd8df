"""Powers, roots, exponentials and functions of one number."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from tests.properties._draw import Draw, Makers, bounded, on

PASS: Final = "algebra"

_SUBNORMAL: Final = "subnormal numbers count as zero, whose negative powers are infinite"


def _above(x: Any) -> Any:
    """Numbers above zero."""
    return jnp.exp(jnp.tanh(x))


def _whole_numbers(d: Draw, x: Any) -> Any:
    return d.pick(jnp.floor, jnp.ceil, jnp.sign, lambda y: lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN))(
        x
    )


def _rounded(d: Draw, x: Any) -> Any:
    method = d.pick(lax.RoundingMethod.TO_NEAREST_EVEN, lax.RoundingMethod.AWAY_FROM_ZERO)
    return d.pick(jnp.floor, jnp.ceil, lambda y: lax.round(y, method))(x)


def _even(d: Draw, x: Any) -> Any:
    return d.pick(lax.square, lambda y: lax.integer_pow(y, 4), lambda y: lax.integer_pow(y, -2))(x)


MAKERS: Final[Makers] = {
    "pow-zero": (
        on("floats", lambda d, x: lax.pow(x, jnp.broadcast_to(d.of(x, d.pick(0.0, -0.0)), x.shape))),
    ),
    "pow-one": (on("floats", lambda d, x: lax.pow(x, jnp.broadcast_to(d.of(x, 1.0), x.shape))),),
    "pow-of-constant-exponent": (
        on(
            "floats", lambda d, x: x ** d.of(x, d.pick(2.0, 3.0, 4.0, -1.0, -2.0, -3.0)), overflows=_SUBNORMAL
        ),
        on("floats", lambda d, x: x ** d.of(x, d.pick(0.5, 1.5, 2.5, 3.5))),
        on("floats", lambda d, x: d.pick(jnp.positive, jnp.abs)(x) ** d.of(x, -1.5), overflows=_SUBNORMAL),
    ),
    "integer-pow-zero": (on("numbers", lambda d, x: lax.integer_pow(x, 0)),),
    "integer-pow-one": (on("numbers", lambda d, x: lax.integer_pow(x, 1)),),
    "integer-pow-two": (on("reals", lambda d, x: lax.integer_pow(x, 2)),),
    "integer-pow-minus-one": (on("floats", lambda d, x: lax.integer_pow(x, -1)),),
    "even-power-of-sign": (
        on("floats", lambda d, x: _even(d, d.pick(jnp.negative, jnp.abs)(x))),
        on("signed", lambda d, x: lax.integer_pow(d.pick(jnp.negative, jnp.abs)(x), d.pick(2, 4))),
    ),
    "integer-power-of-power": (on("ints", lambda d, x: lax.integer_pow(lax.square(x), d.pick(2, 3))),),
    "power-of-power": (
        on("floats", lambda d, x: lax.integer_pow(lax.integer_pow(x, d.pick(2, 3)), d.pick(2, 3))),
        on("floats", lambda d, x: lax.square(lax.integer_pow(x, 3))),
    ),
    "square-of-sqrt": (on("floats", lambda d, x: lax.square(jnp.sqrt(_above(x)))),),
    "sqrt-times-sqrt": (on("floats", lambda d, x: (lambda r: r * r)(jnp.sqrt(_above(x)))),),
    "reciprocal-of-sqrt": (
        on("floats", lambda d, x: 1.0 / jnp.sqrt(x)),
        on(lambda d: d.floats(None, "bfloat16", "float16"), lambda d, x: 1.0 / jnp.sqrt(x)),
    ),
    "reciprocal-of-rsqrt": (on("floats", lambda d, x: 1.0 / lax.rsqrt(x)),),
    "sqrt-of-reciprocal": (on("floats", lambda d, x: jnp.sqrt(1.0 / jnp.abs(x)), overflows=_SUBNORMAL),),
    "log-of-exp": (on("floats", lambda d, x: jnp.log(jnp.exp(x)), along=1.0),),
    "exp-of-log": (on("floats", lambda d, x: jnp.exp(jnp.log(_above(x)))),),
    "log1p-of-expm1": (on("floats", lambda d, x: jnp.log1p(jnp.expm1(x))),),
    "logistic-written-out": (on("floats", lambda d, x: 1.0 / d.either(jnp.add, 1.0, jnp.exp(-x))),),
    "abs-of-nonnegative": (on("floats", lambda d, x: jnp.abs(d.pick(jnp.exp, jnp.square, jnp.abs)(x))),),
    "abs-of-nonnegative-or-minus-zero": (on("floats", lambda d, x: jnp.abs(jnp.sqrt(x))),),
    "abs-of-neg": (on("signed", lambda d, x: jnp.abs(-x)),),
    "sign-of-known": (
        on("ints", lambda d, x: jnp.sign(d.pick(jnp.positive, jnp.negative)(_above(bounded(d, x))))),
        on("signed", lambda d, x: jnp.sign(jnp.maximum(x, d.of(x, 1)))),
    ),
    "sign-of-sign": (on("reals", lambda d, x: jnp.sign(jnp.sign(x))),),
    "round-of-whole": (
        on("floats", lambda d, x: _rounded(d, _whole_numbers(d, x))),
        on("ints", lambda d, x: _rounded(d, x.astype(d.pick("float32", "bfloat16", "float16")))),
    ),
    "is-finite-of-finite": (on("ints", lambda d, x: jnp.isfinite(bounded(d, x))),),
    "reduce-precision-twice": (
        on(
            "floats",
            lambda d, x: (lambda e, m: lax.reduce_precision(lax.reduce_precision(x, e, m), e, m))(
                d.pick(5, 8), d.pick(3, 7)
            ),
        ),
    ),
}

ALIKE: Final[Makers] = {
    "pow-zero": (on("floats", lambda d, x: d.of(x, 0.0) ** x),),
    "pow-one": (on("floats", lambda d, x: d.of(x, 1.0) ** x),),
    "pow-of-constant-exponent": (on("floats", lambda d, x: x ** d.of(x, d.pick(0.3, 7.0))),),
    "integer-pow-zero": (on("numbers", lambda d, x: lax.integer_pow(x, 3)),),
    "integer-pow-one": (on("floats", lambda d, x: lax.integer_pow(x, -1)),),
    "integer-pow-two": (
        on("floats", lambda d, x: lax.integer_pow(x, -2)),
        on("complexes", lambda d, x: lax.integer_pow(x, 2)),
    ),
    "integer-pow-minus-one": (on("complexes", lambda d, x: lax.integer_pow(x, -1)),),
    "even-power-of-sign": (on("floats", lambda d, x: lax.integer_pow(-x, 3)),),
    "integer-power-of-power": (on("floats", lambda d, x: lax.square(lax.integer_pow(x, 3))),),
    "power-of-power": (on("floats", lambda d, x: lax.integer_pow(lax.integer_pow(x, -2), 3)),),
    "square-of-sqrt": (on("floats", lambda d, x: lax.square(jnp.sqrt(x))),),
    "sqrt-times-sqrt": (on("floats", lambda d, x: (lambda r: r * r)(jnp.sqrt(jnp.abs(x)))),),
    "reciprocal-of-sqrt": (on("floats", lambda d, x: 2.0 / jnp.sqrt(x)),),
    "reciprocal-of-rsqrt": (on("complexes", lambda d, x: 1.0 / lax.rsqrt(x)),),
    "sqrt-of-reciprocal": (on("floats", lambda d, x: jnp.sqrt(1.0 / x)),),
    "log-of-exp": (on("complexes", lambda d, x: jnp.log(jnp.exp(x))),),
    "exp-of-log": (on("floats", lambda d, x: jnp.exp(jnp.log(x))),),
    "log1p-of-expm1": (on("floats", lambda d, x: jnp.log1p(jnp.exp(x))),),
    "logistic-written-out": (on("floats", lambda d, x: 1.0 / (2.0 + jnp.exp(-x))),),
    "abs-of-nonnegative": (
        on("floats", lambda d, x: jnp.abs(jnp.sqrt(x))),
        on("reals", lambda d, x: jnp.abs(x + x)),
    ),
    "abs-of-nonnegative-or-minus-zero": (on("floats", lambda d, x: jnp.abs(jnp.tanh(x))),),
    "abs-of-neg": (on("floats", lambda d, x: jnp.abs(-x)),),
    "sign-of-known": (on("floats", lambda d, x: jnp.sign(jnp.abs(x))),),
    "sign-of-sign": (on("complexes", lambda d, x: jnp.sign(jnp.sign(x))),),
    "round-of-whole": (on("floats", lambda d, x: jnp.floor(x * 2.0)),),
    "is-finite-of-finite": (on("floats", lambda d, x: jnp.isfinite(jnp.exp(x))),),
    "reduce-precision-twice": (
        on("floats", lambda d, x: lax.reduce_precision(lax.reduce_precision(x, 8, 7), 5, 7)),
    ),
}
