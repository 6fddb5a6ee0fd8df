"""Palettes: the optimum of one dimension, what is kept, and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_jax.numerics.palettes import PaletteScheme, decode, encode, nbytes, palettize, soft, trained
from lepton_jax.numerics.palettes.scalars import Bins, bins_of, lloyd, optimal, spread
from lepton_jax.numerics.palettes.training import steps
from lepton_jax.numerics.palettes.vectors import centroids_of

Floats = NDArray[np.float64]


def _least(x: Floats, mass: Floats, count: int) -> float:
    """The least squared error of so many clusters of sorted numbers, by trying all ends."""
    size = len(x)
    best = np.full(size + 1, np.inf)
    best[0] = 0
    cost = np.full((size + 1, size + 1), np.inf)
    for i in range(size + 1):
        cost[i, i] = 0
        for j in range(i + 1, size + 1):
            part, m = x[i:j], mass[i:j]
            middle = np.average(part, weights=m) if m.sum() else 0.0
            cost[i, j] = (m * (part - middle) ** 2).sum()
    for _ in range(count):
        best = (best[:, None] + cost).min(0)
    return float(best[size])


def _error(x: Floats, mass: Floats, centroids: Floats) -> float:
    return float((mass * ((x[:, None] - centroids) ** 2).min(1)).sum())


def test_the_optimum_is_found() -> None:
    rng = np.random.default_rng(0)
    cases = [(7, 3), (40, 4), (60, 16), (5, 8), (33, 1), (2, 2)]
    groups, wanted = [], []
    for size, count in cases:
        x, mass = np.sort(rng.standard_normal(size)), rng.uniform(0, 2, size)
        mass[rng.integers(0, size, size // 4)] = 0
        found = optimal([bins_of(x, mass)], count)[0]
        assert np.all(np.diff(found) >= 0)
        assert _error(x, mass, found) == pytest.approx(_least(x, mass, count), abs=1e-12), (size, count)
        groups.append(bins_of(x, mass))
        wanted.append(optimal(groups[-1:], 4)[0])
    np.testing.assert_allclose(optimal([*groups, bins_of(np.zeros(0))], 4)[:-1], wanted)  # all at once
    large = bins_of(rng.standard_normal(3000))
    exact = optimal([large], 16)[0]
    quick = lloyd(large, spread(large, 16))
    least = _error(large.values, large.mass, exact)
    assert least <= _error(large.values, large.mass, quick) < 1.1 * least


def test_few_places_stand_for_many_numbers() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(70_000).astype(ml_dtypes.bfloat16)
    found = bins_of(x)
    values, counts = np.unique(x.astype(np.float64), return_counts=True)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.mass, counts)
    wide = rng.standard_normal(5000)
    coarse = bins_of(wide, most=512)
    assert len(coarse.values) <= 512 and coarse.mass.sum() == 5000
    np.testing.assert_allclose((coarse.values * coarse.mass).sum(), wide.sum())
    centroids = optimal([coarse], 8)[0]
    each = np.ones(5000)
    exact = optimal([bins_of(wide)], 8)[0]
    assert _error(wide, each, centroids) < 1.001 * _error(wide, each, exact)
    middle = lloyd(Bins(np.array([1.0, 2.0, 9.0]), np.array([1.0, 3.0, 1.0])), np.array([0.0, 5.0, 20.0]))
    np.testing.assert_allclose(middle, [1.75, 9.0, 20.0])  # one has no numbers


def test_what_shares_a_palette() -> None:
    rng = np.random.default_rng(2)
    dense = rng.standard_normal((6, 10, 4)).astype(np.float32)
    weight = dense * (rng.random(dense.shape) < 0.5).astype(np.float32)
    schemes = [
        PaletteScheme(4),
        PaletteScheme(2, axis=1, group=3),
        PaletteScheme(3, axis=2, method="lloyd"),
        PaletteScheme(4, vector=2, vector_axis=1),
        PaletteScheme(3, axis=2, group=3, vector=2, vector_axis=0, zeros=False),
        PaletteScheme(1, zeros=False),
        PaletteScheme(8),
    ]
    for scheme in schemes:
        found = palettize(weight, scheme)
        assert found.codes.shape == scheme.codes_shape(weight.shape)
        assert found.palette.shape == (scheme.groups(weight.shape), scheme.entries, scheme.vector)
        codes, palette = map(np.asarray, found)
        made = decode(codes, palette, scheme)
        assert made.shape == weight.shape
        assert codes.max() < scheme.entries
        assert np.linalg.norm(made - weight) / np.linalg.norm(weight) < 0.99
        if scheme.zeros and scheme.vector == 1:
            np.testing.assert_array_equal(made[weight == 0], 0)
        if scheme.axis is not None:  # a group is as it would be on its own
            part = np.take(weight, np.arange(scheme.group), scheme.axis)
            alone = palettize(part, scheme)
            np.testing.assert_allclose(alone.palette[0], found.palette[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made, weight, atol=1e-6)  # as many entries as numbers
    for scheme in (schemes[1], schemes[4]):  # traced, the same
        found = palettize(weight, scheme)
        again = jax.jit(encode, static_argnums=2)(weight, found.palette, scheme)
        np.testing.assert_array_equal(again, found.codes)
        traced = jax.jit(decode, static_argnums=2)(*found, scheme)
        np.testing.assert_array_equal(
            traced, decode(np.asarray(found.codes), np.asarray(found.palette), scheme)
        )
    assert nbytes((6, 10, 4), schemes[0]) == 120 + 16 * 4
    assert palettize(jnp.zeros((0, 3)), schemes[0]).codes.shape == (0, 3)


def test_importance_and_vectors() -> None:
    weight = jnp.array([0.0, 1.0, 2.0, 3.0])
    scheme = PaletteScheme(1, zeros=False)
    heavy = palettize(weight, scheme, jnp.array([1.0, 0.0, 0.0, 1.0])).palette
    np.testing.assert_allclose(heavy.reshape(-1), [0, 3])
    points = np.repeat(np.array([[0, 0], [5, 1], [-3, 2], [9, 9]], np.float32), [6, 5, 3, 2], 0)
    found = centroids_of(points, np.ones(len(points)), 4, fixed=1)
    np.testing.assert_allclose(sorted(found.tolist()), sorted(np.unique(points, axis=0).tolist()))
    np.testing.assert_array_equal(found, centroids_of(points, np.ones(len(points)), 4, fixed=1))
    np.testing.assert_array_equal(found[0], 0)


def test_gradients() -> None:
    rng = np.random.default_rng(3)
    weight = jnp.asarray(rng.standard_normal((8, 6)) * (rng.random((8, 6)) < 0.7), jnp.float32)
    scheme = PaletteScheme(2, axis=1, group=4)
    codes, palette = palettize(weight, scheme)
    slope = jnp.asarray(rng.standard_normal((8, 6)), jnp.float32)
    given = jax.jit(jax.grad(lambda p: jnp.vdot(trained(codes, p, scheme), slope)))(palette)
    members, slopes = np.asarray(codes), np.asarray(slope)
    for group, channels in enumerate((slice(0, 4), slice(4, 6))):
        for entry in range(4):
            wanted = slopes[:, channels][members[:, channels] == entry].sum() if entry else 0.0
            np.testing.assert_allclose(np.asarray(given)[group, entry, 0], wanted, rtol=1e-5, atol=1e-5)

    @jax.jit
    def both(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed, entries = soft(w, palette, scheme, 1e-7)
        return mixed, decode(encode(w, entries, scheme), entries, scheme)

    hard, coded = both(weight)
    np.testing.assert_allclose(hard, coded, atol=1e-5)
    points, start, scale = weight.reshape(-1, 1), palette[0], jnp.float32(0.5)
    mass = jnp.where(points[:, 0] == 0, 0.0, 1.0)

    @jax.jit
    def mixed(x: jax.Array) -> jax.Array:
        return jnp.vdot(steps(x, start, scale, mass, scheme)[1][:, 0], slope.reshape(-1))

    step = jnp.asarray(rng.standard_normal(points.shape), jnp.float32) * mass[:, None]
    numeric = (mixed(points + 1e-2 * step) - mixed(points - 1e-2 * step)) / 2e-2
    assert float(jnp.vdot(jax.jit(jax.grad(mixed))(points), step)) == pytest.approx(float(numeric), rel=0.01)


def test_what_cannot_be() -> None:
    wrong: list[dict[str, Any]] = [{"bits": 0}, {"bits": 9}, {"bits": 4, "group": 0}]
    for options in (*wrong, {"bits": 4, "vector": 2, "axis": 0}):
        with pytest.raises(ValueError, match=r"bits|1 or more|vectors"):
            PaletteScheme(**options)
    with pytest.raises(ValueError, match="cannot be cut into vectors of 4"):
        palettize(jnp.ones((6, 3)), PaletteScheme(2, vector=4))
