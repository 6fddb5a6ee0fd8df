from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.facts import CONSTANT_LIMIT, Band, Facts, facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from tests.ir._observe import observe, wrong_facts

Fun = Callable[..., Any]

F32 = jax.ShapeDtypeStruct((), jnp.float32)
MATRIX = jax.ShapeDtypeStruct((3, 3), jnp.float32)
INTS = jax.ShapeDtypeStruct((3, 3), jnp.int32)


def facts(fun: Fun, *args: Any) -> Facts:
    """Facts of the only output of a function."""
    (output,) = trace(fun, *args).outputs
    return facts_of(output)


# Constants


def test_scalar_constants_are_known_to_the_bit() -> None:
    zero = facts(lambda: jnp.float32(0.0))
    minus = facts(lambda: jnp.float32(-0.0))
    assert zero.is_zero and zero.is_positive_zero and not zero.is_negative_zero and not zero.is_one
    assert minus.is_zero and minus.is_negative_zero and not minus.is_positive_zero
    assert facts(lambda: jnp.float32(1.0)).is_one
    assert math.isnan(facts(lambda: jnp.float32(np.nan)).splat)
    assert not facts(lambda: jnp.float32(np.nan)).no_nan
    assert facts(lambda: jnp.float32(np.inf)).no_nan and not facts(lambda: jnp.float32(np.inf)).finite
    assert facts(lambda: jnp.bool_(True)).is_one
    assert facts(lambda: jnp.int8(-3)).low == facts(lambda: jnp.int8(-3)).high == -3


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "int8", "int4", "complex64", "bool", "float8_e4m3fn"]
)
def test_splats_have_the_dtype_of_the_value(dtype: str) -> None:
    one = facts(lambda: jnp.ones((2, 2), dtype))
    assert one.is_one and np.asarray(one.splat).dtype == jnp.dtype(dtype)
    assert one.uniform == {0, 1}


def test_zero_with_mixed_signs_is_no_splat_but_zero_to_every_other_question() -> None:
    mixed = facts(lambda: jnp.asarray([[0.0, -0.0], [-0.0, 0.0]]))
    assert mixed.splat is None and mixed.diagonal
    assert (mixed.least, mixed.most) == (0.0, 0.0)


def test_contents_of_constants_are_looked_at_up_to_a_limit() -> None:
    small = np.arange(CONSTANT_LIMIT, dtype=np.int32)
    large = np.arange(CONSTANT_LIMIT + 1, dtype=np.int32)
    found = facts(lambda: jnp.asarray(small))
    assert found.constant is not None and np.array_equal(found.constant, small)
    assert found.iota == (0, 0, 1)
    assert facts(lambda: jnp.asarray(large)).constant is None
    with pytest.raises(ValueError, match="read-only"):
        found.constant[0] = 1


def test_constants_show_their_structure() -> None:
    permuted = np.eye(4, dtype=np.float32)[[2, 0, 3, 1]]
    found = facts(lambda: jnp.asarray(permuted))
    assert found.permutation and not found.identity and found.one_hot == 1
    assert (found.least, found.most) == (0, 1) and found.finite
    assert facts(lambda: jnp.asarray(np.eye(4))).identity
    assert facts(lambda: jnp.asarray(np.tril(np.ones((3, 4))))).lower
    assert facts(lambda: jnp.asarray(np.array([[1.0, np.nan], [np.nan, 2.0]]))).exactly_symmetric
    assert facts(lambda: jnp.asarray(np.array([3.0, 1.0, -1.0]))).iota == (0, 3, -2)
    assert facts(lambda: jnp.asarray(np.array([3.0, 1.5]))).iota is None


def test_keys_tokens_and_empty_arrays_say_nothing() -> None:
    key = facts(lambda: jax.random.key(0))
    assert key.splat is None and not key.finite and key.low is None
    empty = facts(lambda x: jnp.zeros((0, 3)) + x, jax.ShapeDtypeStruct((0, 3), jnp.float32))
    assert empty.constant is None


