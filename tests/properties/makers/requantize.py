"""What stands between layers in codes."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics.quantize import Scheme, encode, scale_of_range
from tests.properties._draw import TAME, Draw, Makers, P, Program

PASS: Final = "requantize"

SHAPE: Final = (2, 7, 6, 4)
MOST: Final = 3.0


def scale(most: Any) -> Any:
    """The scale of numbers up to the magnitude of `most`."""
    return scale_of_range(-jnp.abs(most), jnp.abs(most), Scheme("int8"))[0]


def codes(x: Any, most: Any) -> Any:
    """Codes of an array."""
    return encode(x, scale(most), None, Scheme("int8"))


def program(fun: Any) -> Program:
    """A program of an array and of its magnitude."""
    args = jax.ShapeDtypeStruct(SHAPE, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    return P(fun, *args, flavours=TAME, prepare="inline,dce,cse")


def pooled(x: Any, taps: int, stride: int, padding: int) -> Any:
    pads = ((0, 0), (padding, padding), (padding, 0), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, taps, taps, 1), (1, stride, stride, 1), pads)


def _pool(d: Draw) -> Program:
    taps, stride = d.whole(2, 3), d.whole(1, 2)
    return program(lambda x, m: codes(pooled(x, taps, stride, d.whole(0, taps - 1)), m))


def _relu(d: Draw) -> Program:
    positive = d.pick(jax.nn.relu, lambda x: jnp.maximum(x, 0), lambda x: jnp.maximum(0, x))
    return program(lambda x, m: codes(positive(x), m))


def _part(d: Draw) -> Program:
    step = d.whole(1, 3)
    return program(lambda x, m: (codes(x, m), codes(x[:, ::step, 1:], m)))


def _sum(d: Draw) -> Program:
    axes = d.pick((1, 2), (0,), (3,), (0, 1, 2, 3))
    return program(lambda x, m: (codes(x, m).astype(jnp.float32) * scale(m)).sum(axes))


def _gelu(d: Draw) -> Program:
    gate = d.pick(lambda x: x * (1 + jnp.tanh(x)), lambda x: 0.5 * (jnp.tanh(x * x) + 1) * x, jax.nn.gelu)
    return program(lambda x, m: codes(gate(x), m))


def both(x: Any, most: Any) -> Any:
    """Codes of an array, and something else that is made of it."""
    return codes(x, most), x * 2


MAKERS: Final[Makers] = {
    "logistic-before-codes": (_gelu, _gelu),
    "maximum-of-codes": (_pool, _pool),
    "relu-in-clamp": (_relu, _relu),
    "part-of-codes": (_part, _part),
    "sum-of-codes": (_sum, _sum),
}

ALIKE: Final[Makers] = {
    "logistic-before-codes": (
        lambda d: program(lambda x, m: both(x * (1 + jnp.tanh(x)), m)),
        lambda d: program(lambda x, m: codes(x * (2 + jnp.tanh(x)), m)),
        lambda d: program(lambda x, m: x * (1 + jnp.tanh(x * m))),
    ),
    "maximum-of-codes": (
        lambda d: program(lambda x, m: both(pooled(x, 2, 2, 0), m)),
        lambda d: program(lambda x, m: codes(pooled(x, 1, 1, 1), m)),
        lambda d: program(lambda x, m: jnp.round(pooled(x, 2, 2, 0) * m).astype(jnp.int8)),
    ),
    "relu-in-clamp": (
        lambda d: program(lambda x, m: both(jax.nn.relu(x), m)),
        lambda d: program(lambda x, m: codes(jnp.maximum(x, 0.5), m)),
        lambda d: program(lambda x, m: codes(jnp.minimum(x, 0), m)),
    ),
    "part-of-codes": (
        lambda d: program(lambda x, m: codes(x[:, ::2], m)),
        lambda d: program(lambda x, m: (codes(x, m), codes(x[:, ::2], m + 1))),
    ),
    "sum-of-codes": (
        lambda d: program(lambda x, m: (x * m).sum((1, 2))),
        lambda d: program(lambda x, m: (codes(x, m).astype(jnp.float32) * x).sum((1, 2))),
    ),
}
