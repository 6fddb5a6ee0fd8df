"""Algebra: powers, roots, exponentials, functions of one number."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._algebra import (
    Alike,
    Case,
    N,
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
P = np.array([0.0, 0.25, 3.0], np.float32)

CASES = [
    Case(
        "pow-zero",
        lambda p: lax.pow(p, np.float32(0.0)),
        (P,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 1.0; %1",
    ),
    Case("pow-one", lambda p: lax.pow(p, np.float32(1.0)), (P,), "%0"),
    Case("pow-of-constant-exponent", lambda p: p**2.0, (P,), "%1 = square %0; %1", R),
    Case("pow-of-constant-exponent", lambda p: p**3.0, (P,), "%1 = integer_pow[y=3] %0; %1", R),
    Case(
        "pow-of-constant-exponent", lambda p: lax.pow(p, np.int32(4)), (P,), "%1 = integer_pow[y=4] %0; %1", R
    ),
    Case(
        "pow-of-constant-exponent",
        lambda p: (p + 1.0) ** -1.0,
        (P,),
        "%1 = add %0 1.0; %2 = div 1.0 %1; %2",
        R,
    ),
    Case(
        "pow-of-constant-exponent",
        lambda p: (p + 1.0) ** -2.0,
        (P,),
        "%1 = add %0 1.0; %2 = div 1.0 %1; %3 = square %2; %3",
        R,
    ),
    Case(
        "pow-of-constant-exponent",
        lambda p: (jnp.abs(p) + 1.0) ** 0.5,
        (P,),
        "%1 = abs %0; %2 = add %1 1.0; %3 = sqrt[accuracy=None] %2; %3",
        R,
    ),
    Case(
        "pow-of-constant-exponent",
        lambda p: (jnp.square(p) + 1.0) ** -0.5,
        (P,),
        "%1 = square %0; %2 = add %1 1.0; %3 = rsqrt[accuracy=None] %2; %3",
        R,
    ),
    Case(
        "integer-pow-zero",
        lambda n: lax.integer_pow(n, 0),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 1; %1",
    ),
    Case("integer-pow-one", lambda x: lax.integer_pow_p.bind(x, y=1), (X,), "%0"),
    Case("integer-pow-two", lambda x: x**2, (X,), "%1 = square %0; %1"),
    Case("integer-pow-minus-one", lambda y: y**-1, (Y,), "%1 = div 1.0 %0; %1"),
    Case("integer-power-of-power", lambda n: (n**3) ** 2, (N,), "%1 = integer_pow[y=6] %0; %1"),
    Case("power-of-power", lambda x: (x**3) ** 2, (X,), "%1 = integer_pow[y=6] %0; %1", R),
    Case("power-of-power", lambda x: jnp.square(x**2), (X,), "%1 = integer_pow[y=4] %0; %1", R),
    Case("even-power-of-sign", lambda x: jnp.square(-x), (X,), "%1 = square %0; %1"),
    Case("even-power-of-sign", lambda x: jnp.abs(x) ** 4, (X,), "%1 = integer_pow[y=4] %0; %1"),
    Case("even-power-of-sign", lambda z: jnp.square(-z), (Z,), "%1 = square %0; %1"),
    Case("even-power-of-sign", lambda n: (-n) ** 2, (N,), "%1 = square %0; %1"),
    Case(
        "square-of-sqrt",
        lambda p: jnp.square(jnp.sqrt(jnp.exp(p) + 1.0)),
        (P,),
        "%1 = exp[accuracy=None] %0; %2 = add %1 1.0; %2",
        R,
    ),
    Case(
        "sqrt-times-sqrt",
        lambda p: (lambda r: r * r)(jnp.sqrt(jnp.exp(p) + 1.0)),
        (P,),
        "%1 = exp[accuracy=None] %0; %2 = add %1 1.0; %2",
        R,
    ),
    Case("reciprocal-of-sqrt", lambda p: 1.0 / jnp.sqrt(p), (P,), "%1 = rsqrt[accuracy=None] %0; %1", R),
    Case("reciprocal-of-rsqrt", lambda p: 1.0 / lax.rsqrt(p), (P,), "%1 = sqrt[accuracy=None] %0; %1", R),
    Case(
        "sqrt-of-reciprocal",
        lambda p: jnp.sqrt(1 / jnp.exp(p)),
        (P,),
        "%1 = exp[accuracy=None] %0; %2 = rsqrt[accuracy=None] %1; %2",
        R,
    ),
    Case("log-of-exp", lambda x: jnp.log(jnp.exp(x)), (X,), "%0", R),
    Case(
        "exp-of-log",
        lambda x: jnp.exp(jnp.log(jnp.exp(x) + 1.0)),
        (X,),
        "%1 = exp[accuracy=None] %0; %2 = add %1 1.0; %2",
        R,
    ),
    Case("log1p-of-expm1", lambda x: jnp.log1p(jnp.expm1(x)), (X,), "%0", R),
    Case(
        "logistic-written-out",
        lambda x: 1.0 / (1.0 + jnp.exp(-x)),
        (X,),
        "%1 = logistic[accuracy=None] %0; %1",
        R,
    ),
    Case(
        "logistic-written-out",
        lambda x: 1.0 / (jnp.exp(-x) + 1.0),
        (X,),
        "%1 = logistic[accuracy=None] %0; %1",
        R,
    ),
    Case("abs-of-nonnegative", lambda x: jnp.abs(jnp.exp(x)), (X,), "%1 = exp[accuracy=None] %0; %1"),
    Case("abs-of-nonnegative", lambda x: jnp.abs(jnp.abs(x)), (X,), "%1 = abs %0; %1"),
    Case(
        "abs-of-nonnegative",
        lambda u: jnp.abs(u.astype(jnp.int32)),
        (U,),
        "%1 = convert_element_type[new_dtype=int32 weak_type=False] %0; %1",
    ),
    Case(
        "abs-of-nonnegative-or-minus-zero",
        lambda p: jnp.abs(jnp.sqrt(p + 1.0)),
        (P,),
        "%1 = add %0 1.0; %2 = sqrt[accuracy=None] %1; %2",
        R,
    ),
    Case("abs-of-neg", lambda n: jnp.abs(-n), (N,), "%1 = abs %0; %1"),
    Case(
        "sign-of-known",
        lambda n: jnp.sign(unit(n) + 2.0),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 1.0; %1",
    ),
    Case(
        "sign-of-known",
        lambda n: jnp.sign(unit(n) - 2.0),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] -1.0; %1",
    ),
    Case("sign-of-sign", lambda x: jnp.sign(jnp.sign(x)), (X,), "%1 = sign %0; %1"),
    Case("round-of-whole", lambda x: jnp.floor(jnp.ceil(x)), (X,), "%1 = ceil %0; %1"),
    Case(
        "round-of-whole",
        lambda n: jnp.floor(n.astype(jnp.float32)),
        (N,),
        "%1 = convert_element_type[new_dtype=float32 weak_type=False] %0; %1",
    ),
    Case(
        "is-finite-of-finite",
        lambda n: jnp.isfinite(unit(n)),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case(
        "reduce-precision-twice",
        lambda x: lax.reduce_precision(lax.reduce_precision(x, 5, 10), 5, 10),
        (X,),
        "%1 = reduce_precision[exponent_bits=5 mantissa_bits=10] %0; %1",
    ),
]

ALIKE = [
    Alike("pow-zero", "not zero", lambda p: lax.pow(p, np.float32(1e-9)), (P,)),
    Alike("pow-one", "not quite one", lambda p: lax.pow(p, np.float32(1.0000001)), (P,)),
    Alike("pow-of-constant-exponent", "a large exponent", lambda p: p**7.0, (P,)),
    Alike("pow-of-constant-exponent", "no multiple of one half", lambda p: p**0.3, (P,)),
    Alike("pow-of-constant-exponent", "no constant", lambda p, x: p**x, (P, X)),
    Alike("pow-of-constant-exponent", "complex", lambda z: z ** (2.0 + 0j), (Z,)),
    Alike("integer-pow-zero", "another exponent", lambda n: n**3, (N,)),
    Alike("integer-pow-one", "another exponent", lambda n: n**3, (N,)),
    Alike("integer-pow-two", "another exponent", lambda n: n**3, (N,)),
    Alike("integer-pow-minus-one", "another exponent", lambda y: y**-2, (Y,)),
    Alike("integer-power-of-power", "also read elsewhere", lambda n: (lambda c: [c, c**2])(n**3), (N,)),
    Alike("power-of-power", "a negative exponent", lambda x: (x**-3) ** 2, (X,)),
    Alike("even-power-of-sign", "an odd power", lambda x: (-x) ** 3, (X,)),
    Alike(
        "even-power-of-sign", "the absolute value of a complex number", lambda z: jnp.square(jnp.abs(z)), (Z,)
    ),
    Alike("square-of-sqrt", "x may be negative", lambda x: jnp.square(jnp.sqrt(x)), (X,)),
    Alike("square-of-sqrt", "x may be zero", lambda x: jnp.square(jnp.sqrt(jnp.abs(x))), (X,)),
    Alike("sqrt-times-sqrt", "x may be negative", lambda x: (lambda r: r * r)(jnp.sqrt(x)), (X,)),
    Alike(
        "sqrt-times-sqrt", "different roots", lambda x, y: jnp.sqrt(jnp.exp(x)) * jnp.sqrt(jnp.exp(y)), (X, Y)
    ),
    Alike("reciprocal-of-sqrt", "another dividend", lambda p: 2.0 / jnp.sqrt(p), (P,)),
    Alike("reciprocal-of-sqrt", "complex", lambda z: 1.0 / jnp.sqrt(z), (Z,)),
    Alike("reciprocal-of-rsqrt", "another dividend", lambda p: 2.0 / lax.rsqrt(p), (P,)),
    Alike("sqrt-of-reciprocal", "also read elsewhere", lambda p: (lambda q: [q, jnp.sqrt(q)])(1.0 / p), (P,)),
    Alike("sqrt-of-reciprocal", "of -inf it is zero, not NaN", lambda x: jnp.sqrt(1.0 / x), (X,)),
    Alike("log-of-exp", "another base", lambda x: jnp.log(jnp.exp2(x)), (X,)),
    Alike("log-of-exp", "complex numbers have many logarithms", lambda z: jnp.log(jnp.exp(z)), (Z,)),
    Alike("exp-of-log", "x may be negative", lambda x: jnp.exp(jnp.log(x)), (X,)),
    Alike("exp-of-log", "x may be zero", lambda x: jnp.exp(jnp.log(jnp.exp(x))), (X,), "exact"),
    Alike("log1p-of-expm1", "exp", lambda x: jnp.log1p(jnp.exp(x)), (X,)),
    Alike("logistic-written-out", "2 + exp(-x)", lambda x: 1.0 / (2.0 + jnp.exp(-x)), (X,)),
    Alike("logistic-written-out", "the signs are different", lambda x: 1.0 / (1.0 + jnp.exp(x)), (X,)),
    Alike("abs-of-nonnegative", "x may be negative", lambda x: jnp.abs(x), (X,)),
    Alike("abs-of-nonnegative", "the root of -0.0 is -0.0", lambda x: jnp.abs(jnp.sqrt(x)), (X,)),
    Alike("abs-of-nonnegative-or-minus-zero", "x may be negative", lambda x: jnp.abs(jnp.sin(x)), (X,)),
    Alike("abs-of-neg", "the derivative at zero", lambda x: jnp.abs(-x), (X,)),
    Alike("sign-of-known", "x may be zero", lambda x: jnp.sign(jnp.exp(x)), (X,)),
    Alike("sign-of-known", "x may be NaN", lambda x: jnp.sign(jnp.maximum(x, 1.0)), (X,)),
    Alike("sign-of-sign", "complex", lambda z: jnp.sign(jnp.sign(z)), (Z,)),
    Alike("round-of-whole", "not whole", lambda x: jnp.floor(x * 2.0), (X,)),
    Alike(
        "round-of-whole", "converted from another float", lambda x: jnp.floor(x.astype(jnp.bfloat16)), (X,)
    ),
    Alike("is-finite-of-finite", "x may be infinite", lambda x: jnp.isfinite(jnp.exp(x)), (X,)),
    Alike(
        "reduce-precision-twice",
        "another precision",
        lambda x: lax.reduce_precision(lax.reduce_precision(x, 5, 10), 5, 9),
        (X,),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", ALIKE, ids=name_of)
def test_alike(case: Alike) -> None:
    check_alike(case)


def test_meaning() -> None:
    check_meaning(CASES)
