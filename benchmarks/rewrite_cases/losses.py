"""Softmax losses, logarithms, norms and powers."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, integers, normal

Args = tuple[Any, ...]


def logits() -> Args:
    """Logits and labels."""
    return normal(2048, 8192), integers(2048, below=8192, seed=1)


def small_logits() -> Args:
    """Logits that fit into a cache."""
    return (normal(512, 2048),)


def tokens() -> Args:
    """Hidden states, an output projection, and labels."""
    return normal(4096, 256), normal(256, 8192, seed=1) / 16, integers(4096, below=8192, seed=2)


def vocabulary() -> Args:
    """The same with a larger vocabulary."""
    return normal(2048, 256), normal(256, 32768, seed=1) / 16, integers(2048, below=32768, seed=2)


def rows() -> Args:
    """A gradient, hidden states and a scale."""
    return normal(4096, 512), normal(4096, 512, seed=1), normal(512, seed=2)


def cross_entropy(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean negative log-likelihood."""
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=-1).mean()


def cross_entropy_by_hand(x: jax.Array, y: jax.Array) -> jax.Array:
    """The label's logit and the normaliser."""
    return (jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, y[:, None], -1)[:, 0]).mean()


def gradient_by_hand(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax minus labels, in one pass."""
    norm = jax.nn.logsumexp(x, -1)
    loss = (norm - jnp.take_along_axis(x, y[:, None], -1)[:, 0]).mean()
    labels = y[:, None] == jnp.arange(x.shape[1])
    return loss, (jnp.exp(x - norm[:, None]) - labels) / x.shape[0]


def projected(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """The loss behind a projection."""
    return cross_entropy(h @ w, y)


def _tiles(h: jax.Array, y: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    return h.reshape(-1, size, h.shape[1]), y.reshape(-1, size)


def projected_by_hand(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """512 rows at a time."""

    def step(total: jax.Array, tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows, labels = tile
        return total + cross_entropy_by_hand(rows @ w, labels), None

    tiles = _tiles(h, y, 512)
    return lax.scan(step, jnp.zeros(()), tiles)[0] / tiles[1].shape[0]


def projected_gradient_by_hand(h: jax.Array, w: jax.Array, y: jax.Array) -> Any:
    """512 rows at a time, forward and backward."""
    count = h.shape[0]

    def step(state: Any, tile: Any) -> tuple[Any, jax.Array]:
        total, dw = state
        rows, labels = tile
        loss, slope = gradient_by_hand(rows @ w, labels)
        slope = slope * (rows.shape[0] / count)
        return (total + loss * (rows.shape[0] / count), dw + rows.T @ slope), slope @ w.T

    (loss, dw), dh = lax.scan(step, (jnp.zeros(()), jnp.zeros_like(w)), _tiles(h, y, 512))
    return loss, (dh.reshape(h.shape), dw)


def log_of_softmax(x: jax.Array) -> jax.Array:
    """Entropy, as it is written down."""
    return (x * jnp.log(jax.nn.softmax(x))).sum()


def log_softmax(x: jax.Array) -> jax.Array:
    """The same with one logarithm a row."""
    return (x * jax.nn.log_softmax(x)).sum()


def binary(x: jax.Array) -> jax.Array:
    """Log-likelihoods of two classes: the stable form takes longer."""
    return jnp.log(jax.nn.sigmoid(x)).sum() + jnp.log(1 - jax.nn.sigmoid(x)).sum()


def normaliser(x: jax.Array) -> jax.Array:
    """Not stabilised: the stable form takes longer."""
    return jnp.log(jnp.exp(x).sum(-1))


def layer_norm(x: jax.Array) -> jax.Array:
    """With the variance in two passes."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)


def layer_norm_gradient(g: jax.Array, x: jax.Array, scale: jax.Array) -> Args:
    """As JAX differentiates it."""
    value, pull = jax.vjp(lambda x, scale: layer_norm(x) * scale, x, scale)
    return value, *pull(g)


def layer_norm_gradient_by_hand(g: jax.Array, x: jax.Array, scale: jax.Array) -> Args:
    """One product for both sums, and products with vectors for sums."""
    centred = x - x.mean(-1, keepdims=True)
    rate = lax.rsqrt(jnp.square(centred).mean(-1) + 1e-5)
    both = centred * g
    along = rate**3 * (both @ scale) / x.shape[1]
    slope = g * scale * rate[:, None] - centred * along[:, None]
    slope = slope - (rate * (g @ scale) / x.shape[1])[:, None]
    return centred * rate[:, None] * scale, slope, rate @ both


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """With a scale."""
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def rms_norm_gradient(g: jax.Array, x: jax.Array, scale: jax.Array) -> Args:
    """As JAX differentiates it."""
    value, pull = jax.vjp(rms_norm, x, scale)
    return value, *pull(g)


def rms_norm_gradient_by_hand(g: jax.Array, x: jax.Array, scale: jax.Array) -> Args:
    """One product for both sums, and products with vectors for sums."""
    rate = lax.rsqrt(jnp.square(x).mean(-1) + 1e-6)
    both = x * g
    along = rate**3 * (both @ scale) / x.shape[1]
    return rms_norm(x, scale), g * scale * rate[:, None] - x * along[:, None], rate @ both


def powers(x: jax.Array) -> jax.Array:
    """A constant exponent."""
    return jnp.sum(jnp.abs(x) ** 2.5)


def powers_by_hand(x: jax.Array) -> jax.Array:
    """Products and a root."""
    y = jnp.abs(x)
    return jnp.sum(y * y * jnp.sqrt(y))


def softmax_by_logarithm(x: jax.Array) -> jax.Array:
    """Probabilities from log-probabilities."""
    return jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True))


