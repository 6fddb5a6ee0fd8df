"""Chains of matrix products."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal


def arrays(*shapes: tuple[int, ...], scale: float = 1.0) -> Any:
    """Makes arguments of these shapes."""
    return lambda: tuple(scale * normal(*shape, seed=i) for i, shape in enumerate(shapes))


def loss(a: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin((a @ b) @ v))


def loss_by_hand(a: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(a @ (b @ v)))


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[2]
    return jnp.einsum("bhqk,bhkd->bhqd", scores, v)


def linear_attention_by_hand(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("bhqd,bhde->bhqe", q, jnp.einsum("bhkd,bhke->bhde", k, v) / q.shape[2])


def gram_loop(a: jax.Array, c: jax.Array) -> jax.Array:
    return lax.scan(lambda c, _: (jnp.tanh((a.T @ a) @ c), None), c, None, length=200)[0]


def low_rank_step(u: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
    return lax.scan(lambda h, x: (jnp.tanh((jnp.outer(h, x) @ u) @ (v @ x)), None), x[0], x)[0]


def low_rank_step_by_hand(u: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
    return lax.scan(lambda h, x: (jnp.tanh(h * (x @ (u @ (v @ x)))), None), x[0], x)[0]


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(q @ k.T / 8.0) @ v


S = 512

CASES = [
    Case(
        "(A @ B) @ v",
        lambda a, b, v: (a @ b) @ v,
        lambda a, b, v: a @ (b @ v),
        arrays((1024, 1024), (1024, 1024), (1024,)),
        gpu_args=arrays((4096, 4096), (4096, 4096), (4096,)),
    ),
    Case(
        "((A @ B) @ C) @ D, tall and thin",
        lambda a, b, c, d: ((a @ b) @ c) @ d,
        lambda a, b, c, d: a @ (b @ (c @ d)),
        arrays((2048, 16), (16, 2048), (2048, 512), (512, 4)),
    ),
    Case(
        "gradient of sin((A @ B) @ v)",
        jax.grad(loss, (0, 1)),
        jax.grad(loss_by_hand, (0, 1)),
        arrays((S, S), (S, S), (S,)),
    ),
    Case(
        "attention without softmax, batched",
        linear_attention,
        linear_attention_by_hand,
        arrays(*((2, 4, 1024, 32),) * 3),
    ),
    Case(
        "outer(u, v) @ x",
        lambda u, v, x: jnp.outer(u, v) @ x,
        lambda u, v, x: u[:, None] * (v @ x),
        arrays((4096,), (4096,), (4096, 64)),
    ),
    Case(
        "(x * s) @ W, x large",
        lambda x, s, w: (x * s) @ w,
        lambda x, s, w: x @ (s[:, None] * w),
        arrays((8192, S), (S,), (S, 16)),
    ),
    Case(
        "A @ B + A @ C",
        lambda a, b, c: a @ b + a @ c,
        lambda a, b, c: a @ (b + c),
        arrays((1024, 1024), (1024, 1024), (1024, 1024)),
    ),
    Case(
        "2 (A @ B) - C @ B",
        lambda a, b, c: 2.0 * (a @ b) - c @ b,
        lambda a, b, c: (2.0 * a - c) @ b,
        arrays((1024, 1024), (1024, 1024), (1024, 1024)),
    ),
    Case(
        "outer product in a loop",
        low_rank_step,
        low_rank_step_by_hand,
        arrays((128, 128), (128, 128), (64, 128), scale=0.1),
    ),
    Case("(Aᵀ A) c in a loop: must stay", gram_loop, gram_loop, arrays((S, S), (S,), scale=0.04)),
    Case(
        "A @ (B @ v): must stay",
        lambda a, b, v: a @ (b @ v),
        lambda a, b, v: a @ (b @ v),
        arrays((S, S), (S, S), (S,)),
    ),
    Case(
        "softmax attention: must stay",
        softmax_attention,
        softmax_attention,
        arrays((1024, 64), (1024, 64), (1024, 64)),
    ),
]
