"""Values of two models brought to shapes that can be compared."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.distill._arrays import clean
from lepton_jax.rewrite import UsageError


def fitted(student: Any, teacher: Any, name: str) -> tuple[jax.Array, jax.Array]:
    """Both with the same positions: [batch, *positions, channels], the larger averaged down to the smaller.

    Args:
        name: of the term, for messages.

    Raises:
        UsageError: batches or the number of dimensions differ, sequences differ in length, or a size is no
            multiple of the other.
    """
    mine, its = student.shape, teacher.shape
    if len(mine) != len(its) or mine[:1] != its[:1] or (len(mine) < 4 and mine[:-1] != its[:-1]):
        raise UsageError(f"{name}: the student's shape {mine} and the teacher's {its} cannot be compared")
    target = tuple(map(min, mine[1:-1], its[1:-1]))
    return _pooled(student, target, name), _pooled(teacher, target, name)


def _pooled(x: jax.Array, target: tuple[int, ...], name: str) -> jax.Array:
    """The means over blocks of positions."""
    now = x.shape[1:-1]
    if now == target:
        return x
    if any(size % wanted for size, wanted in zip(now, target, strict=True)):
        raise UsageError(f"{name}: positions {now} cannot be averaged down to {target}: no multiple")
    blocks = [part for size, wanted in zip(now, target, strict=True) for part in (wanted, size // wanted)]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(x.shape[0], *blocks, x.shape[-1])
    return jnp.mean(wide, axis=tuple(range(2, wide.ndim - 1, 2)))


def example_vectors(x: Any, where: Any) -> jax.Array:
    """One vector for each example: the (weighted) mean over what stands between batch and channels.

    Args:
        x: [batch, ..., channels].
        where: weights whose shape is a part of the front of it, or None.

    Returns:
        [batch, channels], float32 or wider.
    """
    leading = x.ndim - 1
    fits = where is not None and jnp.ndim(where) <= leading and jnp.shape(where) == x.shape[: jnp.ndim(where)]
    (wide,), keep = clean((x,), where if fits else of_examples(where), leading)
    axes = tuple(range(1, leading))
    if keep is None or not axes:
        return jnp.mean(wide, axes)
    total = jnp.sum(keep, axes)[:, None]
    return jnp.sum(wide * keep[..., None], axes) / jnp.where(total > 0, total, 1)


def token_weights(where: Any, x: jax.Array) -> Any:
    """Weights that fit a value: those of its front, or of its examples where it has no tokens."""
    fits = where is None or jnp.shape(where) == x.shape[:-1][: jnp.ndim(where)]
    return where if fits else of_examples(where)


def of_examples(where: Any) -> Any:
    """Weights of examples [batch]; of weights of tokens: whether an example has any."""
    if where is None or jnp.ndim(where) <= 1:
        return where
    return jnp.any(jnp.asarray(where) > 0, axis=tuple(range(1, jnp.ndim(where))))
