"""Pruning and low rank in `shard_map`: each device's part on its own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import lepton_jax as lepton
from tests.passes._quantize import done, reasons
from tests.passes.test_quantize_shards import NAMES, PARAMS, SPECS, X, quantised, spread, whole


def by_parts(change: Any) -> dict[str, Any]:
    """The parameters, each device's part of each weight changed on its own."""

    def one(name: str, array: Any) -> Any:
        if name == "layers":
            return np.stack([change(layer) for layer in array])
        axis = next((i for i, part in enumerate(SPECS[name]) if part), None)
        parts = [array] if axis is None else np.split(array, 2, axis)
        return np.concatenate([change(part) for part in parts], axis or 0)

    return {name: array if array.ndim < 2 else one(name, array) for name, array in PARAMS.items()}


def halved(part: Any) -> Any:
    """The half of the numbers that are largest."""
    return np.where(np.abs(part) > np.sort(np.abs(part), None)[part.size // 2 - 1], part, 0)


def thin(part: Any, rank: int) -> Any:
    """The nearest matrix of a rank."""
    u, s, v = np.linalg.svd(part, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@pytest.mark.parametrize("check", [True, False])
def test_each_device_prunes_and_factors_its_part(check: bool) -> None:
    pruned = lepton.compile(spread(check), PARAMS, X, passes="default,prune", strict=True)
    assert quantised(pruned.report().passes.sites) == NAMES
    np.testing.assert_allclose(pruned(X), whole(by_parts(halved), X), rtol=1e-4, atol=1e-5)
    passes = (
        'default,low-rank{rank=3,goal=smaller,skip="p/down"},low-rank{ratio=0.6,goal=smaller,only="p/down"}'
    )
    factored = lepton.compile(spread(check), PARAMS, X, passes=passes, strict=True)
    assert quantised(factored.report().passes.sites) == NAMES
    expected = by_parts(lambda part: thin(part, 1 if part.shape == (8, 4) else 3))
    np.testing.assert_allclose(factored(X), whole(expected, X), rtol=1e-3, atol=1e-4)


def test_by_inputs_with_gradients_and_what_is_left() -> None:
    passes = 'default,prune{importance=sparsegpt,pattern="2:4"}'
    model = lepton.compile(spread(True), PARAMS, X, passes=passes, calibration=[X], strict=True)
    assert quantised(model.report().passes.sites) == NAMES
    up = next(array for array in map(np.asarray, model.params.values()) if array.shape == (2, 8, 8))
    assert (np.count_nonzero(up.reshape(2, 2, 4, 8), 2) == 2).all()  # of each four inputs two stay
    f = lepton.optimize(spread(True), "default,prune", params="p", strict=True)
    slopes = jax.jit(jax.grad(lambda p: f(p, X).sum()))(PARAMS)
    for name, stays in by_parts(halved).items():
        assert stays.ndim < 2 or not np.asarray(slopes[name])[stays == 0].any()
    for passes, reason in (
        ("default,prune{among=global}", "it is in a loop, branch or shard_map"),
        ("default,low-rank{energy=0.9}", "in a shard_map weights are not known beforehand"),
        ("default,palettize", "it is read in a shard_map, where weights stay"),
    ):
        sites = lepton.compile(spread(True), PARAMS, X, passes=passes, strict=True).report().passes.sites
        assert not any(done(sites).values())
        assert reason in reasons(sites)["p/up"], passes
