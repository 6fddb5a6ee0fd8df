"""Attention: alone, with its gradient, and in layers in a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp

from benchmarks.rewrite_cases._attention_by_hand import by_hand, by_hand_with_sums, window_by_hand
from benchmarks.rewrite_cases._attention_layers import arrays, gradients, layers, layers_trained
from benchmarks.rewrite_cases._case import Case, normal


def scores_of(q: Any, k: Any) -> Any:
    """[batch, heads, queries, keys]."""
    return jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])


def mix(weights: Any, v: Any) -> Any:
    """[batch, queries, heads, width]."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def causal(q: Any, k: Any, v: Any) -> Any:
    """Causal attention as people write it."""
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    return mix(jax.nn.softmax(jnp.where(mask, scores_of(q, k), -jnp.inf), axis=-1), v)


def filled(q: Any, k: Any, v: Any) -> Any:
    """The same with a mask of very low numbers and the softmax spelled out."""
    mask = jnp.arange(q.shape[1])[:, None] >= jnp.arange(k.shape[1])
    scores = jnp.where(mask, scores_of(q, k), -1e9)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return mix(weights / weights.sum(-1, keepdims=True), v)


def library(q: Any, k: Any, v: Any) -> Any:
    """What `jax.nn` calls attention."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def unmasked(q: Any, k: Any, v: Any) -> Any:
    """Every query sees every key."""
    return mix(jax.nn.softmax(scores_of(q, k), axis=-1), v)


def window(q: Any, k: Any, v: Any) -> Any:
    """The last 256 keys, with capped scores."""
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])
    scores = 30.0 * jnp.tanh(scores_of(q, k) / 30.0)
    return mix(jax.nn.softmax(jnp.where((distance >= 0) & (distance < 256), scores, -jnp.inf)), v)


def where(q: Any, k: Any, v: Any) -> Any:
    """The mask is an argument of the softmax."""
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    return mix(jax.nn.softmax(scores_of(q, k), where=mask), v)


def masked_exponentials(q: Any, k: Any, v: Any) -> Any:
    """The exponentials are masked, and what they are divided by is never zero."""
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    scores = jnp.where(mask, scores_of(q, k), -1e9)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True)) * mask
    return mix(weights / (weights.sum(-1, keepdims=True) + 1e-9), v)


def by_logsumexp(q: Any, k: Any, v: Any) -> Any:
    """Exponentials of log-probabilities."""
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    scores = jnp.where(mask, scores_of(q, k), -jnp.inf)
    return mix(jnp.exp(scores - jax.nn.logsumexp(scores, -1, keepdims=True)), v)


def sink(q: Any, k: Any, v: Any) -> Any:
    """A score for each head that takes part in the softmax, and whose weight is cut off again."""
    logits = jnp.linspace(-1, 1, q.shape[2])
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    scores = jnp.where(mask, scores_of(q, k), -jnp.inf)
    column = jnp.broadcast_to(logits[:, None, None], (*scores.shape[:3], 1))
    return mix(jax.nn.softmax(jnp.concatenate([scores, column], -1))[..., :-1], v)


def sink_by_hand(q: Any, k: Any, v: Any) -> Any:
    """Attention, scaled by what the sink leaves of it."""
    result, sums = by_hand_with_sums(q, k, v)
    left = jax.nn.sigmoid(sums - jnp.linspace(-1, 1, q.shape[2])[:, None])
    return result * left.swapaxes(1, 2)[..., None]


def training(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Loss and gradients."""
    return jax.value_and_grad(lambda q, k, v: (fun(q, k, v) ** 2).sum(), (0, 1, 2))


# By hand, with a window or capped scores, and all gradients: one loop over the pairs of blocks that count


def cudnn(q: Any, k: Any, v: Any) -> Any:
    """The best form on an NVIDIA GPU."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def training_narrow(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Loss, summed in float32, and gradients."""
    return jax.value_and_grad(lambda q, k, v: (fun(q, k, v).astype(jnp.float32) ** 2).mean(), (0, 1, 2))


def arguments(
    batch: int, length: int, dtype: Any = jnp.float32, heads: int = 8, width: int = 64
) -> Callable[[], tuple[Any, ...]]:
    """Queries, keys and values."""
    return lambda: tuple(normal(batch, length, heads, width, seed=s, dtype=dtype) for s in range(3))


CASES: Final[list[Case]] = [
    *(
        Case(f"causal attention, {length}", causal, by_hand, arguments(batch, length))
        for batch, length in ((2, 1024), (2, 2048), (1, 4096))
    ),
    Case("causal attention, softmax by hand", filled, by_hand, arguments(2, 1024)),
    Case("softmax(scores, where=mask)", where, by_hand, arguments(2, 1024)),
    Case("causal attention, exponentials masked", masked_exponentials, by_hand, arguments(2, 1024)),
    Case("causal attention, exp(s - logsumexp(s))", by_logsumexp, by_hand, arguments(2, 1024)),
    Case("causal attention with a sink", sink, sink_by_hand, arguments(2, 1024)),
    Case("jax.nn.dot_product_attention", library, by_hand, arguments(2, 1024)),
    Case(
        "window of 256, capped",
        window,
        window_by_hand,
        arguments(1, 2048),
    ),
    Case("causal attention and its gradient", training(causal), training(by_hand), arguments(2, 1024)),
    Case(
        "causal attention in bfloat16",
        causal,
        by_hand,
        arguments(1, 1024, jnp.bfloat16),
        gpu=cudnn,
        gpu_args=arguments(4, 4096, jnp.bfloat16, 16, 128),
        tolerance=5e-2,
    ),
    Case(
        "causal attention in bfloat16 and its gradient",
        training_narrow(causal),
        training_narrow(by_hand),
        arguments(1, 1024, jnp.bfloat16),
        gpu=training_narrow(cudnn),
        gpu_args=arguments(4, 4096, jnp.bfloat16, 16, 128),
        tolerance=5e-2,
    ),
    Case("attention without a mask, 1024", unmasked, unmasked, arguments(1, 1024)),
    Case("short attention: nothing to gain", causal, causal, arguments(8, 128)),
    Case(
        "layers in a scan and their gradient, 1024",
        layers_trained(causal),
        layers_trained(by_hand),
        layers(1024),
    ),
    Case("the same without a mask", layers_trained(unmasked), layers_trained(unmasked), layers(1024)),
    Case("gradient of causal attention alone", gradients(causal), gradients(by_hand), arrays(1024)),
    Case("gradient without a mask alone", gradients(unmasked), gradients(unmasked), arrays(1024)),
    Case(
        "short layers in a scan: nothing to gain", layers_trained(causal), layers_trained(causal), layers(128)
    ),
]
