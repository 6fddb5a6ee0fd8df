"""Attention whose forward and backward half are apart: layers in a loop, and the gradient alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import normal

LAYERS: Final = 3


def layers_trained(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Loss and gradients of layers of attention in a loop."""

    def layer(x: Any, p: Any) -> tuple[Any, None]:
        q, k, v = (jnp.einsum("btw,whd->bthd", x, p[name]) for name in "qkv")
        return x + jnp.einsum("bthd,hdw->btw", attend(q, k, v), p["o"]), None

    return jax.value_and_grad(lambda p, x: (lax.scan(layer, x, p)[0] ** 2).mean())


def gradients(attend: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of attention, from one of its result."""
    return lambda change, *x: jax.vjp(attend, *x)[1](change)


def layers(length: int, heads: int = 8, width: int = 64) -> Callable[[], tuple[Any, ...]]:
    """Stacked weights and tokens."""
    whole = heads * width
    shapes = {"q": (whole, heads, width), "k": (whole, heads, width), "v": (whole, heads, width)}
    shapes["o"] = (heads, width, whole)

    def make() -> tuple[Any, ...]:
        p = {n: normal(LAYERS, *s, seed=i) / whole**0.5 for i, (n, s) in enumerate(shapes.items())}
        return p, normal(1, length, whole, seed=9)

    return make


def arrays(length: int) -> Callable[[], tuple[Any, ...]]:
    """A gradient, queries, keys and values."""
    return lambda: tuple(normal(1, length, 8, 64, seed=s) for s in range(4))
