"""Greatest and least, comparisons, choices, conversions."""

from __future__ import annotations

import operator
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import Draw, Makers, P, Program, on

PASS: Final = "algebra"

ORDERS: Final = (operator.lt, operator.le, operator.gt, operator.ge)
COMPARISONS: Final = (*ORDERS, operator.eq, operator.ne)


def _extreme(d: Draw) -> Any:
    return d.pick(jnp.maximum, jnp.minimum)


def _bounds(d: Draw, x: Any) -> Any:
    """max(max(x, 1), 2), min(min(x, 2), 1)"""
    op, first, second = d.pick((jnp.maximum, 1, 2), (jnp.minimum, 2, 1))
    return d.either(op, d.either(op, x, d.of(x, first)), d.of(x, second))


def _clamped(d: Draw, x: Any, low: Any, high: Any) -> Any:
    return lax.clamp(np.asarray(low).astype(x.dtype), x, np.asarray(high).astype(x.dtype))


def _choice(d: Draw, p: Any) -> Any:
    """A comparison with a number of what a condition chooses."""
    kind = d.pick("int32", "float32", "bool", "two")
    if kind == "bool":
        return d.pick(operator.eq, operator.ne)(p, d.pick(np.True_, np.False_))
    chosen = jnp.where(p, np.float32(2.0), np.float32(0.0)) if kind == "two" else p.astype(kind)
    return d.pick(*COMPARISONS)(chosen, np.asarray(d.pick(0, 1)).astype(chosen.dtype))


def _widened(d: Draw) -> Program:
    narrow, wide = d.pick(
        ("bfloat16", "float32"), ("float16", "float32"), ("int8", "int32"), ("uint8", "float32")
    )
    compare = d.pick(*COMPARISONS)
    x = d.like(None, narrow)
    return P(lambda x, y: compare(x.astype(wide), y.astype(wide)), x, x)


