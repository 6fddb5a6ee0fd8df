"""Algebra: max, min, clamp."""

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

INF = np.float32(np.inf)
NAN = np.float32(np.nan)

CASES = [
    Case("max-of-same", lambda x: lax.max(x, x), (X,), "%0"),
    Case("max-of-same", lambda n: lax.min(n, n), (N,), "%0"),
    Case(
        "max-of-ordered",
        lambda n: jnp.maximum(unit(n), -2.0),
        (N,),
        "%1 = convert_element_type[new_dtype=float32 weak_type=False] %0; %2 = tanh[accuracy=None] %1; %2",
    ),
    Case(
        "max-of-ordered",
        lambda n: jnp.minimum(unit(n), 2.0),
        (N,),
        "%1 = convert_element_type[new_dtype=float32 weak_type=False] %0; %2 = tanh[accuracy=None] %1; %2",
    ),
    Case(
        "max-of-ordered",
        lambda n: jnp.maximum(unit(n), 2.0),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 2.0; %1",
    ),
    Case("max-of-ordered", lambda x: jnp.maximum(x, -INF), (X,), "%0"),
    Case("max-of-ordered", lambda x: jnp.minimum(INF, x), (X,), "%0"),
    Case("max-of-ordered", lambda u: jnp.maximum(u, 0), (U,), "%0"),
    Case("max-of-ordered", lambda n: jnp.maximum(n, -(2**31)), (N,), "%0"),
    Case(
        "max-of-ordered",
        lambda n: lax.max(n & 3, np.int32(5)),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 5; %1",
    ),
    Case("max-of-max", lambda n, m: lax.max(lax.max(n, m), m), (N, M), "%2 = max %0 %1; %2"),
    Case("max-of-max", lambda n, m: lax.min(n, lax.min(n, m)), (N, M), "%2 = min %0 %1; %2"),
    Case("merge-bounds", lambda x: jnp.maximum(jnp.maximum(x, 1.0), 2.0), (X,), "%1 = max %0 2.0; %1"),
    Case("merge-bounds", lambda x: jnp.minimum(1.0, jnp.minimum(x, 2.0)), (X,), "%1 = min %0 1.0; %1"),
    Case(
        "clamp-of-inside",
        lambda n: lax.clamp(np.float32(-2.0), unit(n), np.float32(2.0)),
        (N,),
        "%1 = convert_element_type[new_dtype=float32 weak_type=False] %0; %2 = tanh[accuracy=None] %1; %2",
    ),
    Case("clamp-of-inside", lambda x: lax.clamp(-INF, x, INF), (X,), "%0"),
    Case("clamp-of-inside", lambda u: lax.clamp(np.uint8(0), u, np.uint8(255)), (U,), "%0"),
    Case(
        "clamp-of-clamp",
        lambda x: lax.clamp(0.0, lax.clamp(-1.0, x, 2.0), 1.0),
        (X,),
        "%1 = clamp 0.0 %0 1.0; %1",
    ),
    Case(
        "clamp-of-clamp",
        lambda x: lax.clamp(3.0, lax.clamp(-1.0, x, 2.0), 4.0),
        (X,),
        "%1 = clamp 3.0 %0 3.0; %1",
    ),
    Case("clamp-of-clamp", lambda n: lax.clamp(0, lax.clamp(2, n, 9), 4), (N,), "%1 = clamp 2 %0 4; %1"),
]

ALIKE = [
    Alike("max-of-same", "different values", lambda x, y: lax.max(x, y), (X, Y)),
    Alike(
        "max-of-ordered",
        "they may be equal, where derivatives differ",
        lambda n: jnp.maximum(unit(n), -1.0),
        (N,),
    ),
    Alike("max-of-ordered", "the infinity of the other side", lambda x: jnp.maximum(x, INF), (X,)),
    Alike("max-of-ordered", "the constant is NaN", lambda n: jnp.maximum(unit(n), NAN), (N,)),
    Alike("max-of-ordered", "the loser may be NaN", lambda x: jnp.maximum(jnp.tanh(x), 2.0), (X,)),
    Alike("max-of-ordered", "the ranges overlap", lambda n: jnp.maximum(n, 0), (N,)),
    Alike(
        "max-of-max",
        "floats: the derivative where x equals y",
        lambda x, y: lax.max(lax.max(x, y), y),
        (X, Y),
    ),
    Alike("max-of-max", "a minimum in it", lambda n, m: lax.max(lax.min(n, m), m), (N, M)),
    Alike(
        "merge-bounds",
        "equal bounds: the derivative at the bound",
        lambda x: lax.max(lax.max(x, 0.0), 0.0),
        (X,),
    ),
    Alike("merge-bounds", "NaN", lambda x: jnp.maximum(jnp.maximum(x, 1.0), NAN), (X,)),
    Alike("merge-bounds", "a minimum in it", lambda x: jnp.maximum(jnp.minimum(x, 1.0), 2.0), (X,)),
    Alike(
        "merge-bounds",
        "also read elsewhere",
        lambda x: (lambda y: [y, lax.max(y, 2.0)])(lax.max(x, 1.0)),
        (X,),
    ),
    Alike("merge-bounds", "complex", lambda z: lax.max(lax.max(z, 1.0 + 0j), 2.0 + 0j), (Z,)),
    Alike(
        "clamp-of-inside",
        "x may meet the bound",
        lambda n: lax.clamp(np.float32(-1), unit(n), np.float32(1)),
        (N,),
    ),
    Alike("clamp-of-inside", "x may leave", lambda x: lax.clamp(-1.0, x, 1.0), (X,)),
    Alike(
        "clamp-of-clamp",
        "a bound that is no constant",
        lambda x, s: lax.clamp(0.0, lax.clamp(s, x, 2.0), 1.0),
        (X, S),
    ),
    Alike(
        "clamp-of-clamp",
        "zeros of both signs",
        lambda x: lax.clamp(0.0, lax.clamp(np.float32(-0.0), x, 2.0), 1.0),
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
