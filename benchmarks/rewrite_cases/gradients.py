"""Gradients of slices, of indices, and of networks of which one output is read."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp

from benchmarks.rewrite_cases._case import Case, integers, normal
from benchmarks.rewrite_cases.demand import mlp, network, tokens

Args = tuple[Any, ...]

PARTS: Final = 64


def table() -> Args:
    """A matrix of many rows."""
    return (normal(2048, 512),)


def table_and_places() -> Args:
    """A table and two sets of row numbers."""
    return normal(16384, 128), integers(64, below=16384, seed=1), integers(32, below=16384, seed=2)


def table_and_numbers() -> Args:
    """A table and two row numbers."""
    return normal(16384, 128), jnp.int32(3), jnp.int32(11)


def by_slices(x: jax.Array) -> jax.Array:
    """A sum over slices, each with a factor of its own."""
    rows = x.shape[0] // PARTS
    parts = (jnp.sin(x[i * rows : (i + 1) * rows]).sum() * (i + 1) for i in range(PARTS))
    return sum(parts, jnp.zeros(()))


def by_blocks(x: jax.Array) -> jax.Array:
    """The same over blocks."""
    factors = jnp.arange(1, PARTS + 1, dtype=x.dtype)
    return (jnp.sin(x.reshape(PARTS, -1)).sum(1) * factors).sum()


def two_lookups(table: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """A loss of some rows of a table."""
    return jnp.sum(jnp.sin(table[i])) + jnp.sum(table[j] ** 2)


def lookups_by_hand(table: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """Its gradient."""
    return jnp.zeros_like(table).at[i].add(jnp.cos(table[i])).at[j].add(2 * table[j])


def last_token_loss(x: jax.Array, *weights: jax.Array) -> jax.Array:
    """A loss of the last token."""
    return jnp.sum(jnp.sin(mlp(x, *weights)[:, -1]))


def last_token_loss_by_hand(x: jax.Array, *weights: jax.Array) -> jax.Array:
    """The same, of the last token alone."""
    return jnp.sum(jnp.sin(mlp(x[:, -1:], *weights)))


def last_logits_loss(h: jax.Array, w: jax.Array) -> jax.Array:
    """A loss of the logits of the last token."""
    return jnp.mean(jax.nn.logsumexp((h @ w)[:, -1], -1))


def last_logits_loss_by_hand(h: jax.Array, w: jax.Array) -> jax.Array:
    """The same, of the last token alone."""
    return jnp.mean(jax.nn.logsumexp(h[:, -1] @ w, -1))


def differences(x: jax.Array) -> jax.Array:
    """A penalty on differences of neighbours."""
    return jnp.sum(jnp.square(x[1:] - x[:-1]))


CASES: Final = [
    Case("gradients: 64 slices", jax.grad(by_slices), jax.grad(by_blocks), table),
    Case("gradients: two lookups in a table", jax.grad(two_lookups), lookups_by_hand, table_and_places),
    Case("gradients: two rows of a table", jax.grad(two_lookups), lookups_by_hand, table_and_numbers),
    Case(
        "gradients: loss of the last token",
        jax.grad(last_token_loss, (0, 1, 3)),
        jax.grad(last_token_loss_by_hand, (0, 1, 3)),
        network,
        passes="default",
    ),
    Case(
        "gradients: loss of last-token logits",
        jax.grad(last_logits_loss, (0, 1)),
        jax.grad(last_logits_loss_by_hand, (0, 1)),
        tokens,
    ),
    Case("gradients: neighbours (left alone)", jax.grad(differences), jax.grad(differences), table),
]
