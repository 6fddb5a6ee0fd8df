"""Sums, differences and signs."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from tests.properties._draw import Draw, Makers, bounded, on

PASS: Final = "algebra"


def _never_minus_zero(d: Draw, x: Any) -> Any:
    return d.pick(jnp.abs, jnp.exp, jnp.square)(x)


def _merged(d: Draw, x: Any, a: Any, b: Any) -> Any:
    """Two constants of one sign, added or subtracted."""
    forms = (
        lambda: d.either(jnp.add, x, d.of(x, a)) + d.of(x, b),
        lambda: d.of(x, b) + (d.of(x, a) + x),
        lambda: (x - d.of(x, a)) - d.of(x, b),
        lambda: d.of(x, b) - (x - d.of(x, a)),
        lambda: d.of(x, b) + (d.of(x, a) - x),
    )
    return d.pick(*forms)()


MAKERS: Final[Makers] = {
    "add-nothing": (
        on("ints", lambda d, x: d.either(lax.add, x, jnp.broadcast_to(d.of(x, 0), x.shape))),
        on("floats", lambda d, x: d.either(jnp.add, x, d.of(x, -0.0))),
        on("floats", lambda d, x: d.either(jnp.add, _never_minus_zero(d, x), d.of(x, 0.0))),
    ),
    "add-zero": (on("floats", lambda d, x: d.either(jnp.add, x, d.of(x, 0.0))),),
    "subtract-nothing": (
        on("reals", lambda d, x: x - d.of(x, 0)),
        on("floats", lambda d, x: _never_minus_zero(d, x) - d.of(x, -0.0)),
    ),
    "subtract-zero": (on("floats", lambda d, x: x - d.of(x, -0.0)),),
    "subtract-self": (
        on("ints", lambda d, x: x - x),
        on("ints", lambda d, x: (lambda y: y - y)(bounded(d, x))),
    ),
    "subtract-from-nothing": (
        on("ints", lambda d, x: d.of(x, 0) - x),
        on("floats", lambda d, x: d.of(x, -0.0) - x),
        on("floats", lambda d, x: (lambda y: d.of(y, 0.0) - y)(jnp.exp(jnp.tanh(x)))),
    ),
    "subtract-from-zero": (on("floats", lambda d, x: d.of(x, 0.0) - x),),
    "neg-of-neg": (on("numbers", lambda d, x: lax.neg(-x)),),
    "add-of-neg": (
        on("numbers", lambda d, x, y: d.either(jnp.add, x, -y), 2),
        on("floats", lambda d, x: d.either(jnp.add, x, -jnp.sum(x))),
    ),
    "subtract-neg": (on("numbers", lambda d, x, y: x - (-y), 2),),
    "neg-of-integer-difference": (on("ints", lambda d, x, y: -(x - y), 2),),
    "neg-of-difference": (on("floats", lambda d, x, y: -(x - y), 2),),
    "merge-integer-terms": (on("ints", lambda d, x: _merged(d, x, d.whole(0, 200), d.whole(1, 90))),),
    "merge-terms": (
        on("floats", lambda d, x: _merged(d, x, d.pick(0.5, 2.0, 3.0), d.pick(0.25, 1.0, 7.0))),
        on("floats", lambda d, x: (x - d.of(x, 2.0)) + d.of(x, -0.3)),
    ),
}

ALIKE: Final[Makers] = {
    "add-nothing": (
        on("floats", lambda d, x: x + d.of(x, 0.0)),
        on("ints", lambda d, x: x + d.of(x, 1)),
    ),
    "add-zero": (on("floats", lambda d, x: x + d.of(x, 1e-3)),),
    "subtract-nothing": (on("floats", lambda d, x: x - d.of(x, -0.0)),),
    "subtract-zero": (on("floats", lambda d, x: d.of(x, 0.0) - x),),
    "subtract-self": (on("floats", lambda d, x: x - x), on("ints", lambda d, x: x - ~x)),
    "subtract-from-nothing": (on("floats", lambda d, x: d.of(x, 0.0) - x),),
    "subtract-from-zero": (on("floats", lambda d, x: x - d.of(x, 0.0)),),
    "neg-of-neg": (on("floats", lambda d, x: -jnp.abs(-x)),),
    "add-of-neg": (on("ints", lambda d, x: x + ~x),),
    "subtract-neg": (on("numbers", lambda d, x, y: (-x) - y, 2),),
    "neg-of-integer-difference": (
        on("ints", lambda d, x, y: (lambda z: (-z, z))(x - y), 2),
        on("floats", lambda d, x, y: -(x - y), 2),
    ),
    "neg-of-difference": (
        on("floats", lambda d, x, y: (lambda z: (-z, z))(x - y), 2),
        on("floats", lambda d, x, y: -(x + y), 2),
    ),
    "merge-integer-terms": (on("ints", lambda d, x, y: (x + y) + d.of(x, 3), 2),),
    "merge-terms": (on("floats", lambda d, x: (x + d.of(x, 3.0)) - d.of(x, 3.0)),),
}
