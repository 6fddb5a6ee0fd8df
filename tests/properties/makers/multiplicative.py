"""Products, quotients and constant factors."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from tests.properties._draw import Draw, Makers, bounded, on

PASS: Final = "algebra"


def _above(d: Draw, x: Any) -> Any:
    """Numbers that are known to be finite and above zero."""
    return jnp.exp(bounded(d, x))


def _times(d: Draw, x: Any, number: float) -> Any:
    return d.either(jnp.multiply, x, d.of(x, number))


def _scaled(d: Draw, x: Any, a: Any, b: Any) -> Any:
    """Two factors, one of which may divide."""
    forms = (
        lambda: d.either(jnp.multiply, d.either(jnp.multiply, x, d.of(x, a)), d.of(x, b)),
        lambda: (x / d.of(x, a)) * d.of(x, b),
        lambda: (x * d.of(x, a)) / d.of(x, b),
        lambda: (x / d.of(x, a)) / d.of(x, b),
        lambda: d.of(x, b) / (x * d.of(x, a)),
        lambda: d.of(x, b) * (d.of(x, a) / x),
    )
    return d.pick(*forms)()


def _multiples(d: Draw, x: Any, a: Any, b: Any) -> Any:
    forms = (
        lambda: d.either(jnp.multiply, x, d.of(x, a)) + d.either(jnp.multiply, x, d.of(x, b)),
        lambda: x * d.of(x, a) - x * d.of(x, b),
        lambda: d.either(jnp.add, x, x * d.of(x, b)),
        lambda: x - x * d.of(x, b),
        lambda: x * d.of(x, a) - x,
    )
    return d.pick(*forms)()


def _factor(d: Draw) -> float:
    return float(d.pick(-3.0, -0.7, 0.3, 2.0, 6.5, 1e-3))


MAKERS: Final[Makers] = {
    "mul-by-one": (on("reals", lambda d, x: d.either(jnp.multiply, x, d.of(x, 1))),),
    "complex-mul-by-one": (on("complexes", lambda d, x: d.either(jnp.multiply, x, d.of(x, 1))),),
    "mul-by-minus-one": (
        on("floats", lambda d, x: d.either(jnp.multiply, x, d.of(x, -1.0))),
        on("signed", lambda d, x: d.either(jnp.multiply, x, d.of(x, -1))),
    ),
    "mul-by-zero": (
        on("ints", lambda d, x: d.either(jnp.multiply, x, d.of(x, 0))),
        on("ints", lambda d, x: _times(d, jnp.abs(bounded(d, x)), d.pick(0.0, -0.0))),
    ),
    "mul-finite-by-zero": (on("ints", lambda d, x: _times(d, bounded(d, x), 0.0)),),
    "mul-of-negs": (on("numbers", lambda d, x, y: (-x) * (-y), 2),),
    "div-of-negs": (on("floats", lambda d, x, y: (-x) / (-y), 2),),
    "div-by-one": (on("reals", lambda d, x: lax.div(x, jnp.broadcast_to(d.of(x, 1), x.shape))),),
    "div-by-minus-one": (on("floats", lambda d, x: x / d.of(x, -1.0)),),
    "div-by-self": (on("ints", lambda d, x: (lambda y: y / y)(_above(d, x))),),
    "zero-div": (
        on("ints", lambda d, x: (lambda y: d.of(y, d.pick(0.0, -0.0)) / y)(_above(d, x))),
        on("ints", lambda d, x: lax.div(jnp.zeros_like(x), jnp.maximum(x, d.of(x, 1)))),
    ),
    "zero-div-nonzero": (on("ints", lambda d, x: (lambda y: d.of(y, 0.0) / y)(-_above(d, x))),),
    "div-by-power-of-two": (on("floats", lambda d, x: x / d.of(x, d.pick(2.0, -4.0, 0.125, 1024.0))),),
    "merge-integer-factors": (
        on("ints", lambda d, x: (x * d.of(x, d.whole(0, 99))) * d.of(x, d.whole(2, 99))),
    ),
    "merge-factors": (on("floats", lambda d, x: _scaled(d, x, _factor(d), _factor(d))),),
    "common-integer-factor": (
        on("signed", lambda d, x: _multiples(d, x, d.whole(-9, 9), d.whole(-9, 9))),
        on("ints", lambda d, x: d.either(jnp.add, x, x * d.of(x, 100))),
    ),
    "common-factor": (
        on("floats", lambda d, x: _multiples(d, x, d.pick(0.5, 3.0, -2.0), d.pick(0.25, 2.0, 7.0))),
    ),
    "neg-into-factor": (
        on(
            "floats",
            lambda d, x: d.pick(lambda y, c: y * c, lambda y, c: y / c, lambda y, c: c / y)(-x, d.of(x, 3.0)),
        ),
        on("ints", lambda d, x: (-x) * d.of(x, 5)),
    ),
    "neg-of-factor": (
        on(
            "floats",
            lambda d, x: -d.pick(lambda y, c: y * c, lambda y, c: y / c, lambda y, c: c / y)(x, d.of(x, 3.0)),
        ),
        on("ints", lambda d, x: -(d.of(x, 5) * x)),
    ),
}

ALIKE: Final[Makers] = {
    "mul-by-one": (on("complexes", lambda d, x: x * d.of(x, 1)),),
    "complex-mul-by-one": (on("complexes", lambda d, x: x * d.of(x, 1j)),),
    "mul-by-minus-one": (on("ints", lambda d, x: x * d.of(x, 2)),),
    "mul-by-zero": (
        on("floats", lambda d, x: x * d.of(x, 0.0)),
        on("floats", lambda d, x: jnp.tanh(x) * d.of(x, 0.0)),
    ),
    "mul-finite-by-zero": (on("floats", lambda d, x: jnp.exp(x) * d.of(x, 0.0)),),
    "mul-of-negs": (on("numbers", lambda d, x, y: (-x) * y, 2),),
    "div-of-negs": (on("signed", lambda d, x, y: lax.div(-x, -y), 2),),
    "div-by-one": (on("complexes", lambda d, x: lax.div(x, jnp.broadcast_to(d.of(x, 1), x.shape))),),
    "div-by-minus-one": (on("signed", lambda d, x: lax.div(x, jnp.broadcast_to(d.of(x, -1), x.shape))),),
    "div-by-self": (
        on("floats", lambda d, x: x / x),
        on("floats", lambda d, x: (lambda y: y / y)(jnp.tanh(x))),
    ),
    "zero-div": (
        on("floats", lambda d, x: d.of(x, 0.0) / x),
        on("ints", lambda d, x: (lambda y: d.of(y, 0.0) / y)(-_above(d, x))),
    ),
    "zero-div-nonzero": (on("floats", lambda d, x: d.of(x, 0.0) / jnp.tanh(x)),),
    "div-by-power-of-two": (on("floats", lambda d, x: x / d.of(x, 3.0)),),
    "merge-integer-factors": (on("ints", lambda d, x: (lambda y: (y * d.of(x, 3), y))(x * d.of(x, 2))),),
    "merge-factors": (
        on(lambda d: d.floats(None, "float32"), lambda d, x: (x * d.of(x, 1e30)) * d.of(x, 1e30)),
        on("floats", lambda d, x, y: (x * y) * d.of(x, 3.0), 2),
    ),
    "common-integer-factor": (on("ints", lambda d, x, y: x * d.of(x, 3) + y * d.of(x, 3), 2),),
    "common-factor": (on("floats", lambda d, x: (lambda y: (y - x, y))(x * d.of(x, 4097.0))),),
    "neg-into-factor": (on("signed", lambda d, x: lax.div(-x, jnp.broadcast_to(d.of(x, 3), x.shape))),),
    "neg-of-factor": (on("floats", lambda d, x, y: -(x * y), 2),),
}
