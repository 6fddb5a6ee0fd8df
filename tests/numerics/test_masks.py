"""Masks for pruning: patterns, shares, and what is ranked together."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import masks
from lepton_jax.numerics.sparsity_schedules import Schedule, cyclic, iterative, one_shot, polynomial

RNG = np.random.default_rng(0)
SCORES = jnp.asarray(RNG.random((10, 14)), jnp.float32)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_the_largest_stay(sparsity: float) -> None:
    """As many go as were asked for, each smaller than all that stay; also where the share is traced."""
    found = np.asarray(jax.jit(masks.Unstructured().mask)(SCORES, jnp.float32(sparsity)))
    assert (~found).sum() == round(sparsity * SCORES.size)
    if 0 < sparsity < 1:
        assert np.asarray(SCORES)[found].min() > np.asarray(SCORES)[~found].max()


def test_equal_scores_are_told_apart() -> None:
    """A share of equal scores goes, not all or none of them."""
    assert int(masks.Unstructured().mask(jnp.ones((4, 4)), 0.25).sum()) == 12
    assert int(masks.Unstructured().mask(jnp.zeros((0, 4)), 0.25).sum()) == 0


def test_channels_and_blocks_go_together() -> None:
    """Whole channels and whole blocks, those at the ends too."""
    channels = np.asarray(masks.Channel(0).mask(SCORES, 0.4))
    assert set(channels.sum(1)) == {0, 14} and (channels.sum(1) == 0).sum() == 4
    sums = np.asarray(SCORES).sum(1)
    assert sums[channels[:, 0]].min() > sums[~channels[:, 0]].max()
    blocks = np.asarray(masks.Block((4, 5)).mask(SCORES, 0.5))
    parts = [blocks[i : i + 4, j : j + 5] for i in range(0, 10, 4) for j in range(0, 14, 5)]
    assert all(part.all() or not part.any() for part in parts) and sum(not part.any() for part in parts) in (
        4,
        5,
    )
    deep = masks.Block((2,)).mask(jnp.stack([SCORES, SCORES]), 0.5)
    assert deep.shape == (2, 10, 14)
    with pytest.raises(ValueError, match="do not fit"):
        masks.Block((2, 2, 2)).mask(SCORES, 0.5)
    with pytest.raises(ValueError, match="1 or more"):
        masks.Block((0,))


def test_an_axis_that_is_not_there_is_refused() -> None:
    """Channels along the sixth axis of a matrix."""
    with pytest.raises(ValueError, match="has no axis 5"):
        masks.Channel(5).mask(jnp.ones((2, 3)), 0.5)


def test_n_of_m() -> None:
    """Of every four two stay, the larger ones; a short last group keeps two at most."""
    found = np.asarray(masks.NofM(2, 4, axis=0).mask(SCORES, 0.5))
    assert (found[:4].sum(0) == 2).all() and (found[4:8].sum(0) == 2).all() and (found[8:].sum(0) == 2).all()
    first = np.asarray(SCORES)[:4]
    assert (
        np.sort(np.where(found[:4], first, 9), 0)[1] > np.sort(np.where(found[:4], -9, first), 0)[-1]
    ).all()
    assert bool(masks.NofM(2, 4, axis=0).mask(SCORES, 0.0).all())
    with pytest.raises(ValueError, match="0 < n < m"):
        masks.NofM(4, 4)
    with pytest.raises(ValueError, match="no axis"):
        masks.NofM(2, 4, axis=2).mask(SCORES, 0.5)


def test_ranked_together() -> None:
    """The weaker array loses more; the share is that of all."""
    first, second = masks.global_masks([SCORES, 0.1 * SCORES[:5]], 0.5, masks.Unstructured())
    assert int((~first).sum() + (~second).sum()) == round(0.5 * 210) and float(second.mean()) < float(
        first.mean()
    )
    two = masks.global_masks([SCORES, SCORES], 0.5, masks.NofM(1, 2, axis=1))
    assert [float(each.mean()) for each in two] == [0.5, 0.5]


def test_erdos_renyi() -> None:
    """The sparsity of all together is as asked, arrays that would keep more than all are dense."""
    shapes = [(3, 3, 3, 16), (3, 3, 16, 64), (64, 10), (4096, 4096)]
    for sparsity in (0.0, 0.5, 0.9, 0.99):
        found = masks.erdos_renyi(shapes, sparsity)
        sizes = np.array([np.prod(shape) for shape in shapes])
        np.testing.assert_allclose(np.dot(sizes, found) / sizes.sum(), sparsity, atol=1e-9)
        assert all(0 <= each < 1 for each in found)
        traced = jax.jit(lambda s: masks.erdos_renyi_at(shapes, s))(jnp.float32(sparsity))
        np.testing.assert_allclose(traced, found, atol=2e-3)
    assert masks.erdos_renyi(shapes, 0.5)[0] == 0
    with pytest.raises(ValueError, match="less than 1"):
        masks.erdos_renyi(shapes, 1.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (one_shot(0.9, 5), {0: 0, 4: 0, 5: 0.9, 99: 0.9}),
        (polynomial(0.8, 10, 20), {9: 0, 10: 0, 15: 0.7, 20: 0.8, 50: 0.8}),
        (polynomial(0.8, 10, 20, power=1, initial=0.4), {9: 0, 10: 0.4, 15: 0.6, 20: 0.8}),
        (iterative(0.75, 10, 20, 2), {9: 0, 10: 0.5, 19: 0.5, 20: 0.75, 40: 0.75}),
        (cyclic(0.9, 10, 50, 10), {9: 0, 10: 0.9, 14: 0.9, 15: 0, 19: 0, 20: 0.9, 45: 0, 50: 0.9, 56: 0.9}),
    ],
)
def test_schedules(schedule: Schedule, expected: dict[int, float]) -> None:
    """Sparsity at some steps."""
    steps = jnp.array(list(expected))
    np.testing.assert_allclose(jax.vmap(schedule)(steps), list(expected.values()), atol=1e-6)


def test_schedules_refuse_what_cannot_be() -> None:
    """Shares beyond one, ends before beginnings."""
    wrong: tuple[Callable[[], Schedule], ...] = (
        lambda: one_shot(1.5),
        lambda: polynomial(0.5, 10, 10),
        lambda: iterative(0.5, 0, 9, 0),
        lambda: cyclic(0.5, 0, 9, 1),
    )
    for make in wrong:
        with pytest.raises(ValueError, match=r"sparsity is|schedule begins|one round|period"):
            make()