# Dtypes


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255), ("bool", 0, 1)])
def test_integers_are_finite_and_in_range(dtype: str, low: int, high: int) -> None:
    found = facts(lambda x: x, jax.ShapeDtypeStruct((2,), dtype))
    assert (found.low, found.high, found.finite, found.no_nan) == (low, high, True, True)


def test_floats_from_outside_are_unknown() -> None:
    found = facts(lambda x: x, F32)
    assert not found.no_nan and not found.finite and found.low is None and found.high is None


# The ways JAX writes structured arrays


def test_eye() -> None:
    found = facts(lambda: jnp.eye(4))
    assert found.identity and found.permutation and found.diagonal and found.symmetric
    assert not facts(lambda: jnp.eye(4, 5)).identity
    shifted = facts(lambda: jnp.eye(4, 5, 1))
    assert shifted.band == Band(1, 1) and shifted.upper and not shifted.lower
    assert facts(lambda: jnp.eye(4, dtype=bool)).identity
    large = facts(lambda x: x * 0 + jnp.eye(2000), F32)
    assert not large.identity
    assert facts(lambda: jnp.identity(2000)).identity


def test_tril_and_triu_of_anything() -> None:
    assert facts(jnp.tril, MATRIX).lower
    assert facts(jnp.triu, MATRIX).upper
    assert facts(lambda x: jnp.triu(x, 1), MATRIX).upper
    assert not facts(lambda x: jnp.tril(x, 1), MATRIX).lower
    assert facts(lambda x: jnp.triu(jnp.tril(x)), MATRIX).diagonal
    batched = jax.ShapeDtypeStruct((2, 5, 3, 4), jnp.float32)
    assert facts(jnp.tril, batched).lower and not facts(jnp.tril, batched).upper


def test_tri_is_a_band() -> None:
    assert facts(lambda: jnp.tri(4, 6, -1)).band == Band(None, -1)
    assert facts(lambda: jnp.tri(4, 6, 2)).band == Band(None, 2)
    assert facts(lambda: jnp.logical_not(jnp.tri(4, dtype=bool))).band == Band(1, None)


def test_masks_of_attention_are_bands() -> None:
    causal = facts(lambda: jnp.arange(8)[:, None] >= jnp.arange(8)[None, :])
    assert causal.band == Band(None, 0) and causal.lower
    other = facts(lambda: jnp.arange(8)[None, :] <= jnp.arange(8)[:, None])
    assert other.band == Band(None, 0)
    window = facts(
        lambda: (jnp.arange(8)[:, None] >= jnp.arange(8)) & (jnp.arange(8)[:, None] - 3 < jnp.arange(8))
    )
    assert window.band == Band(-2, 0)
    stacked = facts(lambda: jnp.broadcast_to(jnp.tri(8, dtype=bool), (2, 4, 8, 8)))
    assert stacked.band == Band(None, 0)


def test_one_hot() -> None:
    found = facts(lambda i: jax.nn.one_hot(i, 5), jax.ShapeDtypeStruct((2, 3), jnp.int32))
    assert found.one_hot == 2 and found.finite and found.nonnegative and found.most == 1
    first = facts(lambda i: jax.nn.one_hot(i, 5, axis=0), jax.ShapeDtypeStruct((3,), jnp.int32))
    assert first.one_hot == 0


def test_diag() -> None:
    assert facts(jnp.diag, jax.ShapeDtypeStruct((4,), jnp.float32)).diagonal
    above = facts(lambda x: jnp.diag(x, 1), jax.ShapeDtypeStruct((4,), jnp.float32))
    assert above.upper and not above.diagonal


def test_arange() -> None:
    assert facts(lambda: jnp.arange(5000) * 3 + 1).iota == (0, 1, 3)
    assert facts(lambda: 7 - jnp.arange(5000)).iota is None  # a subtraction from a number is not followed
    assert facts(lambda: jnp.arange(5000)[10:20:2]).iota == (0, 10, 2)
    assert facts(lambda: jnp.arange(5000)[::-1]).iota == (0, 4999, -1)
    assert facts(lambda: jnp.arange(5000).astype(jnp.float32)).iota == (0, 0, 1)
    assert facts(lambda: jnp.arange(5000).astype(jnp.bfloat16)).iota is None  # not all are bfloat16s
    assert facts(lambda: lax.iota(jnp.int8, 100) + jnp.int8(100)).iota is None  # wraps
    spread = facts(lambda: jnp.broadcast_to(jnp.arange(5000)[:, None], (5000, 2)))
    assert spread.iota == (0, 0, 1) and spread.uniform == {1}


