"""How sparsity changes over the steps of training: functions of the step, for `lepton.sparsify`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]
"""The share of weights that is gone, of the number of the step: float32, 0 to 1."""


def one_shot(sparsity: float, at: int = 0) -> Schedule:
    """All at once.

    Args:
        sparsity: from then on, 0 to 1.
        at: the step.
    """
    _check(sparsity, at, at + 1)
    return lambda step: jnp.where(step >= at, jnp.float32(sparsity), jnp.float32(0))


def polynomial(
    sparsity: float, begin: int, end: int, *, power: float = 3.0, initial: float = 0.0
) -> Schedule:
    """Fast at first, then slower: Zhu & Gupta, "To prune, or not to prune" (arXiv:1710.01878).

    Args:
        sparsity: at the end, 0 to 1.
        begin: the first step at which weights go.
        end: the step from which on it stays.
        power: 1 is a straight line.
        initial: the sparsity at the beginning.
    """
    _check(sparsity, begin, end)
    _check(initial, begin, end)

    def at(step: jax.Array) -> jax.Array:
        left = 1 - jnp.clip((step - begin) / (end - begin), 0, 1)
        found = sparsity + (initial - sparsity) * left**power
        return jnp.where(step >= begin, found, 0).astype(jnp.float32)

    return at


def iterative(sparsity: float, begin: int, end: int, rounds: int) -> Schedule:
    """In rounds, each of which takes the same share of what is left: Han et al. (arXiv:1506.02626).

    Args:
        sparsity: after the last round, 0 to 1.
        begin: the step of the first round.
        end: the step of the last one.
        rounds: how many.
    """
    _check(sparsity, begin, end)
    if rounds < 1:
        raise ValueError(f"there is at least one round, not {rounds}")

    def at(step: jax.Array) -> jax.Array:
        length = max((end - begin) / max(rounds - 1, 1), 1)
        done = jnp.clip(jnp.floor((step - begin) / length) + 1, 0, rounds)
        return (1 - (1 - sparsity) ** (done / rounds)).astype(jnp.float32)

    return at


def cyclic(sparsity: float, begin: int, end: int, period: int, *, dense: float = 0.5) -> Schedule:
    """Sparse and dense in turn: AC/DC of Peste et al. (arXiv:2106.12379). Sparse from the end on.

    Args:
        sparsity: of the sparse phases, 0 to 1.
        begin: the step of the first sparse phase.
        end: the step from which on it stays sparse.
        period: steps of a sparse and a dense phase together.
        dense: the share of the period that is dense.
    """
    _check(sparsity, begin, end)
    if period < 2 or not 0 < dense < 1:
        raise ValueError(f"a period has 2 steps or more, a part of it dense; not {period} and {dense}")

    def at(step: jax.Array) -> jax.Array:
        sparse = ((step - begin) % period < (1 - dense) * period) | (step >= end)
        return jnp.where((step >= begin) & sparse, jnp.float32(sparsity), jnp.float32(0))

    return at


def _check(sparsity: float, begin: int, end: int) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"a sparsity is 0 to 1, not {sparsity}")
    if not 0 <= begin < end:
        raise ValueError(f"a schedule begins at step 0 or later and ends after that; not {begin} and {end}")
