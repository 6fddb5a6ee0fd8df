"""Algebra: comparisons and choices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._algebra import (
    Alike,
    B,
    C,
    Case,
    M,
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

H = X.astype(jnp.bfloat16)
G = Y.astype(jnp.bfloat16)
I8 = np.array([-128, 5, 127], np.int8)
J8 = np.array([7, 5, -127], np.int8)
T = np.array(True)

COMPARISONS = [
    Case(
        "compare-with-self",
        lambda x: x < x,
        (X,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] False; %1",
    ),
    Case(
        "compare-with-self",
        lambda n: n == n,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case(
        "compare-with-self",
        lambda n: n != n,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] False; %1",
    ),
    Case(
        "compare-with-self",
        lambda n: n >= n,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case(
        "compare-ranges",
        lambda u: u.astype(jnp.int32) < 256,
        (U,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case(
        "compare-ranges",
        lambda n: unit(n) > 2.0,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] False; %1",
    ),
    Case(
        "compare-ranges",
        lambda n: unit(n) <= 2.0,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case(
        "compare-ranges",
        lambda x: jnp.tanh(x) > 2.0,
        (X,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] False; %1",
    ),
    Case(
        "compare-ranges",
        lambda x: jnp.tanh(x) != 2.0,
        (X,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case(
        "compare-ranges",
        lambda x: jnp.tanh(x) == 2.0,
        (X,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] False; %1",
    ),
    Case("not-of-comparison", lambda x: ~(x == 1.0), (X,), "%1 = ne %0 1.0; %1"),
    Case("not-of-comparison", lambda z: ~(z != 1.0), (Z,), "%1 = eq %0 (1+0j):c64[]; %1"),
    Case("not-of-comparison", lambda n, m: ~(n < m), (N, M), "%2 = ge %0 %1; %2"),
    Case("compare-choice", lambda b: b.astype(jnp.float32) > 0, (B,), "%0"),
    Case("compare-choice", lambda b: b.astype(jnp.int32) == 0, (B,), "%1 = not %0; %1"),
    Case(
        "compare-choice",
        lambda b: lax.select_n(b, np.zeros(3), np.full(3, 2.0)) < 1.0,
        (B,),
        "%1 = not %0; %1",
    ),
    Case("compare-choice", lambda b: b == True, (B,), "%0"),  # noqa: E712
    Case("compare-choice", lambda b: jnp.equal(False, b), (B,), "%1 = not %0; %1"),
    Case("compare-choice", lambda b: jnp.less(0.5, b.astype(jnp.float32)), (B,), "%0"),
    Case("compare-difference-with-zero", lambda n, m: n - m == 0, (N, M), "%2 = eq %0 %1; %2"),
    Case(
        "compare-before-widening",
        lambda h, g: h.astype(jnp.float32) < g.astype(jnp.float32),
        (H, G),
        "%2 = lt %0 %1; %2",
    ),
    Case(
        "compare-before-widening",
        lambda i, j: i.astype(jnp.float32) == j.astype(jnp.float32),
        (I8, J8),
        "%2 = eq %0 %1; %2",
    ),
]

CHOICES = [
    Case("select-of-same", lambda b, x: lax.select_n(b, x, x), (B, X), "%1"),
    Case("select-by-constant", lambda x, y: lax.select_n(np.array([True] * 3), x, y), (X, Y), "%1"),
    Case("select-by-constant", lambda x, y: lax.select_n(np.array(False), x, y), (X, Y), "%0"),
    Case(
        "select-by-constant",
        lambda x, y: lax.select_n(np.int32(2), x, y, x * y),
        (X, Y),
        "%2 = mul %0 %1; %2",
    ),
    Case("select-by-not", lambda b, x, y: lax.select_n(~b, x, y), (B, X, Y), "%3 = select_n %0 %2 %1; %3"),
    Case(
        "select-of-truth", lambda b: lax.select_n(b, np.array([False] * 3), np.array([True] * 3)), (B,), "%0"
    ),
    Case(
        "select-of-truth",
        lambda b: lax.select_n(b, np.array([True] * 3), np.array([False] * 3)),
        (B,),
        "%1 = not %0; %1",
    ),
    Case(
        "select-of-truth",
        lambda t: lax.select_n(t, np.array([False] * 3), np.array([True] * 3)),
        (T,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] %0; %1",
    ),
    Case(
        "select-of-select",
        lambda b, x, y: lax.select_n(b, lax.select_n(b, x, y), -y),
        (B, X, Y),
        "%3 = neg %2; %4 = select_n %0 %1 %3; %4",
    ),
    Case(
        "select-of-select",
        lambda b, x, y: lax.select_n(b, -x, lax.select_n(b, x, y)),
        (B, X, Y),
        "%3 = neg %1; %4 = select_n %0 %3 %2; %4",
    ),
]

CASES = [*COMPARISONS, *CHOICES]

ALIKE = [
    Alike("compare-with-self", "x may be NaN: that is how programs look for it", lambda x: x != x, (X,)),
    Alike("compare-with-self", "x may be NaN", lambda x: [x == x, x <= x], (X,)),
    Alike("compare-with-self", "keys", lambda k: k == k, (jax.random.key(0),)),
    Alike("compare-ranges", "the ranges overlap", lambda u: u.astype(jnp.int32) < 255, (U,)),
    Alike("compare-ranges", "NaN would say no", lambda x: jnp.tanh(x) <= 2.0, (X,)),
    Alike("compare-ranges", "NaN would say yes", lambda x: jnp.tanh(x) == jnp.tanh(x), (X,)),
    Alike("not-of-comparison", "x may be NaN", lambda x: ~(x < 1.0), (X,)),
    Alike("not-of-comparison", "also read elsewhere", lambda n: (lambda c: [c, ~c])(n < 3), (N,)),
    Alike("compare-choice", "no choice of two numbers", lambda n: n.astype(jnp.float32) > 0, (N,)),
    Alike("compare-choice", "no constant", lambda b, x: b.astype(jnp.float32) > x, (B, X)),
    Alike("compare-difference-with-zero", "infinite differences are NaN", lambda x, y: x - y == 0, (X, Y)),
    Alike("compare-difference-with-zero", "differences wrap", lambda n, m: n - m < 0, (N, M)),
    Alike(
        "compare-before-widening",
        "they have different dtypes",
        lambda h, i: h.astype(jnp.float32) < i.astype(jnp.float32),
        (H, I8),
    ),
    Alike(
        "compare-before-widening",
        "narrowing",
        lambda x, y: x.astype(jnp.bfloat16) < y.astype(jnp.bfloat16),
        (X, Y),
    ),
    Alike("select-of-same", "different values", lambda b, x, y: lax.select_n(b, x, y), (B, X, Y)),
    Alike("select-by-constant", "not one choice for all", lambda x, y: lax.select_n(B, x, y), (X, Y)),
    Alike("select-by-not", "the bits of an integer", lambda n, x, y: lax.select_n((~n) > 3, x, y), (N, X, Y)),
    Alike(
        "select-of-truth",
        "numbers",
        lambda b: lax.select_n(b, np.zeros(3, np.int32), np.ones(3, np.int32)),
        (B,),
    ),
    Alike(
        "select-of-select",
        "another condition",
        lambda b, c, x, y: lax.select_n(b, lax.select_n(c, x, y), y),
        (B, C, X, Y),
    ),
    Alike(
        "select-of-select",
        "also read elsewhere",
        lambda b, x, y: (lambda s: [s, lax.select_n(b, s, -y)])(lax.select_n(b, x, y)),
        (B, X, Y),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", ALIKE, ids=name_of)
def test_alike(case: Alike) -> None:
    check_alike(case)


@pytest.mark.parametrize("family", [COMPARISONS, CHOICES])
def test_meaning(family: list[Case]) -> None:
    check_meaning(family)
