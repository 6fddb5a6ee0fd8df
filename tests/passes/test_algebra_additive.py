"""Algebra: sums, differences and signs."""

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

CASES = [
    Case("add-nothing", lambda x: x + np.float32(-0.0), (X,), "%0"),
    Case("add-nothing", lambda x: jnp.exp(x) + 0.0, (X,), "%1 = exp[accuracy=None] %0; %1"),
    Case("add-nothing", lambda n: 0 + n, (N,), "%0"),
    Case("add-nothing", lambda u: u + np.zeros(3, np.uint8), (U,), "%0"),
    Case(
        "add-nothing",
        lambda s: s + np.full(3, -0.0, np.float32),
        (S,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] %0; %1",
    ),
    Case("add-zero", lambda x: x + 0.0, (X,), "%0", R),
    Case("add-zero", lambda z: z + 0.0, (Z,), "%0", R),
    Case("subtract-nothing", lambda x: x - 0.0, (X,), "%0"),
    Case("subtract-nothing", lambda n: n - 0, (N,), "%0"),
    Case("subtract-zero", lambda x: x - np.float32(-0.0), (X,), "%0", R),
    Case(
        "subtract-self",
        lambda n: n - n,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case(
        "subtract-self",
        lambda n: (lambda f: f - f)(unit(n)),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0.0; %1",
    ),
    Case("subtract-from-nothing", lambda n: 0 - n, (N,), "%1 = neg %0; %1"),
    Case("subtract-from-nothing", lambda x: np.float32(-0.0) - x, (X,), "%1 = neg %0; %1"),
    Case("subtract-from-zero", lambda x: 0.0 - x, (X,), "%1 = neg %0; %1", R),
    Case("neg-of-neg", lambda x: lax.neg(lax.neg(x)), (X,), "%0"),
    Case("neg-of-neg", lambda n: lax.neg(lax.neg(n)), (N,), "%0"),
    Case("neg-of-neg", lambda z: lax.neg(lax.neg(z)), (Z,), "%0"),
    Case("add-of-neg", lambda x, y: x + (-y), (X, Y), "%2 = sub %0 %1; %2"),
    Case("add-of-neg", lambda x, y: (-x) + y, (X, Y), "%2 = sub %1 %0; %2"),
    Case("add-of-neg", lambda n, m: (-n) + m, (N, M), "%2 = sub %1 %0; %2"),
    Case("subtract-neg", lambda x, y: x - (-y), (X, Y), "%2 = add %0 %1; %2"),
    Case("neg-of-integer-difference", lambda n, m: -(n - m), (N, M), "%2 = sub %1 %0; %2"),
    Case("neg-of-difference", lambda x, y: -(x - y), (X, Y), "%2 = sub %1 %0; %2", R),
    Case("merge-integer-terms", lambda n: (n + 3) - 5, (N,), "%1 = add %0 -2; %1"),
    Case("merge-integer-terms", lambda n: 2 - (n - 5), (N,), "%1 = sub 7 %0; %1"),
    Case("merge-integer-terms", lambda n: (n + (2**31 - 1)) + 7, (N,), "%1 = add %0 -2147483642; %1"),
    Case("merge-integer-terms", lambda u: (u + 200) + 100, (U,), "%1 = add %0 44:u8[]; %1"),
    Case("merge-terms", lambda x: (x + 1.0) + 2.0, (X,), "%1 = add %0 3.0; %1", R),
    Case("merge-terms", lambda x: (x - 1.0) - 2.0, (X,), "%1 = sub %0 3.0; %1", R),
    Case(
        "merge-terms", lambda x: -2.0 + (1.0 - x) - 3.0 + 0.0, (X,), "%1 = sub 1.0 %0; %2 = sub %1 5.0; %2", R
    ),
    Case("merge-terms", lambda x: 3.0 - (x - 1.0), (X,), "%1 = sub 4.0 %0; %1", R),
]

ALIKE = [
    Alike("add-nothing", "x may be -0.0", lambda x: x + 0.0, (X,)),
    Alike("add-zero", "the number is not zero", lambda x: x + 1e-30, (X,)),
    Alike("add-zero", "not all elements are zero", lambda x: x + np.array([0.0, 0.0, 1.0], np.float32), (X,)),
    Alike("subtract-nothing", "x may be -0.0", lambda x: x - np.float32(-0.0), (X,)),
    Alike("subtract-zero", "the number is not zero", lambda x: x - 1.0, (X,)),
    Alike("subtract-self", "x may be infinite", lambda x: x - x, (X,)),
    Alike("subtract-self", "another value", lambda n, m: n - m, (N, M)),
    Alike("subtract-from-nothing", "x may be zero", lambda x: 0.0 - x, (X,)),
    Alike("subtract-from-zero", "x - 0", lambda x, y: x - y, (X, Y)),
    Alike("neg-of-neg", "something between", lambda x: -jnp.abs(-x), (X,)),
    Alike("add-of-neg", "no neg", lambda x, y: x + jnp.abs(y), (X, Y)),
    Alike("subtract-neg", "the neg comes first", lambda x, y: (-x) - y, (X, Y)),
    Alike("neg-of-integer-difference", "floats", lambda x, y: -(x - y), (X, Y)),
    Alike("neg-of-difference", "also read elsewhere", lambda x, y: (lambda d: [d, -d])(x - y), (X, Y)),
    Alike("merge-integer-terms", "no constant", lambda n, m: (n + m) + 3, (N, M)),
    Alike("merge-terms", "meant to round", lambda x: (x + 12582912.0) - 12582912.0, (X,)),
    Alike("merge-terms", "the sum overflows", lambda x: (x + 3e38) + 3e38, (X,)),
    Alike("merge-terms", "also read elsewhere", lambda x: (lambda y: [y, y + 2.0])(x + 1.0), (X,)),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", ALIKE, ids=name_of)
def test_alike(case: Alike) -> None:
    check_alike(case)


def test_meaning() -> None:
    check_meaning(CASES)
