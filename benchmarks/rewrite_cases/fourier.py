"""Fourier transforms of real numbers, and those that undo one another."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp

from benchmarks.rewrite_cases._case import Case, normal

Args = tuple[Any, ...]
LENGTH: Final = 4096


def rows(count: int = 64, length: int = LENGTH) -> Args:
    """Rows of real numbers."""
    return (normal(count, length),)


def rows_and_filter() -> Args:
    """Rows of real numbers and a filter."""
    return normal(64, LENGTH), normal(LENGTH, seed=1)


def complete(x: jax.Array) -> jax.Array:
    """The whole transform from the half."""
    half = jnp.fft.rfft(x)
    return jnp.concatenate([half, jnp.conj(half[:, 1 : (x.shape[-1] + 1) // 2][:, ::-1])], -1)


def filtered(x: jax.Array, w: jax.Array) -> jax.Array:
    """Circular convolution as people write it."""
    return jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(w)).real


def filtered_by_halves(x: jax.Array, w: jax.Array) -> jax.Array:
    """Circular convolution with real transforms."""
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(w), x.shape[-1])


def correlated(x: jax.Array) -> jax.Array:
    """Circular autocorrelation as people write it."""
    spectrum = jnp.fft.fft(x)
    return jnp.fft.ifft(spectrum * jnp.conj(spectrum)).real


def correlated_by_halves(x: jax.Array) -> jax.Array:
    """Circular autocorrelation with real transforms."""
    spectrum = jnp.fft.rfft(x)
    return jnp.fft.irfft(spectrum * jnp.conj(spectrum), x.shape[-1])


CASES: Final = [
    Case("fourier: ifft(fft(x))", lambda x: jnp.fft.ifft(jnp.fft.fft(x)).real, lambda x: x + 0, rows),
    Case(
        "fourier: ifft(fft(x)), ortho",
        lambda x: jnp.fft.ifft(jnp.fft.fft(x, norm="ortho"), norm="ortho").real,
        lambda x: x + 0,
        rows,
    ),
    Case("fourier: irfft(rfft(x))", lambda x: jnp.fft.irfft(jnp.fft.rfft(x)), lambda x: x + 0, rows),
    Case(
        "fourier: |fft(x)|, half of it",
        lambda x: jnp.abs(jnp.fft.fft(x))[:, : LENGTH // 2 + 1],
        lambda x: jnp.abs(jnp.fft.rfft(x)),
        rows,
    ),
    Case(
        "fourier: fft(x), half of it",
        lambda x: jnp.fft.fft(x)[:, : LENGTH // 2],
        lambda x: jnp.fft.rfft(x)[:, : LENGTH // 2],
        rows,
    ),
    Case("fourier: fft(x) of real x", jnp.fft.fft, complete, rows),
    Case(
        "fourier: fft2(x), half of it",
        lambda x: jnp.fft.fft2(x)[:, :, :65],
        jnp.fft.rfft2,
        lambda: (normal(16, 128, 128),),
    ),
    Case("fourier: circular convolution", filtered, filtered_by_halves, rows_and_filter),
    Case("fourier: autocorrelation", correlated, correlated_by_halves, rows),
    Case(
        "fourier: autocorrelation by |fft(x)|²",
        lambda x: jnp.fft.ifft(jnp.abs(jnp.fft.fft(x)) ** 2).real,
        lambda x: jnp.fft.irfft(jnp.square(jnp.abs(jnp.fft.rfft(x))), x.shape[-1]),
        rows,
    ),
    Case(
        "fourier: one long fft(x) (left alone)",
        jnp.fft.fft,
        jnp.fft.fft,
        partial(rows, 1, 65536),
    ),
    Case(
        "fourier: fft(x) of complex x (left alone)",
        lambda x, y: jnp.fft.fft(jax.lax.complex(x, y)),
        lambda x, y: jnp.fft.fft(jax.lax.complex(x, y)),
        lambda: (normal(64, 1024), normal(64, 1024, seed=1)),
    ),
]
