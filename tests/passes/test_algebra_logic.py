"""Algebra: logic, conversions, integer division and shifts."""

from __future__ import annotations

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
    check_alike,
    check_case,
    check_meaning,
    name_of,
)

H = X.astype(jnp.bfloat16)
I8 = np.array([-128, 5, 127], np.int8)
W = jnp.asarray(1.5)
"""A number of weak type."""

LOGIC = [
    Case("logic-of-same", lambda b: b & b, (B,), "%0"),
    Case("logic-of-same", lambda n: n | n, (N,), "%0"),
    Case(
        "and-with-constant",
        lambda n: n & 0,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case("and-with-constant", lambda n: n & -1, (N,), "%0"),
    Case("and-with-constant", lambda u: u & np.uint8(255), (U,), "%0"),
    Case("and-with-constant", lambda b: True & b, (B,), "%0"),
    Case("or-with-constant", lambda n: n | 0, (N,), "%0"),
    Case(
        "or-with-constant",
        lambda b: b | True,
        (B,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case("xor-with-constant", lambda n: n ^ 0, (N,), "%0"),
    Case("xor-with-constant", lambda n: n ^ -1, (N,), "%1 = not %0; %1"),
    Case("xor-with-constant", lambda b: b ^ True, (B,), "%1 = not %0; %1"),
    Case(
        "xor-of-same",
        lambda n: n ^ n,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case(
        "logic-with-not",
        lambda n: n & ~n,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case(
        "logic-with-not",
        lambda b: ~b | b,
        (B,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] True; %1",
    ),
    Case(
        "logic-with-not",
        lambda u: u ^ ~u,
        (U,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 255:u8[]; %1",
    ),
    Case("absorb", lambda n, m: n & (n | m), (N, M), "%0"),
    Case("absorb", lambda n, m: (m & n) | n, (N, M), "%0"),
    Case("absorb", lambda n, m: n & (n & m), (N, M), "%2 = and %0 %1; %2"),
    Case("not-of-not", lambda b: ~~b, (B,), "%0"),
    Case("not-of-not", lambda u: ~~u, (U,), "%0"),
]

CONVERSIONS = [
    Case("convert-to-same", lambda w: w.astype(jnp.float32), (W,), "%0"),
    Case("convert-of-convert", lambda h: h.astype(jnp.float32).astype(jnp.bfloat16), (H,), "%0"),
    Case(
        "convert-of-convert",
        lambda h: h.astype(jnp.float32).astype(jnp.float16),
        (H,),
        "%1 = convert_element_type[new_dtype=float16 weak_type=False] %0; %1",
    ),
    Case("convert-of-convert", lambda i: i.astype(jnp.float32).astype(jnp.int8), (I8,), "%0"),
    Case(
        "convert-of-convert",
        lambda i: i.astype(jnp.int32).astype(jnp.uint8),
        (I8,),
        "%1 = convert_element_type[new_dtype=uint8 weak_type=False] %0; %1",
    ),
    Case(
        "convert-of-convert",
        lambda b: b.astype(jnp.int32).astype(jnp.float32),
        (B,),
        "%1 = convert_element_type[new_dtype=float32 weak_type=False] %0; %1",
    ),
    Case("convert-of-convert", lambda b: b.astype(jnp.float32).astype(jnp.bool_), (B,), "%0"),
    Case(
        "convert-of-convert", lambda n: (n & 7).astype(jnp.int8).astype(jnp.int32), (N,), "%1 = and %0 7; %1"
    ),
    Case(
        "convert-of-convert",
        lambda i: i.astype(jnp.int32).astype(jnp.bool_),
        (I8,),
        "%1 = convert_element_type[new_dtype=bool weak_type=False] %0; %1",
    ),
]

INTEGERS = [
    Case(
        "remainder-of-one",
        lambda n: lax.rem(n, np.int32(1)),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case(
        "remainder-of-one",
        lambda n: lax.rem(n, np.int32(-1)),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case("remainder-of-smaller", lambda n: lax.rem(n & 3, np.int32(4)), (N,), "%1 = and %0 3; %1"),
    Case(
        "remainder-of-smaller",
        lambda i: lax.rem(i.astype(jnp.int32), np.int32(-129)),
        (I8,),
        "%1 = convert_element_type[new_dtype=int32 weak_type=False] %0; %1",
    ),
    Case(
        "quotient-of-smaller",
        lambda n: lax.div(n & 3, np.int32(4)),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case("shift-by-zero", lambda n: n << 0, (N,), "%0"),
    Case(
        "shift-of-zero",
        lambda n: lax.shift_left(np.int32(0), n),
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case("shift-of-shift", lambda n: (n << 3) << 4, (N,), "%1 = shift_left %0 7; %1"),
    Case(
        "shift-of-shift",
        lambda n: (n << 20) << 12,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
    Case("shift-of-shift", lambda n: (n >> 20) >> 20, (N,), "%1 = shift_right_arithmetic %0 31; %1"),
    Case(
        "shift-of-shift",
        lambda u: lax.shift_right_logical(lax.shift_right_logical(u, np.uint8(1)), np.uint8(2)),
        (U,),
        "%1 = shift_right_logical %0 3:u8[]; %1",
    ),
    Case(
        "shift-of-nonnegative",
        lambda n: (n & 7) >> 3,
        (N,),
        "%1 = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0; %1",
    ),
]

CASES = [*LOGIC, *CONVERSIONS, *INTEGERS]

ALIKE = [
    Alike("logic-of-same", "different values", lambda b, c: b & c, (B, C)),
    Alike("and-with-constant", "some bits", lambda n: n & 255, (N,)),
    Alike("or-with-constant", "some bits", lambda n: n | 1, (N,)),
    Alike("xor-with-constant", "some bits", lambda n: n ^ 1, (N,)),
    Alike("xor-of-same", "different values", lambda n, m: n ^ m, (N, M)),
    Alike("logic-with-not", "minus is not not", lambda n: n & -n, (N,)),
    Alike("absorb", "another operation", lambda n, m: n & (n ^ m), (N, M)),
    Alike("not-of-not", "minus between", lambda n: ~(-(~n)), (N,)),
    Alike("convert-to-same", "another dtype", lambda x: x.astype(jnp.bfloat16), (X,)),
    Alike(
        "convert-of-convert", "narrowing rounds", lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), (X,)
    ),
    Alike(
        "convert-of-convert",
        "the middle overflows",
        lambda h: h.astype(jnp.float16).astype(jnp.float32),
        (H,),
    ),
    Alike(
        "convert-of-convert", "32 bits do not fit", lambda n: n.astype(jnp.float32).astype(jnp.int32), (N,)
    ),
    Alike("convert-of-convert", "narrowing wraps", lambda n: n.astype(jnp.int8).astype(jnp.int32), (N,)),
    Alike(
        "convert-of-convert",
        "a float does not wrap",
        lambda i: i.astype(jnp.float32).astype(jnp.uint8),
        (I8,),
    ),
    Alike("convert-of-convert", "truth in the middle", lambda n: n.astype(jnp.bool_).astype(jnp.int32), (N,)),
    Alike("remainder-of-one", "floats have fractions", lambda x: lax.rem(x, np.float32(1)), (X,)),
    Alike("remainder-of-one", "the greatest of an unsigned dtype", lambda u: lax.rem(u, np.uint8(255)), (U,)),
    Alike("remainder-of-smaller", "it may be equal", lambda n: lax.rem(n & 3, np.int32(3)), (N,)),
    Alike("remainder-of-smaller", "the least of its dtype", lambda i: lax.rem(i, np.int8(127)), (I8,)),
    Alike("quotient-of-smaller", "it may be equal", lambda n: lax.div(n & 3, np.int32(3)), (N,)),
    Alike("shift-by-zero", "one", lambda n: n << 1, (N,)),
    Alike("shift-of-zero", "one", lambda n: lax.shift_left(np.int32(1), n), (N,)),
    Alike("shift-of-shift", "back again", lambda n: (n << 3) >> 3, (N,)),
    Alike("shift-of-shift", "by too much", lambda n: (n << 33) << 1, (N,)),
    Alike("shift-of-nonnegative", "x may be negative", lambda n: n >> 31, (N,)),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rule(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", ALIKE, ids=name_of)
def test_alike(case: Alike) -> None:
    check_alike(case)


@pytest.mark.parametrize("family", [LOGIC, CONVERSIONS, INTEGERS])
def test_meaning(family: list[Case]) -> None:
    check_meaning(family)
