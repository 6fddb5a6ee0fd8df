"""Algebra: products and quotients, and constant factors in them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._algebra import (
    Alike,
    Case,
    M,
    N,
    S,
    U,
    X,
    Y,
    Z,
    check_alike,
    check_case,
    check_meaning,
    name_of,
    unit,
)

R = "reassociate"
F = np.float32

CASES = [
    Case("mul-by-one", lambda x: x * 1.0, (X,), "%0"),
    Case("mul-by-one", lambda n: 1 * n, (N,), "%0"),
    Case(
        "mul-by-one",
        lambda s: s * jnp.ones(3),
        (S,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] %0; %1",
    ),
    Case("complex-mul-by-one", lambda z: z * 1.0, (Z,), "%0", R),
    Case("mul-by-minus-one", lambda x: x * -1.0, (X,), "%1 = neg %0; %1"),
    Case("mul-by-minus-one", lambda n: -1 * n, (N,), "%1 = neg %0; %1"),
    Case(
        "mul-by-zero",
        lambda n: n * 0,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case(
        "mul-by-zero",
        lambda n: (lambda f: f * f * 0.0)(n.astype(jnp.float32)),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0.0; %1",
    ),
    Case(
        "mul-finite-by-zero",
        lambda n: n.astype(jnp.float32) * 0.0,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0.0; %1",
        R,
    ),
    Case("mul-of-negs", lambda x, y: (-x) * (-y), (X, Y), "%2 = mul %0 %1; %2"),
    Case("mul-of-negs", lambda n, m: (-n) * (-m), (N, M), "%2 = mul %0 %1; %2"),
    Case("div-of-negs", lambda x, y: (-x) / (-y), (X, Y), "%2 = div %0 %1; %2"),
    Case("div-by-one", lambda x: x / 1.0, (X,), "%0"),
    Case("div-by-one", lambda n: lax.div(n, np.int32(1)), (N,), "%0"),
    Case("div-by-minus-one", lambda x: x / -1.0, (X,), "%1 = neg %0; %1"),
    Case(
        "div-by-self",
        lambda n: (lambda f: f / f)(unit(n) + 2.0),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 1.0; %1",
    ),
    Case(
        "zero-div",
        lambda n: 0.0 / (unit(n) + 2.0),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0.0; %1",
    ),
    Case(
        "zero-div-nonzero",
        lambda n: 0.0 / (unit(n) - 2.0),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0.0; %1",
        R,
    ),
    Case("div-by-power-of-two", lambda x: x / 8.0, (X,), "%1 = mul %0 0.125; %1"),
    Case("div-by-power-of-two", lambda x: x / -0.25, (X,), "%1 = mul %0 -4.0; %1"),
    Case("merge-integer-factors", lambda n: (n * 3) * 5, (N,), "%1 = mul %0 15; %1"),
    Case("merge-integer-factors", lambda u: (u * 20) * 30, (U,), "%1 = mul %0 88:u8[]; %1"),
    Case("merge-factors", lambda x: (x * 3.0) * 5.0, (X,), "%1 = mul %0 15.0; %1", R),
    Case("merge-factors", lambda x: (x / 3.0) / 5.0, (X,), "%1 = div %0 15.0; %1", R),
    Case("merge-factors", lambda x: (x / 3.0) * 6.0, (X,), "%1 = mul %0 2.0; %1", R),
    Case("merge-factors", lambda x: (x * 6.0) / 3.0, (X,), "%1 = mul %0 2.0; %1", R),
    Case("merge-factors", lambda y: (6.0 / y) * 3.0, (Y,), "%1 = div 18.0 %0; %1", R),
    Case("merge-factors", lambda y: (6.0 / y) / 3.0, (Y,), "%1 = div 2.0 %0; %1", R),
    Case("merge-factors", lambda y: 6.0 / (y * 3.0), (Y,), "%1 = div 2.0 %0; %1", R),
    Case("merge-factors", lambda y: 6.0 / (y / 3.0), (Y,), "%1 = div 18.0 %0; %1", R),
    Case("merge-factors", lambda y: 6.0 / (3.0 / y), (Y,), "%1 = mul %0 2.0; %1", R),
    Case("common-integer-factor", lambda n: n * 3 + n * 4, (N,), "%1 = mul %0 7; %1"),
    Case("common-integer-factor", lambda n: n - n * 4, (N,), "%1 = mul %0 -3; %1"),
    Case("common-factor", lambda x: x * 3.0 + x * 4.0, (X,), "%1 = mul %0 7.0; %1", R),
    Case("common-factor", lambda x: x * 3.0 - x * 5.0, (X,), "%1 = mul %0 -2.0; %1", R),
    Case("common-factor", lambda x: x + x * 4.0, (X,), "%1 = mul %0 5.0; %1", R),
    Case("common-factor", lambda x: x * 4.0 - x, (X,), "%1 = mul %0 3.0; %1", R),
    Case("neg-into-factor", lambda x: (-x) * 3.0, (X,), "%1 = mul %0 -3.0; %1"),
    Case("neg-into-factor", lambda x: (-x) / 3.0, (X,), "%1 = div %0 -3.0; %1"),
    Case("neg-into-factor", lambda y: 3.0 / (-y), (Y,), "%1 = div -3.0 %0; %1"),
    Case("neg-into-factor", lambda n: (-n) * 3, (N,), "%1 = mul %0 -3; %1"),
    Case("neg-of-factor", lambda x: -(x * 3.0), (X,), "%1 = mul %0 -3.0; %1"),
    Case("neg-of-factor", lambda x: -(x / 3.0), (X,), "%1 = div %0 -3.0; %1"),
    Case("neg-of-factor", lambda y: -(3.0 / y), (Y,), "%1 = div -3.0 %0; %1"),
]

ALIKE = [
    Alike("mul-by-one", "not quite one", lambda x: x * F(1.0000001), (X,)),
    Alike("mul-by-one", "complex", lambda z: z * 1.0, (Z,)),
    Alike("complex-mul-by-one", "the imaginary unit", lambda z: z * 1j, (Z,)),
    Alike("mul-by-minus-one", "the greatest of an unsigned dtype", lambda u: u * np.uint8(255), (U,)),
    Alike("mul-by-minus-one", "complex", lambda z: z * -1.0, (Z,)),
    Alike("mul-by-zero", "x may be infinite", lambda x: x * 0.0, (X,)),
    Alike(
        "mul-by-zero",
        "x may be negative, which gives -0.0",
        lambda n: n.astype(jnp.float32) * 0.0,
        (N,),
        "exact",
    ),
    Alike("mul-finite-by-zero", "x may be infinite", lambda x: x * 0.0, (X,)),
    Alike("mul-finite-by-zero", "exp may be infinite", lambda x: jnp.exp(x) * 0.0, (X,)),
    Alike("mul-of-negs", "one neg", lambda x, y: (-x) * y, (X, Y)),
    Alike("div-of-negs", "integers: the least has no negative", lambda n, m: lax.div(-n, -m), (N, M)),
    Alike("div-by-one", "one by x", lambda y: 1.0 / y, (Y,)),
    Alike("div-by-minus-one", "minus one by x", lambda y: -1.0 / y, (Y,)),
    Alike("div-by-self", "x may be zero", lambda n: (lambda f: f / f)(unit(n)), (N,)),
    Alike("div-by-self", "x may be zero, integers", lambda n: lax.div(n, n), (N,)),
    Alike("zero-div", "x may be zero", lambda y: 0.0 / y, (Y,)),
    Alike("zero-div-nonzero", "x may be NaN", lambda y: 0.0 / jnp.where(y > 0, y, 1.0), (Y,)),
    Alike("div-by-power-of-two", "another number", lambda x: x / 3.0, (X,)),
    Alike("div-by-power-of-two", "the reciprocal is subnormal", lambda x: x / F(2.0**127), (X,)),
    Alike("div-by-power-of-two", "integers", lambda n: lax.div(n, np.int32(4)), (N,)),
    Alike("merge-integer-factors", "a division between", lambda n: lax.div(n * 3, np.int32(5)) * 7, (N,)),
    Alike("merge-factors", "no constant", lambda x, y: (x * y) * 3.0, (X, Y)),
    Alike("merge-factors", "the product overflows", lambda x: (x * F(1e30)) * F(1e30), (X,)),
    Alike("merge-factors", "the product underflows", lambda x: (x * F(1e-30)) * F(1e-30), (X,)),
    Alike("merge-factors", "also read elsewhere", lambda x: (lambda y: [y, y * 5.0])(x * 3.0), (X,)),
    Alike("merge-factors", "complex", lambda z: (z * 3.0) * 5.0, (Z,)),
    Alike("common-integer-factor", "different values", lambda n, m: n * 3 + m * 4, (N, M)),
    Alike("common-factor", "different values", lambda x, y: x * 3.0 + y * 4.0, (X, Y)),
    Alike("common-factor", "nothing is left", lambda x: x * 3.0 - x * 3.0, (X,)),
    Alike("common-factor", "how halves are split", lambda x: (lambda g: g - (g - x))(x * 4097.0), (X,)),
    Alike("neg-into-factor", "no constant", lambda x, y: (-x) * y, (X, Y)),
    Alike("neg-into-factor", "integer division", lambda n: lax.div(-n, np.int32(3)), (N,)),
    Alike("neg-of-factor", "also read elsewhere", lambda x: (lambda y: [y, -y])(x * 3.0), (X,)),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", ALIKE, ids=name_of)
def test_alike(case: Alike) -> None:
    check_alike(case)


def test_meaning() -> None:
    check_meaning(CASES)
