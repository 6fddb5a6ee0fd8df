"""Signals and complex numbers: transforms, filters, fractals and waves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, floats, integers, uniform


def fast_convolution(signal: jax.Array, kernel: jax.Array) -> jax.Array:
    """Linear convolution along the last axis by padded real transforms."""
    size = signal.shape[-1] + kernel.shape[-1] - 1
    return jnp.fft.irfft(jnp.fft.rfft(signal, size) * jnp.fft.rfft(kernel, size), size)


def spectrogram(signal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-power of overlapping windowed frames, and the phase."""
    frames = signal[jnp.arange(5)[:, None] * 4 + jnp.arange(8)[None, :]]
    window = 0.5 - 0.5 * jnp.cos(2 * jnp.pi * jnp.arange(8) / 8)
    spectrum = jnp.fft.rfft(frames * window, axis=-1)
    power = spectrum.real**2 + spectrum.imag**2
    return jnp.log(power + 1e-3), lax.stop_gradient(jnp.angle(spectrum))


def fourier_layer(weight: jax.Array, field: jax.Array) -> jax.Array:
    """A spectral convolution of a neural operator: complex weights on the lowest modes of a plane."""
    spectrum = jnp.fft.rfft2(field, axes=(-2, -1))
    low = jnp.einsum("cdxy,cxy->dxy", weight, spectrum[:, :2, :2])
    full = jnp.zeros((weight.shape[1], *spectrum.shape[1:]), spectrum.dtype).at[:, :2, :2].set(low)
    return jax.nn.gelu(jnp.fft.irfft2(full, s=field.shape[-2:]) + field.sum(0))


def wave_packet(psi: jax.Array, potential: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split-step evolution of a complex wave function, and its norm at every step."""
    wave_number = 2 * jnp.pi * jnp.fft.fftfreq(psi.size)
    kinetic = jnp.exp(-0.5j * 0.1 * wave_number**2)
    half = jnp.exp(-0.05j * potential)

    def step(psi: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        psi = half * jnp.fft.ifft(kinetic * jnp.fft.fft(half * psi))
        return psi, jnp.sum(jnp.abs(psi) ** 2)

    return lax.scan(step, psi, None, length=3)


def mandelbrot(real: jax.Array, imaginary: jax.Array) -> tuple[Any, Any]:
    """Escape counts on a grid of the complex plane, stopping when every point has escaped."""
    c = real[None, :] + 1j * imaginary[:, None]

    def body(state: Any) -> Any:
        z, count, n = state
        inside = z.real**2 + z.imag**2 <= 4.0
        return jnp.where(inside, z * z + c, z), count + inside, n + 1

    start = (jnp.zeros_like(c), jnp.zeros(c.shape, jnp.int32), 0)
    _, count, n = lax.while_loop(lambda s: (s[2] < 15) & jnp.any(jnp.abs(s[0]) <= 2), body, start)
    return count, n


def recursive_filter(signal: jax.Array, coefficients: jax.Array) -> jax.Array:
    """A biquad section run forwards and then backwards over the signal."""
    b0, b1, b2, a1, a2 = coefficients

    def section(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        first, second = carry
        y = b0 * x + first
        return (b1 * x - a1 * y + second, b2 * x - a2 * y), y

    zero = (jnp.zeros_like(signal[0]), jnp.zeros_like(signal[0]))
    _, forwards = lax.scan(section, zero, signal)
    return lax.scan(section, zero, forwards, reverse=True)[1]


def complex_algebra(z: jax.Array, matrix: jax.Array) -> dict[str, jax.Array]:
    """Roots, exponentials, Hermitian products and a solve with complex entries."""
    gram = matrix @ matrix.conj().T + 2 * jnp.eye(len(z))
    return {
        "phase": jnp.exp(1j * jnp.angle(z)) * jnp.sqrt(z),
        "trigonometric": jnp.sin(z) * jnp.conj(z) + jnp.log(z + 3),
        "inner": jnp.vdot(z, matrix @ z),
        "solution": jnp.linalg.solve(gram, z),
        "equal": (z == jnp.conj(jnp.conj(z))) & jnp.isfinite(z),
        "parts": lax.complex(z.imag, z.real) / (1 + jnp.abs(z)),
    }


def complex_regression(weight: jax.Array, inputs: jax.Array, target: jax.Array) -> jax.Array:
    """Real loss of a complex linear map: its gradient is what an adaptive filter descends."""
    error = inputs @ weight - target
    return jnp.mean(jnp.real(error * jnp.conj(error))) + 0.1 * jnp.sum(jnp.abs(weight) ** 2)


def smooth_and_resample(signal: jax.Array, at: jax.Array) -> tuple[jax.Array, ...]:
    """Moving average by convolution, interpolation, differences, running extremes and a polynomial."""
    smooth = jnp.convolve(signal, jnp.ones(3) / 3, mode="same")
    sampled = jnp.interp(at, jnp.arange(signal.size), smooth)
    extremes = lax.cummax(signal) - lax.cummin(signal, reverse=True)
    return smooth, sampled, jnp.diff(signal, n=2), extremes, jnp.polyval(jnp.array([0.5, -1.0, 2.0]), signal)


def number_transform(values: jax.Array) -> jax.Array:
    """A transform modulo the prime 257 by its matrix, and back: exact in int32."""
    size = values.shape[0]
    table = np.array([[pow(4, i * j, 257) for j in range(size)] for i in range(size)], np.int32)
    inverse = np.array([[pow(4, -i * j, 257) for j in range(size)] for i in range(size)], np.int32)
    forwards = jnp.sum(table * values[None, :] % 257, axis=1) % 257
    back = jnp.sum(inverse * forwards[None, :] % 257, axis=1) * pow(size, -1, 257) % 257
    return jnp.stack([forwards, back])


def stable() -> np.ndarray:
    return np.array([0.2, 0.3, 0.1, -0.4, 0.2], np.float32)


PROGRAMS = [
    Program(
        "fast_convolution",
        fast_convolution,
        lambda: (floats(2, 9), floats(4, seed=1)),
        (0, 1),
        vmappable=True,
    ),
    Program("spectrogram", spectrogram, lambda: (floats(24),), (0,), vmappable=True, exportable=True),
    Program(
        "fourier_layer",
        fourier_layer,
        lambda: (floats(3, 2, 2, 2, scale=0.3, dtype=np.complex64), floats(3, 6, 6)),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program("wave_packet", wave_packet, lambda: (floats(8, dtype=np.complex64), floats(8, seed=1)), (0, 1)),
    Program(
        "mandelbrot",
        mandelbrot,
        lambda: (np.linspace(-2, 1, 7, dtype=np.float32), np.linspace(-1, 1, 5, dtype=np.float32)),
        vmappable=True,
        exportable=True,
    ),
    Program("recursive_filter", recursive_filter, lambda: (floats(8, 2), stable()), (0, 1), vmappable=True),
    Program(
        "complex_algebra",
        complex_algebra,
        lambda: (floats(3, dtype=np.complex64), floats(3, 3, seed=1, dtype=np.complex64)),
        vmappable=True,
    ),
    Program(
        "complex_regression",
        complex_regression,
        lambda: tuple(
            floats(*shape, seed=seed, dtype=np.complex64) for seed, shape in enumerate([(3,), (5, 3), (5,)])
        ),
        (0, 1, 2),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "smooth_and_resample",
        smooth_and_resample,
        lambda: (floats(9), uniform(4, high=8.0)),
        (0,),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "number_transform",
        number_transform,
        lambda: (integers(4, high=257),),
        vmappable=True,
        exportable=True,
    ),
]
