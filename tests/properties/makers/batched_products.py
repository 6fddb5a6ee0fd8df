"""Products of batches of matrices."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp

from tests.properties._draw import TAME, Draw, Makers, P, Program

PASS: Final = "batched-products"


def _program(d: Draw, equation: str, *, computed: bool = True) -> Program:
    """An einsum of two arrays, the second doubled before if `computed`."""
    dtype = d.pick("float32", "bfloat16")
    left, right = equation.partition("->")[0].split(",")
    sizes = {label: d.whole(7, 9) for label in {*left, *right}}
    shapes = [tuple(sizes[label] for label in labels) for labels in (left, right)]

    def fun(x: Any, y: Any) -> Any:
        return jnp.einsum(equation, x * 2, y + 1) if computed else jnp.einsum(equation, x, y)

    return P(fun, *(d.like(shape, dtype) for shape in shapes), flavours=TAME, prepare="inline,dce,cse")


_VALUES: Final = ("bhqk,bkhd->bqhd", "hqk,khd->qhd")
_SCORES: Final = ("bqhd,bkhd->bhqk", "qhd,khd->hqk", "bhqd,bkhd->bhqk")


def _followed(d: Draw, second: str, *, computed: bool = True) -> Program:
    """Values weighted, and then multiplied with a matrix over heads and their width."""
    b, h, q, k, e = (d.whole(7, 9) for _ in range(5))

    def fun(weights: Any, values: Any, w: Any) -> Any:
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values + 1 if computed else values)
        return jnp.einsum(second, mixed, w)

    shapes = (b, h, q, k), (b, k, h, 8), (h, 8, e)
    return P(
        fun, *(d.like(shape, "float32") for shape in shapes), flavours=TAME, prepare="inline,dce,cse,movement"
    )


def _codes(d: Draw, equation: str) -> Program:
    """An einsum of two arrays of int8, summed in int32."""
    left, right = equation.partition("->")[0].split(",")
    sizes = {label: d.whole(7, 9) for label in {*left, *right}}
    shapes = [tuple(sizes[label] for label in labels) for labels in (left, right)]

    def fun(x: Any, y: Any) -> Any:
        return jnp.einsum(equation, x, y, preferred_element_type=jnp.int32)

    return P(fun, *(d.ints(shape, "int8") for shape in shapes), prepare="inline,dce,cse")


MAKERS: Final[Makers] = {
    "int8-rows-on-the-left": (
        lambda d: _codes(d, d.pick("bhkd,bhqk->bhdq", "bkd,bqk->bdq")),
        lambda d: _codes(d, "bhqk,bhkd->bqhd"),
    ),
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
    "int8-rows-on-the-left": (
        lambda d: _codes(d, "bhqk,bhkd->bhqd"),
        lambda d: _codes(d, "bhqd,bhkd->bhqk"),
        lambda d: _codes(d, "kd,qk->dq"),
    ),
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