# Symmetry


def test_products_with_the_own_transpose_are_symmetric_up_to_rounding() -> None:
    wide = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    for fun in (lambda a: a @ a.T, lambda a: a.T @ a, lambda a: jnp.einsum("ik,jk->ij", a, a)):
        found = facts(fun, wide)
        assert found.symmetric and not found.exactly_symmetric
    assert facts(lambda a: a @ a.T, jax.ShapeDtypeStruct((3, 5), jnp.int32)).exactly_symmetric
    assert facts(
        lambda a: jnp.einsum("bik,bjk->bij", a, a), jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)
    ).symmetric
    assert not facts(lambda a: a @ a, MATRIX).symmetric
    assert not facts(lambda a, b: a @ b.T, wide, wide).symmetric
    crossed = jax.ShapeDtypeStruct((2, 2, 5), jnp.float32)
    assert not facts(lambda a: jnp.einsum("bik,jbk->bij", a, a), crossed).symmetric


def test_sums_with_the_transpose_are_symmetric_to_the_bit() -> None:
    assert facts(lambda a: a + a.T, MATRIX).exactly_symmetric
    assert facts(lambda a: a.T * a, MATRIX).exactly_symmetric
    assert not facts(lambda a: a - a.T, MATRIX).symmetric
    kernel = facts(lambda a: 0.5 * (a + a.T) + jnp.eye(3), MATRIX)
    assert kernel.exactly_symmetric
    noisy = facts(lambda a: a @ a.T + 1e-6 * jnp.eye(3), MATRIX)
    assert noisy.symmetric and not noisy.exactly_symmetric
    # Rounding may decide a comparison, so nothing is said of one.
    assert not facts(lambda a: (a @ a.T) > 1.0, MATRIX).symmetric
    assert facts(lambda a: (a + a.T) > 1.0, MATRIX).exactly_symmetric


# Structure under arithmetic


def test_zero_times_unknown_numbers_may_be_nan() -> None:
    assert not facts(lambda x: jnp.tri(3) * x, MATRIX).lower
    assert facts(
        lambda x: jnp.tri(3) * jnp.tanh(lax.select(jnp.isnan(x), 0 * jnp.ones_like(x), x)), MATRIX
    ).lower
    assert facts(lambda x: jnp.tri(3, dtype=jnp.int32) * x, INTS).lower
    assert not facts(lambda x: x * 0, F32).is_zero
    assert facts(lambda x: x * 0, INTS).is_zero


def test_structure_of_sums_products_and_functions() -> None:
    low: Fun = lambda x: jnp.tril(x)  # noqa: E731
    assert facts(lambda x: low(x) + jnp.eye(3), MATRIX).lower
    assert facts(lambda x: jnp.sin(low(x)), MATRIX).lower
    assert not facts(lambda x: jnp.cos(low(x)), MATRIX).lower
    assert not facts(lambda x: low(x) + 1, MATRIX).lower
    assert facts(lambda x: low(x).T, MATRIX).upper
    assert facts(lambda x: low(x) / 2, MATRIX).lower
    assert not facts(lambda x: low(x) / x, MATRIX).lower
    assert facts(lambda x: jnp.eye(3)[:, ::-1].T, MATRIX).permutation
    assert facts(lambda: jnp.eye(300)[::-1] @ jnp.eye(300)).permutation
    assert not facts(lambda x: low(x) @ low(x), MATRIX).lower  # zero may meet infinity


@pytest.mark.parametrize("shift", range(-3, 4))
@pytest.mark.parametrize("op", [jnp.equal, jnp.not_equal, jnp.less, jnp.less_equal, jnp.greater])
def test_bands_of_every_comparison(op: Any, shift: int) -> None:
    graph = trace(
        lambda: (
            op(
                lax.broadcasted_iota(jnp.int32, (5, 4), 0) + shift, lax.broadcasted_iota(jnp.int32, (5, 4), 1)
            ),
            op(
                -lax.broadcasted_iota(jnp.int32, (5, 4), 1) + shift,
                -lax.broadcasted_iota(jnp.int32, (5, 4), 0),
            ),
        )
    )
    assert not wrong_facts(observe(graph, []))
    assert all(facts_of(v).band is not None or facts_of(v).splat is not None for v in graph.outputs)


