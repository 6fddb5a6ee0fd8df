"""One-hot arrays and masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_softmax, logsumexp, one_hot

from benchmarks.rewrite_cases._case import Case, integers, normal

V = 2048


def table_loss(i: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(one_hot(i, V) @ t))


def table_loss_by_hand(i: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(t[i]))


def loss(x: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.sum(one_hot(y, x.shape[-1]) * log_softmax(x), axis=-1))


def loss_by_hand(x: jax.Array, y: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(x, y[:, None], axis=-1)[:, 0]
    return jnp.mean(logsumexp(x, axis=-1) - picked)


def masked_sums(x: jax.Array, s: jax.Array) -> jax.Array:
    return jnp.stack([jnp.sum(jnp.where((s == i)[:, None], x, 0), 0) for i in range(16)])


def by_vmap(x: jax.Array, s: jax.Array) -> jax.Array:
    return jax.vmap(lambda i: jnp.sum(jnp.where((s == i)[:, None], x, 0), 0))(jnp.arange(16))


def segment_sums(x: jax.Array, s: jax.Array) -> jax.Array:
    return jax.ops.segment_sum(x, s, num_segments=16)


def class_means(x: jax.Array, s: jax.Array) -> jax.Array:
    def mean(k: int) -> jax.Array:
        return jnp.sum(jnp.where((s == k)[:, None], x, 0), 0) / jnp.sum(s == k)

    return jnp.stack([mean(k) for k in range(16)])


def class_means_by_hand(x: jax.Array, s: jax.Array) -> jax.Array:
    return segment_sums(x, s) / jnp.bincount(s, length=16)[:, None]


def smoothed(x: jax.Array, y: jax.Array) -> jax.Array:
    labels = 0.9 * one_hot(y, x.shape[-1]) + 0.1 / x.shape[-1]
    return -jnp.mean(jnp.sum(labels * log_softmax(x), axis=-1))


def rows() -> tuple[jax.Array, ...]:
    return integers(2048, below=V), normal(V, 128)


def logits() -> tuple[jax.Array, ...]:
    return normal(512, 8192), integers(512, below=8192, seed=1)


def points() -> tuple[jax.Array, ...]:
    return normal(20000, 32), integers(20000, below=16, seed=1)


CASES = [
    Case("one_hot(i) @ T", lambda i, t: one_hot(i, V) @ t, lambda i, t: t[i], rows),
    Case("gradient of one_hot(i) @ T", jax.grad(table_loss, 1), jax.grad(table_loss_by_hand, 1), rows),
    Case("cross-entropy with one_hot", loss, loss_by_hand, logits),
    Case("gradient of cross-entropy with one_hot", jax.grad(loss), jax.grad(loss_by_hand), logits),
    Case("stack of masked sums", masked_sums, segment_sums, points),
    Case("masked sums by vmap", by_vmap, segment_sums, points),
    Case(
        "counts of classes, sum(one_hot)",
        lambda s: jnp.sum(one_hot(s, 64), 0),
        lambda s: jnp.zeros(64).at[s].add(1.0),
        lambda: (integers(200000, below=64),),
    ),
    Case("means by class", class_means, class_means_by_hand, points),
    Case(
        "sums by ten masks",
        lambda x, m: jnp.sum(jnp.where(m[:, :, None], x, 0), 1),
        lambda x, m: m.astype(x.dtype) @ x,
        lambda: (normal(20000, 32), normal(10, 20000, seed=1) > 0),
    ),
    Case("segment_sum: must stay", segment_sums, segment_sums, points),
    Case("cross-entropy with smoothed labels: must stay", smoothed, smoothed, logits),
]
