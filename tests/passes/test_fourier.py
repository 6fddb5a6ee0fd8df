"""Fourier: transforms that undo one another, and those of real numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._check import fired, optimised, same
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,dce,fourier,inline)"
OURS = {
    "fourier-of-inverse",
    "fourier-of-scaled-inverse",
    "half-of-fourier",
    "fourier-of-real",
    "filter-of-real",
}
ROWS, LENGTH = 16, 1024


def rules_of(
    fun: Callable[..., Any], *args: Any, level: str = "reassociate", passes: str = PASSES
) -> set[str]:
    return OURS & set(fired(fun, *args, passes=passes, level=level))


def lines(fun: Callable[..., Any], *args: Any, passes: str = PASSES) -> list[str]:
    return [line.strip() for line in optimised(fun, *args, passes=passes).to_text().split("\n")][1:-1]


def cisoid(*shape: int) -> jax.Array:
    return lax.complex(array(shape), array(shape, seed=1))


INVERSES: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "ifft of fft": (lambda x: jnp.fft.ifft(jnp.fft.fft(x)).real, "fourier-of-inverse"),
    "fft of ifft": (lambda x: jnp.fft.fft(jnp.fft.ifft(x)).real, "fourier-of-inverse"),
    "irfft of rfft": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x)), "fourier-of-inverse"),
    "irfft of rfft, odd": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x[:, 1:]), 11), "fourier-of-inverse"),
    "two dimensions": (lambda x: jnp.fft.ifft2(jnp.fft.fft2(x)).real, "fourier-of-inverse"),
    "another axis": (lambda x: jnp.fft.ifft(jnp.fft.fft(x, axis=0), axis=0).real, "fourier-of-inverse"),
    "ortho": (
        lambda x: jnp.fft.ifft(jnp.fft.fft(x, norm="ortho"), norm="ortho").real,
        "fourier-of-scaled-inverse",
    ),
    "halved": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 0.5), "fourier-of-scaled-inverse"),
}


@pytest.mark.parametrize("name", INVERSES)
def test_transforms_that_undo_one_another_vanish(name: str) -> None:
    fun, rule = INVERSES[name]
    x = array((3, 12))
    assert rules_of(fun, x) == {rule}
    graph = same(fun, x, passes=PASSES)
    assert all(node.op != "fft" for node in graph.walk())
    assert rules_of(fun, x, level="exact") == set()


def test_text_of_an_inverse() -> None:
    assert lines(lambda x: jnp.fft.irfft(jnp.fft.rfft(x)), array((3, 12))) == ["return %0"]
    assert lines(lambda x: jnp.fft.ifft(jnp.fft.fft(x)), cisoid(3, 12)) == ["return %0"]
    assert lines(lambda x: jnp.fft.ifft(jnp.fft.fft(x)).real, array((3, 12))) == ["return %0"]


def test_the_real_part_of_other_numbers_stays() -> None:
    assert "real-of-real" in fired(lambda x: jnp.real(x.astype(complex)), array((3,)), passes=PASSES)
    assert "real-of-real" not in fired(
        lambda x: jnp.real(x.astype(complex)), array((3,), "int32"), passes=PASSES
    )
    assert "real-of-real" not in fired(jnp.real, cisoid(3), passes=PASSES)
    same(lambda x: jnp.real(x.astype(complex)) * 2, array((3,)), passes=PASSES)


def test_nan_stays() -> None:
    x = array((3, 12)).at[1, 2].set(jnp.nan)
    [row] = lines(lambda x: jnp.fft.irfft(jnp.fft.rfft(x)), x)
    assert row == "return %0"


NOT_INVERSE: dict[str, Callable[[jax.Array], Any]] = {
    "rfft of irfft": lambda x: jnp.fft.rfft(jnp.fft.irfft(lax.complex(x[:, :7], x[:, 5:]))),
    "fft twice": lambda x: jnp.fft.fft(jnp.fft.fft(x)),
    "other lengths": lambda x: jnp.fft.ifft(jnp.fft.fft(x), 10),
    "other axes": lambda x: jnp.fft.ifft(jnp.fft.fft(x, axis=0)),
    "fewer dimensions": lambda x: jnp.fft.ifft(jnp.fft.fft2(x)),
    "filtered": lambda x: jnp.fft.ifft(jnp.fft.fft(x) * jnp.arange(12)),
    "odd irfft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x[:, 1:])),
    "turned by a complex factor": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * (0.5 + 0.5j)),
}


@pytest.mark.parametrize("name", NOT_INVERSE)
def test_transforms_that_only_look_as_if(name: str) -> None:
    assert rules_of(NOT_INVERSE[name], array((3, 12))) == set()


HALVES: dict[str, Callable[[jax.Array], Any]] = {
    "half": lambda x: jnp.fft.fft(x)[:, :7],
    "less": lambda x: jnp.fft.fft(x)[1:, 2:5],
    "strided": lambda x: jnp.fft.fft(x)[:, 0:6:2],
    "absolute": lambda x: jnp.abs(jnp.fft.fft(x))[:, :7],
    "power": lambda x: jnp.square(jnp.abs(jnp.fft.fft(x)))[:, 1:6],
    "two dimensions": lambda x: jnp.fft.fft2(x)[:, :7],
    "filled": lambda x: jnp.fft.fft(x, 16)[:, :9],
    "complex with zero": lambda x: jnp.fft.fft(lax.complex(x, jnp.zeros_like(x)))[:, :7],
}


@pytest.mark.parametrize("name", HALVES)
def test_half_of_a_transform_of_real_numbers(name: str) -> None:
    fun, x = HALVES[name], array((3, 12))
    assert rules_of(fun, x) == {"half-of-fourier"}
    graph = same(fun, x, passes=PASSES, grad=name not in ("absolute", "power"))
    assert "fft_type=RFFT" in graph.to_text()
    assert "fft_type=FFT" not in graph.to_text()


def test_text_of_a_half() -> None:
    assert lines(HALVES["half"], array((3, 12))) == [
        "%1: c64[3,7] = fft[fft_lengths=(12,) fft_type=RFFT] %0",
        "return %1",
    ]
    assert lines(HALVES["absolute"], array((3, 12))) == [
        "%1: c64[3,7] = fft[fft_lengths=(12,) fft_type=RFFT] %0",
        "%2: f32[3,7] = abs %1",
        "return %2",
    ]


def test_more_than_half_is_not_enough() -> None:
    x = array((3, 12))
    assert rules_of(lambda x: jnp.fft.fft(x)[:, :8], x) == set()
    assert rules_of(lambda x: jnp.fft.fft(x)[:, 6:], x) == set()
    assert rules_of(lambda x: jnp.fft.ifft(x)[:, :7], x) == set()
    assert rules_of(lambda x: (lambda y: (y[:, :7], y))(jnp.fft.fft(x)), x) == set()
    assert rules_of(lambda x: jnp.fft.fft(x)[:, :7], cisoid(3, 12)) == set()
    assert rules_of(lambda x: jnp.cumsum(jnp.fft.fft(x), -1)[:, :7], x) == set()
    assert rules_of(HALVES["half"], x, level="exact") == set()


@pytest.mark.parametrize("length", [LENGTH, LENGTH + 1])
@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16"])
def test_transforms_of_many_real_rows_are_mirrored(length: int, dtype: str) -> None:
    x = array((ROWS + 1, length), dtype)
    assert rules_of(jnp.fft.fft, x) == {"fourier-of-real"}
    same(jnp.fft.fft, x, passes=PASSES, grad=False)


def test_gradient_of_a_mirrored_transform() -> None:
    def power(x: jax.Array) -> jax.Array:
        spectrum = jnp.fft.fft(x)
        return jnp.sum(jnp.real(spectrum) ** 2 + 2 * jnp.imag(spectrum) ** 2)

    x = array((ROWS, LENGTH))
    assert rules_of(power, x) == {"fourier-of-real"}
    same(power, x, passes=PASSES, vmap=False)


def test_nan_in_a_row_stays_in_the_row() -> None:
    x = array((ROWS, LENGTH)).at[2, 3].set(jnp.nan).at[4, 5].set(jnp.inf)
    same(jnp.fft.fft, x, passes=PASSES, grad=False)


def test_transforms_that_are_not_mirrored() -> None:
    assert rules_of(jnp.fft.fft, array((1, 65536))) == set()
    assert rules_of(jnp.fft.fft, array((4, 64))) == set()
    assert rules_of(jnp.fft.fft, cisoid(ROWS, LENGTH)) == set()
    assert rules_of(jnp.fft.ifft, array((ROWS, LENGTH))) == set()
    assert rules_of(jnp.fft.fft2, array((4, 64, 64))) == set()
    assert rules_of(jnp.fft.fft, array((0, LENGTH))) == set()
    text = optimised(jnp.fft.fft, array((ROWS, LENGTH)), passes=PASSES, target="gpu").to_text()
    assert "fft_type=FFT" in text


def convolved(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(w)).real


def correlated(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.real(jnp.fft.ifft(jnp.conj(jnp.fft.fft(x)) * jnp.fft.fft(w)))


def mixed(x: jax.Array, w: jax.Array) -> jax.Array:
    spectrum = jnp.fft.fft(x)
    return jnp.fft.ifft(spectrum * jnp.conj(spectrum) * 0.5 - jnp.fft.fft(w) + (-spectrum)).real


def autocorrelated(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.fft.ifft(jnp.abs(jnp.fft.fft(x)) ** 2 * jnp.fft.fft(w).real).real


@pytest.mark.parametrize("fun", [convolved, correlated, mixed, autocorrelated])
@pytest.mark.parametrize("length", [LENGTH, LENGTH + 1])
def test_filters_of_real_numbers_need_half_the_spectrum(fun: Callable[..., jax.Array], length: int) -> None:
    args = array((ROWS, length)), array((length,), seed=1)
    assert rules_of(fun, *args) == {"filter-of-real"}
    graph = same(fun, *args, passes=PASSES, vmap=False)
    text = graph.to_text()
    assert "fft_type=IRFFT" in text
    assert "fft_type=FFT" not in text


def test_a_constant_filter_of_real_numbers() -> None:
    kernel = np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)
    x = array((ROWS, LENGTH))
    assert "filter-of-real" in rules_of(lambda x: convolved(x, jnp.asarray(kernel)), x)
    same(lambda x: convolved(x, jnp.asarray(kernel)), x, passes=PASSES, vmap=False)


def test_filters_that_may_not_be_of_real_numbers() -> None:
    x, w = array((ROWS, LENGTH)), array((LENGTH,), seed=1)
    frequencies = cisoid(LENGTH)
    cases: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (lambda x, h: jnp.fft.ifft(jnp.fft.fft(x) * h).real, (x, frequencies)),
        (lambda x, w: jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(w)).imag, (x, w)),
        (lambda x, w: jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(w) * 1j).real, (x, w)),
        (lambda x, w: jnp.fft.ifft(jnp.abs(jnp.fft.fft(x)) * w).real, (x, w)),
        (lambda x, w: jnp.fft.ifft(jnp.sqrt(jnp.fft.fft(x)) * jnp.fft.fft(w)).real, (x, w)),
        (lambda x, w: jnp.fft.ifft(jnp.fft.fft(x) + jnp.exp(jnp.fft.fft(w))).real, (x, w)),
        (lambda x, w: (lambda s: (jnp.fft.ifft(s * s).real, s))(jnp.fft.fft(x)), (x, w)),
        (convolved, (array((2, 64)), array((64,)))),
    ]
    for fun, args in cases:
        assert "filter-of-real" not in rules_of(fun, *args)


def test_under_the_default_pipeline() -> None:
    args = array((ROWS, LENGTH)), array((LENGTH,), seed=1)
    assert rules_of(convolved, *args, passes="default,fourier") == {"filter-of-real"}
    assert rules_of(HALVES["absolute"], array((3, 12)), passes="default,fourier") == {"half-of-fourier"}