@pytest.mark.parametrize("dimensions", [(0, 1), (1, 0)])
def test_masks_in_every_place(dimensions: tuple[int, int]) -> None:
    def fun(x: jax.Array) -> list[jax.Array]:
        mask = jnp.tri(4, 4, -1, dtype=bool)[:, :3].transpose(dimensions)
        x, zero = jnp.broadcast_to(x, mask.shape), jnp.zeros(mask.shape)
        return [
            lax.select(mask, x, zero),
            lax.select(mask, zero, x),
            lax.select(~mask, zero + 1, zero),
            lax.select(mask, zero, zero + 1),
            mask[1:, 1:],
            mask[:3, :2],
            mask[1:, :],
            lax.pad(mask, False, [(1, 2, 0), (1, 0, 0)]),
        ]

    graph = trace(fun, jnp.float32(3.0))
    assert not wrong_facts(observe(graph, [jnp.float32(3.0)]))
    assert all(facts_of(v).lower or facts_of(v).upper or facts_of(v).band for v in graph.outputs[:5])


# Signs, ranges, NaN


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


# Regions


def test_calls_take_what_holds_at_every_call() -> None:
    inner = jax.jit(lambda x, y: x + y)
    graph = trace(lambda x: inner(x, 1.0) * inner(x, 1.0), F32)
    body = graph_of(graph, "jit")
    assert facts_of(body.inputs[1]).is_one and not facts_of(body.inputs[0]).is_one
    both = trace(lambda x: inner(x, 1.0) * inner(x, 2.0), F32)
    shared = graph_of(both, "jit")
    assert len(shared.parents) == 2
    assert facts_of(shared.inputs[1]).splat is None
    assert (facts_of(shared.inputs[1]).least, facts_of(shared.inputs[1]).most) == (1.0, 2.0)


def test_a_shared_region_fed_by_its_own_result_ends() -> None:
    inner = jax.jit(lambda x: jnp.abs(x) + 1)
    graph = trace(lambda x: inner(inner(inner(x))), F32)
    assert len(graph_of(graph, "jit").parents) == 3
    assert facts_of(graph.outputs[0]).least > 0


def test_facts_are_dropped_when_a_region_gets_another_user() -> None:
    inner = jax.jit(lambda x: x * 1)
    graph = trace(lambda x: (inner(jnp.float32(2.0)), x), F32)
    (call,) = graph
    body = call.regions[0]
    assert facts_of(body.outputs[0]).splat is not None
    again = Node(
        "jit", call.primitive, [graph.inputs[0]], [v.aval for v in call.results], call.params, regions=[body]
    )
    graph.append(again)
    assert facts_of(body.outputs[0]).splat is None
    assert facts_of(again.result).splat is None


def test_branches() -> None:
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    same = facts(lambda p, x: lax.cond(p, lambda v: jnp.abs(v), lambda v: v * v, x), flag, F32)
    assert same.nonnegative
    apart = facts(
        lambda p, x: lax.cond(p, lambda v: jnp.zeros_like(v), lambda v: jnp.ones_like(v), x), flag, F32
    )
    assert apart.splat is None and (apart.least, apart.most) == (0, 1) and apart.finite


def test_loops_keep_what_does_not_change() -> None:
    def fun(x: jax.Array) -> Any:
        def step(carry: Any, row: jax.Array) -> Any:
            fixed, moving = carry
            return (fixed, moving - 1), (fixed * row, jnp.tril(x), moving)

        return lax.scan(step, (jnp.full((), 2.0), jnp.full((), 2.0)), jnp.abs(x))

    graph = trace(fun, MATRIX)
    assert not wrong_facts(observe(graph, [jnp.arange(9.0).reshape(3, 3) - 4]))
    fixed, moving, scaled, lower, stacked = map(facts_of, graph.outputs)
    assert fixed.splat == 2 and moving.splat is None and stacked.splat is None
    assert scaled.nonnegative and lower.lower
    *_, moved, row = graph_of(graph, "scan").inputs
    assert facts_of(row).nonnegative and not facts_of(moved).nonnegative


