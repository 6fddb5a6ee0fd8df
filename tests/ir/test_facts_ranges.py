"""Facts on single numbers: signs, ranges, NaN and infinity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.ir._facts import F32, INTS, MATRIX, Fun, facts


def test_signs() -> None:
    assert facts(jnp.exp, F32).nonnegative
    assert facts(jnp.abs, F32).nonnegative
    assert facts(jax.nn.relu, F32).nonnegative
    assert facts(lambda x: x * x, F32).nonnegative
    assert facts(lambda x: -jnp.square(x), F32).nonpositive
    assert not facts(lambda x: x**3, F32).nonnegative
    assert facts(lambda x: jnp.sqrt(jnp.exp(x) + 1), F32).positive
    assert not facts(lambda x: 1 / jnp.abs(x), F32).nonnegative  # of minus zero it is minus infinity
    assert facts(lambda x: 1 / (1 + jnp.exp(x)), F32).nonnegative
    assert facts(lambda x: jnp.sum(x**2, axis=0), MATRIX).nonnegative
    assert not facts(lambda x: jnp.square(x), jax.ShapeDtypeStruct((), jnp.complex64)).nonnegative


def test_integers_may_wrap() -> None:
    byte = jax.ShapeDtypeStruct((4,), jnp.int8)
    assert not facts(jnp.abs, byte).nonnegative  # abs(-128) is -128
    assert not facts(lambda x: x * x, byte).nonnegative
    assert facts(lambda x: jnp.abs(x.astype(jnp.int32)), byte).nonnegative
    assert facts(lambda x: x.astype(jnp.int32) + 200, byte).low == 72
    assert facts(lambda x: x.astype(jnp.int32).sum(), byte).high == 4 * 127
    assert facts(lambda x: x.astype(jnp.int32) @ x.astype(jnp.int32), byte).high == 4 * 128 * 128
    assert facts(lambda x: x.astype(jnp.uint8), byte).low == 0
    assert facts(lambda x: (x % 4).astype(jnp.int32), byte).low is not None


def test_finiteness_is_claimed_only_when_ranges_prove_it() -> None:
    assert facts(jnp.sin, F32).finite is False  # of infinity it is NaN
    assert facts(lambda x: jnp.tanh(x), F32).no_nan is False
    bounded: Fun = lambda x: lax.clamp(-1e3, lax.select(x == x, x, jnp.zeros_like(x)), 1e3)  # noqa: E731
    assert facts(bounded, F32).finite
    byte = jax.ShapeDtypeStruct((4, 4), jnp.int8)
    number: Fun = lambda x: x.astype(jnp.float32)  # noqa: E731
    assert facts(number, byte).finite
    assert facts(lambda x: number(x) @ number(x), byte).finite
    assert facts(lambda x: jnp.exp(number(x) / 4), byte).finite
    assert not facts(lambda x: jnp.exp(number(x)), byte).finite
    assert facts(lambda x: jnp.exp(number(x)), byte).no_nan
    assert facts(lambda x: number(x) * 1e30 * 1e30, byte).finite is False
    assert facts(lambda x: x.astype(jnp.float16) * 1000, byte).finite is False
    assert not facts(lambda x: number(x) / number(x), byte).no_nan
    assert facts(lambda x: number(x) / (1 + jnp.abs(number(x))), byte).finite


def test_a_select_knows_what_its_predicate_says() -> None:
    zero = jnp.zeros((3, 3))
    assert facts(lambda x: lax.select(x > 0, x, zero), MATRIX).nonnegative
    assert facts(lambda x: lax.select(x > 0, x, zero), MATRIX).no_nan
    assert facts(lambda x: lax.select(x < 0, -x, x), MATRIX).nonnegative is False  # -x is another value
    assert facts(lambda x: lax.select(x < 0, zero, x), MATRIX).nonnegative
    assert not facts(lambda x: lax.select(x < 0, zero, x), MATRIX).no_nan
    assert facts(lambda x: lax.select(lax.ge(zero, x), zero, x), MATRIX).nonnegative
    assert facts(lambda x: lax.select(jnp.isnan(x), zero, x), MATRIX).no_nan
    assert facts(lambda x: lax.select(jnp.isfinite(x), x, zero), MATRIX).finite
    assert facts(lambda x: lax.select(x == 2, x, 2 + zero), MATRIX).most == 2
    assert facts(lambda x: lax.select(x < 5, x, 4 + 0 * x), INTS).high == 4


def test_infinite_differences_and_zero_times_infinity() -> None:
    ordered: Fun = lambda x: x.astype(jnp.float32) * 1e38  # noqa: E731  # overflows, has no NaN
    byte = jax.ShapeDtypeStruct((4,), jnp.int8)
    assert facts(ordered, byte).no_nan
    assert not facts(lambda x: ordered(x) - ordered(x), byte).no_nan
    assert not facts(lambda x: ordered(x) * 0.0, byte).no_nan
    assert not facts(lambda x: ordered(x).sum(), byte).no_nan
    assert facts(lambda x: jnp.abs(ordered(x)).sum(), byte).no_nan


def test_numbers_too_small_for_a_normal_float_may_be_taken_as_zero() -> None:
    too_small = facts(lambda: jnp.full((3,), 1e-40))
    assert not too_small.is_zero and not too_small.nonzero and too_small.least == 0
    assert not facts(lambda: jnp.sqrt(jnp.full((3,), 1e-40))).nonzero
    assert not facts(lambda: jnp.log(jnp.full((3,), 1e-40))).finite
    assert not facts(lambda x: jnp.exp(x - 1e30), F32).nonzero
    assert facts(lambda: jnp.full((3,), 1e-30) * 1e-30).splat is None


def test_exact_arithmetic_of_numbers_only() -> None:
    assert facts(lambda: jnp.full((3,), 0.5) + jnp.full((3,), 0.25)).splat == np.float32(0.75)
    assert facts(lambda: jnp.full((3,), 0.1) + jnp.full((3,), 0.2)).splat is None  # rounds
    assert facts(lambda: jnp.full((3,), -1.0) * jnp.full((3,), 0.0)).is_negative_zero
    assert facts(lambda: -jnp.zeros(3)).is_negative_zero
    assert facts(lambda: jnp.zeros(3) + -jnp.zeros(3)).is_positive_zero


def test_comparisons_that_are_always_so() -> None:
    index = jax.ShapeDtypeStruct((4,), jnp.uint8)
    assert facts(lambda i: i >= 0, index).is_one
    assert facts(lambda i: i < 0, index).is_zero
    assert facts(lambda i: i == i, index).is_one
    assert facts(lambda x: x == x, F32).splat is None
    assert facts(lambda x: x < x, F32).is_zero
    assert facts(lambda x: jnp.exp(x) < -1, F32).is_zero
    assert facts(lambda x: jnp.exp(x) > -1, F32).splat is None  # not of NaN
    assert facts(lambda x: jnp.isfinite(x.astype(jnp.float32)), index).is_one


def test_indices_are_in_range() -> None:
    rows = jax.ShapeDtypeStruct((3, 7), jnp.float32)
    assert (facts(lambda x: jnp.argmax(x, 1), rows).low, facts(lambda x: jnp.argmax(x, 1), rows).high) == (
        0,
        6,
    )
    assert facts(lambda x: lax.top_k(x, 2)[1], rows).high == 6
    assert facts(lambda i: i & 7, jax.ShapeDtypeStruct((), jnp.int32)).high == 7
    assert facts(lambda i: lax.rem(i, jnp.int32(5)), jax.ShapeDtypeStruct((), jnp.int32)).high == 4


def test_gather_may_fill_with_nan() -> None:
    rows = jax.ShapeDtypeStruct((4,), jnp.int8)
    index = jax.ShapeDtypeStruct((2,), jnp.int32)
    plain: Fun = lambda mode: facts(lambda x, i: jnp.exp(x / 9).at[i].get(mode=mode), rows, index)  # noqa: E731
    assert plain("clip").no_nan and not plain("fill").no_nan
    assert facts(lambda x, i: jnp.abs(x.astype(jnp.int32)).at[i].get(mode="fill"), rows, index).low == -(
        2**31
    )
