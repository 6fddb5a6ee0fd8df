"""Weights with zeros: the arithmetic that `prune` writes before their uses."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import unnamed
from lepton_jax.numerics.masks import Channel, Pattern, Unstructured
from lepton_jax.numerics.sparsegpt import sparsegpt
from lepton_jax.numerics.wanda import wanda
from lepton_jax.passes.prune._prune.matrices import Matrices


@dataclass(frozen=True)
class How:
    """How one weight is pruned.

    Attributes:
        matrices: the weight as matrices.
        pattern: on these.
        importance: `magnitude`, `wanda` or `sparsegpt`.
        sparsity: the share that goes; None where it is computed.
        sweeps: of `sparsegpt`.
        space: kernel positions that read the same input channel.
    """

    matrices: Matrices
    pattern: Pattern
    importance: str
    sparsity: float | None
    sweeps: int = 0
    space: int = 1


def masked(weight: jax.Array, *values: jax.Array, how: How) -> jax.Array:
    """The weight with zeros where little is lost; gradients reach what stays.

    Args:
        values: the share that goes, unless `how` has it, and what calibration saw at each use.
    """
    seen = list(map(unnamed, values))
    share: Any = seen.pop(0) if how.sparsity is None else how.sparsity
    fixed = lax.stop_gradient(weight)
    if how.importance == "sparsegpt":
        layout, along = how.matrices.layout, how.matrices.along
        found = sparsegpt(
            fixed,
            functools.reduce(operator.add, seen),
            share,
            pattern=how.pattern,
            layout=layout,
            along=along,
            sweeps=how.sweeps,
        )
        return _where(found.mask, found.weight + (weight - fixed))
    matrices = how.matrices.of(jnp.abs(fixed).astype(jnp.float32))
    norms = None
    if how.importance == "wanda":
        norms = how.matrices.norms(functools.reduce(operator.add, seen), how.space)
    if isinstance(how.pattern, Channel):  # the outputs of all groups are ranked together
        sizes = matrices if norms is None else matrices * norms[..., None]
        kept = jnp.broadcast_to(Unstructured().mask(jnp.sum(sizes, 1, keepdims=True), share), sizes.shape)
    elif norms is not None:
        kept = jax.vmap(lambda m, norm: wanda(m, norm, share, pattern=how.pattern))(matrices, norms)
    elif isinstance(how.pattern, Unstructured):
        kept = how.pattern.mask(matrices, share)
    else:
        kept = jax.vmap(lambda m: how.pattern.mask(m, share))(matrices)
    return _where(how.matrices.back(kept), weight)


def given(weight: jax.Array, mask: jax.Array) -> jax.Array:
    """The weight with zeros where a mask says so that was found for several weights together."""
    return _where(unnamed(mask), weight)


def _where(mask: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.where(mask, weight, jnp.zeros((), weight.dtype))
