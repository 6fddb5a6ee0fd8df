"""Algebra: reductions of one number, and complex numbers and their parts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._algebra import (
    Alike,
    Case,
    N,
    X,
    Y,
    Z,
    check_alike,
    check_case,
    check_meaning,
    name_of,
)

R = "reassociate"
A = np.arange(6, dtype=np.float32).reshape(1, 2, 3) - 2
K = np.arange(6, dtype=np.int32).reshape(1, 2, 3) - 2

REDUCTIONS = [
    Case("reduce-nothing", lambda a: lax.reduce_sum_p.bind(a, axes=(), out_sharding=None), (A,), "%0"),
    Case("reduce-number", lambda: jnp.max(jnp.full((3, 4), 2.0)), (), "2.0"),
    Case(
        "reduce-number",
        lambda: jnp.all(jnp.full((3, 4), True), 1),
        (),
        "%0 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %0",
    ),
    Case("sum-integer", lambda: jnp.sum(jnp.full((3, 4), 2)), (), "24"),
    Case("sum-integer", lambda: jnp.sum(jnp.full((3, 4), 2**30)), (), "0"),
    Case(
        "sum-number",
        lambda: jnp.sum(jnp.full((3, 4), 0.5), 0),
        (),
        "%0 = broadcast_in_dim[broadcast_dimensions=() shape=(4,)] 1.5; %0",
        R,
    ),
    Case(
        "argmax-of-number",
        lambda: jnp.argmax(jnp.full((3, 4), 0.5), 0),
        (),
        "%0 = broadcast_in_dim[broadcast_dimensions=() shape=(4,)] 0; %0",
    ),
    Case("cumulate-one", lambda a: lax.cummax(a, 0), (A,), "%0"),
    Case("cumulative-sum-of-one", lambda a: lax.cumsum(a, 0), (A,), "%0", R),
]

PARTS = [
    Case("real-of-complex", lambda x, y: jnp.real(lax.complex(x, y)), (X, Y), "%0"),
    Case("imag-of-complex", lambda x, y: jnp.imag(lax.complex(x, y)), (X, Y), "%1"),
    Case("complex-of-parts", lambda z: lax.complex(jnp.real(z), jnp.imag(z)), (Z,), "%0"),
    Case("conj-of-conj", lambda z: jnp.conj(jnp.conj(z)), (Z,), "%0"),
    Case("real-of-conj", lambda z: jnp.real(jnp.conj(z)), (Z,), "%1 = real %0; %1"),
    Case("imag-of-conj", lambda z: jnp.imag(jnp.conj(z)), (Z,), "%1 = imag %0; %2 = neg %1; %2"),
    Case(
        "conj-of-complex",
        lambda x, y: jnp.conj(lax.complex(x, y)),
        (X, Y),
        "%2 = neg %1; %3 = complex %0 %2; %3",
    ),
]

CASES = [*REDUCTIONS, *PARTS]

ALIKE = [
    Alike("reduce-nothing", "a dimension", lambda a: jnp.sum(a, 0), (A,)),
    Alike("reduce-number", "of nothing", lambda: jnp.max(jnp.full((0, 4), 2.0), 0, initial=1.0), ()),
    Alike("reduce-number", "a sum", lambda: jnp.sum(jnp.full((3, 4), 2.0)), ()),
    Alike("sum-integer", "different numbers", lambda n: jnp.sum(n), (N,)),
    Alike("sum-number", "the sum overflows", lambda: jnp.sum(jnp.full((3, 4), 3e38)), ()),
    Alike("argmax-of-number", "different numbers", lambda x: jnp.argmax(x), (X,)),
    Alike("cumulate-one", "two elements", lambda a: lax.cummax(a, 1), (A,)),
    Alike("cumulative-sum-of-one", "two elements", lambda a: lax.cumsum(a, 1), (A,)),
    Alike("real-of-complex", "of a product", lambda x, y: jnp.real(lax.complex(x, y) * 1j), (X, Y)),
    Alike("imag-of-complex", "of a product", lambda x, y: jnp.imag(lax.complex(x, y) * 1j), (X, Y)),
    Alike("complex-of-parts", "parts exchanged", lambda z: lax.complex(jnp.imag(z), jnp.real(z)), (Z,)),
    Alike(
        "complex-of-parts", "of different numbers", lambda z: lax.complex(jnp.real(z), jnp.imag(z * 2)), (Z,)
    ),
    Alike("conj-of-conj", "something between", lambda z: jnp.conj(jnp.conj(z) * 2), (Z,)),
    Alike("conj-of-conj", "a real number made complex", lambda x: lax.conj(x), (X,)),
    Alike("real-of-conj", "something between", lambda z: jnp.real(jnp.conj(z) * 2), (Z,)),
    Alike("imag-of-conj", "the real part", lambda z: jnp.real(jnp.conj(z)), (Z,)),
    Alike(
        "conj-of-complex",
        "also read elsewhere",
        lambda x, y: (lambda z: [z, jnp.conj(z)])(lax.complex(x, y)),
        (X, Y),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", ALIKE, ids=name_of)
def test_alike(case: Alike) -> None:
    check_alike(case)


@pytest.mark.parametrize("family", [REDUCTIONS, PARTS])
def test_meaning(family: list[Case]) -> None:
    check_meaning(family)