def test_while_loops() -> None:
    def fun(x: jax.Array) -> Any:
        return lax.while_loop(lambda s: s[1] < s[0], lambda s: (s[0], s[1] + 1), (jnp.float32(9.0), x))

    graph = trace(fun, F32)
    assert facts_of(graph.outputs[0]).splat == 9 and facts_of(graph.outputs[1]).splat is None
    (loop,) = graph
    cond, body = loop.regions
    assert facts_of(cond.inputs[0]).splat == facts_of(body.inputs[0]).splat == 9


def test_custom_rules_and_checkpoints_are_looked_into() -> None:
    assert facts(jax.nn.relu, F32).nonnegative
    assert facts(jax.checkpoint(lambda x: jnp.exp(x)), F32).nonnegative

    @jax.custom_vjp
    def f(x: jax.Array) -> jax.Array:
        return jnp.abs(x)

    f.defvjp(lambda x: (jnp.abs(x), None), lambda _, g: (g,))
    assert facts(f, F32).nonnegative


def test_unknown_operations_say_what_the_dtype_says() -> None:
    def fun(x: jax.Array) -> Any:
        return jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct((2,), jnp.uint8), x)

    found = facts(fun, jax.ShapeDtypeStruct((2,), jnp.uint8))
    assert (found.low, found.high) == (0, 255) and found.splat is None


def test_mutable_references_are_unknown() -> None:
    def fun(x: jax.Array) -> Any:
        ref = jax.new_ref(jnp.zeros(3))
        ref[0] = x
        return ref[...]

    graph = trace(fun, F32)
    for node in graph:
        assert all(facts_of(v).splat is None for v in node.results if v.op != "broadcast_in_dim")


# How it is computed


def test_long_chains_do_not_recurse() -> None:
    graph = Graph("chain", [trace(lambda x: x, F32).inputs[0].aval])
    (template,) = trace(lambda x: jnp.abs(x), F32)
    value = graph.inputs[0]
    for _ in range(50_000):
        value = graph.append(Node("abs", template.primitive, [value], [value.aval], template.params)).result
    graph.set_outputs([value])
    assert facts_of(graph.outputs[0]).nonnegative


def test_facts_are_found_once() -> None:
    graph = trace(lambda x: jnp.exp(x), F32)
    first = facts_of(graph.outputs[0])
    assert graph.outputs[0].facts is first and facts_of(graph.outputs[0]) is first


def test_symbolic_dimensions_are_no_hindrance() -> None:
    n, m = jax.export.symbolic_shape("n, m")
    shape = jax.ShapeDtypeStruct((n, m), jnp.float32)

    def fun(x: jax.Array) -> Any:
        y = jnp.abs(x).reshape(-1)
        return (
            y.sum(),
            jnp.tril(x),
            x.T @ x,
            x[1:, ::-1],
            jnp.pad(x, 1),
            jnp.concatenate([x, x]),
            jnp.argmax(x),
        )

    total, _, gram, *_ = trace(fun, shape).outputs
    assert facts_of(total).nonnegative and facts_of(gram).symmetric
    assert all(isinstance(facts_of(v), Facts) for v in trace(fun, shape).outputs)


def test_text_says_only_what_is_known() -> None:
    assert "lower=True" in str(facts(jnp.tril, MATRIX))
    assert "upper" not in str(facts(jnp.tril, MATRIX))


def graph_of(graph: Graph, op: str) -> Graph:
    """The first region of the first node with this operation."""
    return next(node for node in graph.walk() if node.op == op).regions[0]


def test_values_of_unread_results_have_facts_too() -> None:
    graph = trace(lambda x: lax.top_k(x, 2), jax.ShapeDtypeStruct((7,), jnp.float32))
    values: list[Value] = list(next(iter(graph)).results)
    assert [facts_of(v).high for v in values] == [None, 6]
