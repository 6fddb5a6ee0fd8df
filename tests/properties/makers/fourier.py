"""Fourier transforms."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program

PASS: Final = "fourier"

_SPREADS: Final = "a NaN or infinity would have spread over its row, as documented"

_NEAR: Final = "sums on the way are others"


def _program(fun: Any, *args: Any) -> Program:
    return P(fun, *args, prepare=SIMPLIFIED, drops=_SPREADS, overflows=_NEAR)


def _real(d: Draw) -> Any:
    return d.wide((d.size(1, 3), d.pick(4, 5, 8, 12)))


def _complex(d: Draw) -> Any:
    return d.complexes((d.size(1, 3), d.pick(4, 5, 8)))


def _there_and_back(d: Draw) -> Program:
    forms = (
        (lambda z: jnp.fft.ifft(jnp.fft.fft(z)), _complex(d)),
        (lambda z: jnp.fft.fft(jnp.fft.ifft(z)), _complex(d)),
        (lambda z: jnp.fft.ifft2(jnp.fft.fft2(z)), _complex(d)),
        (lambda x: jnp.fft.irfft(jnp.fft.rfft(x), x.shape[-1]), _real(d)),
    )
    return _program(*d.pick(*forms))


def _scaled(d: Draw) -> Program:
    forms = (
        (lambda z: jnp.fft.ifft(jnp.fft.fft(z, norm="ortho"), norm="ortho"), _complex(d)),
        (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 0.5, x.shape[-1]), _real(d)),
    )
    return _program(*d.pick(*forms))


def _half(d: Draw) -> Program:
    forms = (
        lambda x: jnp.fft.fft(x)[:, : x.shape[1] // 2 + 1],
        lambda x: jnp.square(jnp.abs(jnp.fft.fft(x)))[:, 1:3],
        lambda x: jnp.fft.fft2(x)[:, : x.shape[1] // 2 + 1],
    )
    return _program(d.pick(*forms), _real(d))


def _large(d: Draw) -> Any:
    return d.like((4, 4096), "float32")


MAKERS: Final[Makers] = {
    "fourier-of-inverse": (_there_and_back, _there_and_back),
    "fourier-of-scaled-inverse": (_scaled,),
    "real-of-real": (
        lambda d: P(lambda x: jnp.real(lax.convert_element_type(x, "complex64")), d.floats(None, "float32")),
    ),
    "half-of-fourier": (_half,),
    "fourier-of-real": (lambda d: _program(jnp.fft.fft, _large(d)),),
    "filter-of-real": (
        lambda d: _program(
            lambda x, w: jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(w)).real,
            _large(d),
            d.like((4096,), "float32"),
        ),
        lambda d: _program(lambda x: jnp.fft.ifft(jnp.abs(jnp.fft.fft(x)) ** 2).real, _large(d)),
    ),
}

ALIKE: Final[Makers] = {
    "fourier-of-inverse": (
        lambda d: _program(lambda z: jnp.fft.fft(jnp.fft.fft(z)), _complex(d)),
        lambda d: _program(lambda z: jnp.fft.ifft(jnp.fft.fft(z), 3), _complex(d)),
        lambda d: _program(lambda z: jnp.fft.rfft(jnp.fft.irfft(z, 6)), d.complexes((2, 4))),
    ),
    "fourier-of-scaled-inverse": (
        lambda d: _program(lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * (0.5 + 0.5j)), d.wide((2, 8))),
    ),
    "real-of-real": (
        lambda d: P(lambda x: jnp.real(lax.convert_element_type(x, "complex64")), d.like(None, "int32")),
    ),
    "half-of-fourier": (
        lambda d: _program(lambda z: jnp.fft.fft(z)[:, :2], _complex(d)),
        lambda d: _program(lambda x: jnp.fft.fft(x)[:, 3:], d.wide((2, 5))),
    ),
    "fourier-of-real": (lambda d: _program(jnp.fft.fft, _complex(d)),),
    "filter-of-real": (
        lambda d: _program(
            lambda x, w: jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(w)).imag,
            _large(d),
            d.like((4096,), "float32"),
        ),
    ),
}