def signed_powers(x: jax.Array) -> jax.Array:
    """A constant exponent, of numbers of both signs."""
    return jnp.nansum(x**1.5)


def signed_powers_by_hand(x: jax.Array) -> jax.Array:
    """A product and a root; of -inf it is inf."""
    y = jnp.where(x + x == x, jnp.abs(x), x)
    return jnp.nansum(y * jnp.sqrt(y))


CASES: Final = [
    Case("cross-entropy", cross_entropy, cross_entropy_by_hand, logits),
    Case(
        "cross-entropy with its gradient",
        jax.value_and_grad(cross_entropy),
        gradient_by_hand,
        logits,
    ),
    Case("cross-entropy of h @ W", projected, projected_by_hand, tokens),
    Case(
        "cross-entropy of h @ W with its gradient",
        jax.value_and_grad(projected, (0, 1)),
        projected_gradient_by_hand,
        tokens,
    ),
    Case(
        "cross-entropy of h @ W with its gradient, 32768 classes",
        jax.value_and_grad(projected, (0, 1)),
        projected_gradient_by_hand,
        vocabulary,
    ),
    Case("log(softmax(x))", log_of_softmax, log_softmax, small_logits),
    Case("log(sigmoid(x)) (stays)", binary, binary, small_logits),
    Case("log(sum(exp(x))) (stays)", normaliser, normaliser, small_logits),
    Case(
        "layer norm with its gradient",
        layer_norm_gradient,
        layer_norm_gradient_by_hand,
        rows,
        gpu=layer_norm_gradient,
    ),
    Case(
        "RMS norm with its gradient",
        rms_norm_gradient,
        rms_norm_gradient_by_hand,
        rows,
        gpu=rms_norm_gradient,
    ),
    Case("abs(x) ** 2.5", powers, powers_by_hand, small_logits),
    Case("x ** 1.5", signed_powers, signed_powers_by_hand, small_logits),
    Case("exp(x - logsumexp(x))", softmax_by_logarithm, lambda x: jax.nn.softmax(x), small_logits),
]
