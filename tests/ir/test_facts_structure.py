"""Facts on structure: identities, triangles, bands, one-hot rows, counts, symmetry."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.facts import Band, facts_of
from tests.ir._facts import F32, INTS, MATRIX, Fun, facts
from tests.ir._observe import observe, wrong_facts

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
