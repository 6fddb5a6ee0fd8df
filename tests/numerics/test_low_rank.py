"""Thin factors against the theorem that bounds them; forms of kernels; ranks under a budget."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import low_rank
from lepton_jax.numerics.low_rank import Factors, factorize, right_basis, singular_values
from lepton_jax.numerics.low_rank_budget import Curve, allocate, rank_of_energy, tail
from lepton_jax.numerics.low_rank_kernels import (
    channel_factors,
    kernel_spectra,
    spatial_factors,
    tucker_factors,
)

K, N, RANK = 24, 16, 5
RNG = np.random.default_rng(0)
W: Any = np.float32(RNG.normal(size=(K, N)) * np.exp(-np.arange(N) / 4))
X: Any = np.float32(RNG.normal(size=(200, K)) @ RNG.normal(size=(K, K)) * np.exp(-np.arange(K) / 6))
H = X.T @ X


def product(factors: Factors) -> Any:
    return np.asarray(factors.left, np.float64) @ np.asarray(factors.right, np.float64)


def lost(w: Any, rank: int) -> float:
    """What Eckart and Young say that a rank loses at least."""
    return float(np.sqrt(np.sum(np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)[rank:] ** 2)))


def test_the_error_is_the_least_there_is() -> None:
    plain, seen = factorize(W, RANK), factorize(W, RANK, H, damping=1e-7)
    np.testing.assert_allclose(np.linalg.norm(product(plain) - W), lost(W, RANK), rtol=1e-4)
    output = np.asarray(X, np.float64) @ (product(seen) - W)
    np.testing.assert_allclose(np.linalg.norm(output), lost(np.float64(X) @ W, RANK), rtol=1e-3)
    assert np.linalg.norm(X @ (product(plain) - W)) > 1.1 * np.linalg.norm(output)
    for factors in (plain, seen):  # columns and rows of equal norms
        sizes = jnp.linalg.norm(factors.left, axis=0), jnp.linalg.norm(factors.right, axis=1)
        np.testing.assert_allclose(*sizes, rtol=1e-4)
    np.testing.assert_allclose(product(factorize(W, N, H)), W, atol=1e-5)
    np.testing.assert_allclose(product(factorize(W.T, N)), W.T, atol=1e-5)
    values = singular_values(W)
    np.testing.assert_allclose(values, np.linalg.svd(W, compute_uv=False), rtol=1e-4)
    with pytest.raises(ValueError, match="ranks 1 to 16, not 17"):
        factorize(W, 17)
    with pytest.raises(ValueError, match=r"needs a Hessian of \(24, 24\)"):
        factorize(W, 2, H[:3])


def test_matrices_and_hessians_without_full_rank() -> None:
    """Zeros, few inputs, no inputs, NaN among second moments: finite, and right where they can be."""
    few = X[:3].T @ X[:3]
    flat = np.outer(W[:, 0], W[0])
    bad = np.full((K, K), np.nan, np.float32)
    both = jnp.stack([jnp.asarray(flat), jnp.zeros_like(flat)])
    made = factorize(both, 3, jnp.stack([jnp.asarray(few), jnp.asarray(few)]))
    assert all(bool(jnp.isfinite(each).all()) for each in made)
    np.testing.assert_allclose(product(made)[0], flat, atol=1e-5)
    assert not np.asarray(made.left)[1].any()
    of_few = factorize(W, 4, few)
    np.testing.assert_allclose(X[:3] @ product(of_few), X[:3] @ W, atol=0.02 * np.abs(X[:3] @ W).max())
    for hessian in (np.zeros_like(few), bad):
        np.testing.assert_allclose(
            product(factorize(W, RANK, hessian)), product(factorize(W, RANK)), atol=1e-5
        )


def test_dtypes_and_gradients() -> None:
    """bfloat16 weights are decomposed in float32; gradients are finite where singular values are equal."""
    rough = factorize(jnp.asarray(W, jnp.bfloat16), RANK)
    assert rough.left.dtype == rough.right.dtype == jnp.bfloat16
    assert np.linalg.norm(product(rough) - W) < 1.05 * lost(W, RANK)
    basis = np.asarray(right_basis(jnp.eye(6), 3))

    def loss(w: jax.Array) -> jax.Array:
        left, right = factorize(w, 3)
        return jnp.sum(left @ right * jnp.arange(6.0))

    slope = np.asarray(jax.grad(loss)(jnp.eye(6)))
    np.testing.assert_allclose(slope, np.tile(np.arange(6.0) @ basis.T @ basis, (6, 1)), atol=1e-4)


def test_random_projection_of_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "_SKETCHED", 80)
    size, rank = 96, 12
    values = np.exp(-np.arange(size) / 12)
    sides = [np.linalg.qr(RNG.normal(size=(size, size)))[0] for _ in range(2)]
    large: Any = np.float32(sides[0] * values @ sides[1].T)
    least = np.sqrt(np.sum(values[rank:] ** 2))
    assert np.linalg.norm(product(factorize(large, rank)) - large) < 1.01 * least


def test_forms_of_kernels() -> None:
    """Each form loses what its spectra say (Tucker at most that), and nothing at its full rank."""
    kernel: Any = np.float32(RNG.normal(size=(6, 3, 3, 8)) * np.exp(-np.arange(8) / 3))
    patches: Any = np.float32(RNG.normal(size=(400, 6, 1)) * np.ones(9) + 0.1 * RNG.normal(size=(400, 6, 9)))
    patches *= 2.0 ** -np.arange(6)[:, None]  # some channels are loud
    hessian = np.einsum("nik,njl->ikjl", patches, patches).reshape(54, 54)

    def whole(form: str, rank: int, seen: Any) -> Any:
        if form == "channel":
            left, right = channel_factors(kernel, rank, seen)
            return jnp.einsum("ihwr,ro->ihwo", left, right)
        if form == "spatial":
            left, right = spatial_factors(kernel, rank, seen)
            return jnp.einsum("ihr,rwo->ihwo", left, right)
        return jnp.einsum("ip,phwq,qo->ihwo", *tucker_factors(kernel, (min(rank, 6), rank), seen))

    full = {"channel": 8, "spatial": 18, "tucker": 8}

    def everything(hessian: Any) -> Any:
        return {
            form: {
                "full": (whole(form, rank, None), whole(form, rank, hessian)),
                "thin": (whole(form, 4, None), whole(form, 4, hessian)),
                "spectra": kernel_spectra(kernel, None, form),
            }
            for form, rank in full.items()
        }

    rows = patches.reshape(400, 54)
    for form, found in jax.jit(everything)(hessian).items():
        np.testing.assert_allclose(found["full"][0], kernel, atol=1e-5)
        np.testing.assert_allclose(found["full"][1], kernel, atol=1e-4)
        plain, seen = (np.asarray(thin) - kernel for thin in found["thin"])
        lost = (np.linalg.norm(plain) / np.linalg.norm(kernel)) ** 2
        told = sum(float(tail(spectrum)[4]) for spectrum in found["spectra"])
        assert lost < told * 1.001 and (form == "tucker" or lost > told * 0.999), (form, lost, told)
        outputs = [np.linalg.norm(rows @ each.reshape(54, 8)) for each in (plain, seen)]
        assert outputs[1] < outputs[0], (form, outputs)
    with pytest.raises(ValueError, match="no two axes of space"):
        spatial_factors(kernel[:, 0], 2)


def test_ranks_by_energy() -> None:
    errors = tail(np.array([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(errors, [1, 1 / 6, 0, 0])
    assert [rank_of_energy(errors, energy) for energy in (0.5, 0.85, 1.0)] == [1, 2, 2]
    assert rank_of_energy([1.0, 0.5], 0.9) == 1 and not tail(np.zeros(3)).any()
    values = singular_values(jnp.asarray(np.outer(W[:, 0], W[0]) + np.outer(W[:, 1], W[3])))
    assert rank_of_energy(tail(values), 1.0) == 2  # rounding is no energy


@pytest.mark.parametrize("seed", range(4))
def test_budgets_against_all_there_is(seed: int) -> None:
    """Convex curves: as good as the best, up to one step; others: within the budget."""
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(3):
        gains = np.sort(rng.random(4))[::-1]
        errors = np.append(1.0, 1 - np.cumsum(gains) / gains.sum())
        curves.append(Curve(np.arange(5.0) * rng.integers(1, 4) + 1, errors))

    def sums(chosen: Any) -> tuple[float, float]:
        pairs = [(c.costs[i], c.errors[i]) for c, i in zip(curves, chosen, strict=True)]
        return sum(cost for cost, _ in pairs), sum(error for _, error in pairs)

    everything = [sums(chosen) for chosen in itertools.product(range(5), repeat=3)]
    for budget in (3.0, 8.0, 13.5, 20.0, 100.0):
        cost, error = sums(allocate(curves, budget))
        best = min(e for c, e in everything if c <= budget)
        larger = min(e for c, e in everything if c <= max(budget - 3, 3.0))
        assert cost <= budget and best - 1e-12 <= error <= larger + 1e-12, (budget, error, best)
    assert allocate(curves, 0.0) == [0, 0, 0]
    dented = Curve(np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.9, 0.0]))  # the middle is above the hull
    assert allocate([dented], 3.0) == [2] and allocate([dented], 2.5) == [1]