def _there_and_back(d: Draw) -> Program:
    first, second, third = d.pick(
        ("bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "float16"),
        ("int8", "float32", "int8"),
        ("int16", "float32", "int16"),
        ("uint8", "bfloat16", "uint8"),
        ("bool", "float32", "bool"),
        ("bool", "int32", "float32"),
        ("int8", "int32", "float16"),
        ("bfloat16", "float32", "float16"),
        ("uint8", "int32", "int8"),
        ("int8", "bfloat16", "int8"),
        ("int8", "int16", "bool"),
    )
    return P(lambda x: x.astype(second).astype(third), d.like(None, first))


def _nested(d: Draw, p: Any, x: Any, y: Any, z: Any) -> Any:
    inner = lax.select_n(p, x, y)
    return lax.select_n(p, inner, z) if d.pick(True, False) else lax.select_n(p, z, inner)


def _cases(fun: Any, cases: int = 2, kind: str = "anything", scalar: bool = True) -> Any:
    """A maker of a program of a condition and some cases."""

    def make(d: Draw) -> Program:
        x = getattr(d, kind)()
        p = d.bools(() if scalar and d.rng.random() < 0.2 else x.shape)
        return P(lambda *args: fun(d, *args), p, *[x] * cases)

    return make


MAKERS: Final[Makers] = {
    "max-of-same": (on("reals", lambda d, x: _extreme(d)(x, x)),),
    "max-of-ordered": (
        on("floats", lambda d, x: d.either(jnp.maximum, jnp.tanh(x), d.of(x, -2.0))),
        on("floats", lambda d, x: d.either(jnp.minimum, x, d.of(x, np.inf))),
        on("floats", lambda d, x: d.either(jnp.maximum, x, d.of(x, -np.inf))),
        on("signed", lambda d, x: d.either(jnp.maximum, jnp.minimum(x, d.of(x, 3)), d.of(x, 3))),
    ),
    "max-of-max": (
        on("ints", lambda d, x, y: (lambda m: d.either(m, d.either(m, x, y), y))(_extreme(d)), 2),
        on("bools", lambda d, x, y: lax.max(lax.max(x, y), y), 2),
    ),
    "merge-bounds": (on("reals", _bounds),),
    "clamp-of-inside": (
        on(
            "floats",
            lambda d, x: _clamped(d, jnp.tanh(x), *d.pick((-2.0, 2.0), (-np.inf, 1.5), (-3.0, np.inf))),
        ),
        on("signed", lambda d, x: _clamped(d, jnp.minimum(jnp.maximum(x, d.of(x, -3)), d.of(x, 3)), -3, 3)),
    ),
    "clamp-of-clamp": (
        on(
            "reals",
            lambda d, x: _clamped(
                d, _clamped(d, x, d.whole(0, 3), d.whole(3, 9)), d.whole(1, 4), d.whole(4, 7)
            ),
        ),
        on(
            "floats",
            lambda d, x: _clamped(
                d, _clamped(d, x, -0.5, d.pick(0.25, np.inf)), d.pick(-1.0, -np.inf), 0.125
            ),
        ),
    ),
    "compare-with-self": (
        on("reals", lambda d, x: d.pick(operator.lt, operator.gt)(x, x)),
        on("ints", lambda d, x: d.pick(*COMPARISONS)(x, x)),
        on(
            "floats",
            lambda d, x: (lambda y: d.pick(*COMPARISONS)(y, y))(lax.iota(np.float32, 3) + 0 * x.size),
        ),
    ),
    "compare-ranges": (
        on("floats", lambda d, x: d.pick(operator.gt, operator.ge, operator.eq)(jnp.tanh(x), d.of(x, 2.0))),
        on("floats", lambda d, x: jnp.exp(x) < d.of(x, -1.0)),
        on(
            lambda d: d.like(None, "uint8"),
            lambda d, x: d.pick(*ORDERS)(x.astype("int32"), np.int32(d.pick(256, -1))),
        ),
    ),
    "not-of-comparison": (
        on("ints", lambda d, x, y: ~d.pick(*COMPARISONS)(x, y), 2),
        on("floats", lambda d, x, y: ~d.pick(operator.eq, operator.ne)(x, y), 2),
        on("ints", lambda d, x: ~d.pick(*ORDERS)(x.astype("float32"), np.float32(1.5))),
    ),
    "compare-choice": (on("bools", _choice),),
    "compare-difference-with-zero": (
        on("ints", lambda d, x, y: d.pick(operator.eq, operator.ne)(x - y, d.of(x, 0)), 2),
    ),
    "compare-before-widening": (_widened,),
    "select-of-same": (_cases(lambda d, p, x: lax.select_n(p, x, x), 1),),
    "select-by-constant": (
        on("anything", lambda d, x, y: lax.select_n(np.full(x.shape, d.pick(True, False)), x, y), 2),
        on("anything", lambda d, x, y: lax.select_n(np.int32(d.pick(0, 1, 2)), x, y, x), 2),
    ),
    "select-by-not": (_cases(lambda d, p, x, y: lax.select_n(~p, x, y)),),
    "select-of-truth": (
        on(
            "bools",
            lambda d, p: lax.select_n(
                p, *d.pick((jnp.zeros_like(p), jnp.ones_like(p)), (jnp.ones_like(p), jnp.zeros_like(p)))
            ),
        ),
    ),
    "select-of-select": (_cases(_nested, 3),),
    "convert-to-same": (lambda d: P(lambda w: w.astype(w.dtype), jnp.asarray(d.pick(1.5, 2, 1j))),),
    "convert-of-convert": (
        _there_and_back,
        on(lambda d: d.like(None, "uint8"), lambda d, x: x.astype("bfloat16").astype("uint8")),
    ),
}

ALIKE: Final[Makers] = {
    "max-of-same": (on("reals", lambda d, x, y: jnp.maximum(x, y), 2),),
    "max-of-ordered": (
        on("floats", lambda d, x: jnp.maximum(jnp.tanh(x), d.of(x, 0.5))),
        on("floats", lambda d, x: jnp.maximum(jax.nn.relu(x), d.of(x, 0.0))),
    ),
    "max-of-max": (on("floats", lambda d, x, y: lax.max(lax.max(x, y), y), 2),),
    "merge-bounds": (
        on("floats", lambda d, x: jnp.maximum(jnp.minimum(x, d.of(x, 1.0)), d.of(x, 2.0))),
        on("floats", lambda d, x: jnp.maximum(jnp.maximum(x, d.of(x, 1.0)), d.of(x, 1.0))),
    ),
    "clamp-of-inside": (on("floats", lambda d, x: _clamped(d, jnp.tanh(x), -1.0, 1.0)),),
    "clamp-of-clamp": (
        on("floats", lambda d, x: (lambda y: (_clamped(d, y, 0.0, 1.0), y))(_clamped(d, x, -1.0, 2.0))),
    ),
    "compare-with-self": (on("floats", lambda d, x: d.pick(operator.eq, operator.ne, operator.le)(x, x)),),
    "compare-ranges": (
        on("floats", lambda d, x: jnp.tanh(x) < d.of(x, 1.0)),
        on("floats", lambda d, x: jnp.exp(x) >= d.of(x, -1.0)),
    ),
    "not-of-comparison": (on("floats", lambda d, x, y: ~d.pick(*ORDERS)(x, y), 2),),
    "compare-choice": (on("ints", lambda d, x: x == d.of(x, 1)),),
    "compare-difference-with-zero": (on("floats", lambda d, x, y: (x - y) == d.of(x, 0.0), 2),),
    "compare-before-widening": (
        on(lambda d: d.like(None, "int32"), lambda d, x, y: x.astype("float32") < y.astype("float32"), 2),
        on(
            lambda d: d.like(None, "float32"), lambda d, x, y: x.astype("bfloat16") == y.astype("bfloat16"), 2
        ),
    ),
    "select-of-same": (_cases(lambda d, p, x, y: lax.select_n(p, x, y)),),
    "select-by-constant": (
        on(lambda d: d.floats((3,)), lambda d, x, y: lax.select_n(np.array([True, False, True]), x, y), 2),
    ),
    "select-by-not": (_cases(lambda d, p, x, y: (lax.select_n(p, x, y), ~p)),),
    "select-of-truth": (on("bools", lambda d, p, q: lax.select_n(p, jnp.zeros_like(p), q), 2),),
    "select-of-select": (
        on(
            lambda d: d.like((3,), "bool"),
            lambda d, p, q: lax.select_n(
                p, np.ones(3, "f"), lax.select_n(q, np.ones(3, "f"), np.zeros(3, "f"))
            ),
            2,
        ),
    ),
    "convert-to-same": (on(lambda d: d.like(None, "int8"), lambda d, x: x.astype("uint8")),),
    "convert-of-convert": (
        on(lambda d: d.like(None, "float32"), lambda d, x: x.astype("bfloat16").astype("float32")),
        on(lambda d: d.like(None, "int32"), lambda d, x: x.astype("float32").astype("int32")),
    ),
}
