"""Products of batches of matrices."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp

from tests.properties._draw import Draw, Makers, P, Program

PASS: Final = "batched-products"


def _program(d: Draw, equation: str, *, computed: bool = True, least: int = 4) -> Program:
    """An einsum of two arrays, the second doubled before if `computed`."""
    dtype = d.pick("float32", "bfloat16")
    left, right = equation.partition("->")[0].split(",")
    sizes = {label: d.whole(least, 7) for label in {*left, *right}}
    shapes = [tuple(sizes[label] for label in labels) for labels in (left, right)]

    def fun(x: Any, y: Any) -> Any:
        return jnp.einsum(equation, x * 2, y + 1) if computed else jnp.einsum(equation, x, y)

    return P(fun, *(d.like(shape, dtype) for shape in shapes), prepare="inline,dce,cse")


_VALUES: Final = ("bhqk,bkhd->bqhd", "hqk,khd->qhd")
_SCORES: Final = ("bqhd,bkhd->bhqk", "qhd,khd->hqk", "bhqd,bkhd->bhqk")


def _followed(d: Draw, second: str, *, computed: bool = True) -> Program:
    """Values weighted, and then multiplied with a matrix over heads and their width."""
    b, h, q, k, e = (d.whole(4, 6) for _ in range(5))

    def fun(weights: Any, values: Any, w: Any) -> Any:
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values + 1 if computed else values)
        return jnp.einsum(second, mixed, w)

    shapes = (b, h, q, k), (b, k, h, 8), (h, 8, e)
    return P(fun, *(d.like(shape, "float32") for shape in shapes), prepare="inline,dce,cse,movement")


MAKERS: Final[Makers] = {
    "summed-last": (
        lambda d: _followed(d, "bqhd,hde->bqe"),
        lambda d: _followed(d, "bqhd,hde->ebq", computed=False),
    ),
    "last-stays-last": (
        lambda d: _program(d, d.pick(*_VALUES)),
        lambda d: _program(d, _VALUES[0], computed=False),
    ),
    "batch-first": (lambda d: _program(d, d.pick(*_SCORES)), lambda d: _program(d, _SCORES[0])),
}

ALIKE: Final[Makers] = {
    "summed-last": (
        lambda d: _program(d, "bhqk,bhkd->bhqd"),
        lambda d: _followed(d, "bqhd,hze->bqdze"),
    ),
    "last-stays-last": (
        lambda d: _program(d, "bhqk,bhkd->bhqd"),
        lambda d: _program(d, "qk,kd->dq"),
    ),
    "batch-first": (
        lambda d: _program(d, _SCORES[0], computed=False),
        lambda d: _program(d, "bhqd,bhkd->bhqk"),
        lambda d: _program(d, "bqhd,bhkd->bhqk"),
        lambda d: _program(d, "bqghd,bkhd->bhgqk"),
    ),
}
