"""Products and sums that only a search over all equal forms improves (`default,saturate`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case
from benchmarks.rewrite_cases.chains import arrays

PASSES = "default,saturate"
N = 1024


def transposes(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b.T + b @ a.T


def transposes_by_hand(a: jax.Array, b: jax.Array) -> jax.Array:
    product = a @ b.T
    return product + product.T


def symmetric_loss(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(transposes(a, b)))


def symmetric_gradient_by_hand(a: jax.Array, b: jax.Array) -> jax.Array:
    outer = jnp.cos(transposes_by_hand(a, b))
    return (outer + outer.T) @ b


def crossed(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    return a @ c + (a @ d + b @ c) + b @ d


def crossed_by_hand(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    return (a + b) @ (c + d)


def overlapping(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (a @ b) @ c, (b @ c) @ d


def overlapping_by_hand(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    shared = b @ c
    return a @ shared, shared @ d


def quadratic(a: jax.Array, x: jax.Array) -> jax.Array:
    return x @ ((a + a.T) @ x)


def quadratic_by_hand(a: jax.Array, x: jax.Array) -> jax.Array:
    return 2.0 * (x @ (a @ x))


def reflections(v: jax.Array, w: jax.Array, a: jax.Array) -> jax.Array:
    one = jnp.eye(len(v))
    return (one - 2.0 * jnp.outer(v, v)) @ (one - 2.0 * jnp.outer(w, w)) @ a


def reflections_by_hand(v: jax.Array, w: jax.Array, a: jax.Array) -> jax.Array:
    once = a - jnp.outer(2.0 * w, w @ a)
    return once - jnp.outer(2.0 * v, v @ once)


def nearly_low_rank(a: jax.Array, u: jax.Array, v: jax.Array, b: jax.Array, w: jax.Array) -> jax.Array:
    return (a + jnp.outer(u, v)) @ (b @ w)


def iteration(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, u: jax.Array) -> jax.Array:
    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y, z = c @ x, d @ x
        return jnp.tanh(a @ y + (a @ z + b @ y) + b @ z + u), None

    return lax.scan(step, u, None, length=500)[0]


def iteration_by_hand(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, u: jax.Array) -> jax.Array:
    both = (a + b) @ (c + d)
    return lax.scan(lambda x, _: (jnp.tanh(both @ x + u), None), u, None, length=500)[0]


def different(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    return a @ b + c @ d


CASES = [
    Case("A Bᵀ + B Aᵀ", transposes, transposes_by_hand, arrays((N, N), (N, N)), passes=PASSES),
    Case(
        "gradient of Σ sin(A Bᵀ + B Aᵀ)",
        jax.grad(symmetric_loss),
        symmetric_gradient_by_hand,
        arrays((N, N), (N, N), scale=0.2),
        passes=PASSES,
    ),
    Case("A C + (A D + B C) + B D", crossed, crossed_by_hand, arrays(*((N, N),) * 4), passes=PASSES),
    Case("(A B) C and (B C) D", overlapping, overlapping_by_hand, arrays(*((N, N),) * 4), passes=PASSES),
    Case("x · (A + Aᵀ) x", quadratic, quadratic_by_hand, arrays((2 * N, 2 * N), (2 * N,)), passes=PASSES),
    Case(
        "two reflections of a matrix",
        reflections,
        reflections_by_hand,
        arrays((N,), (N,), (N, N), scale=0.04),
        passes=PASSES,
    ),
    Case(
        "A (C x) + (A (D x) + B (C x)) + B (D x) in a loop",
        iteration,
        iteration_by_hand,
        arrays(*((256, 256),) * 4, (256,), scale=0.02),
        passes=PASSES,
    ),
    Case(
        "(A + u vᵀ) (B w): the greedy passes do it",
        nearly_low_rank,
        lambda a, u, v, b, w: (lambda x: a @ x + u * (v @ x))(b @ w),
        arrays((N, N), (N,), (N,), (N, N), (N,)),
        passes=PASSES,
    ),
    Case("A B + C D: must stay", different, different, arrays(*((N // 2, N // 2),) * 4), passes=PASSES),
]
