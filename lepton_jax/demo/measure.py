"""Measuring one program: compile seconds, run time in turn against `jax.jit`, largest difference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Timing:
    """Run times of two forms of one program, measured in turn in one process.

    Attributes:
        plain_seconds: median seconds of a call of the plain form.
        optimised_seconds: the same of the optimised form.
        ratios: optimised over plain seconds of each pair; below one, the optimised form is faster.
    """

    plain_seconds: float
    optimised_seconds: float
    ratios: tuple[float, ...]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the ratios."""
        low, middle, high = np.quantile(self.ratios, (0.25, 0.5, 0.75)).tolist()
        return low, middle, high


def measure(
    plain: Callable[..., Any],
    optimised: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    seconds: float = 4.0,
    pairs: int = 9,
    sample_seconds: float = 0.003,
) -> Timing:
    """Times both callables in turn on `args` until `seconds` have passed and `pairs` pairs are taken.

    Each pair times one form right after the other, and the order swaps from pair to pair, so that a drift
    of the machine hits both alike. A sample repeats a short call until it lasts about `sample_seconds`.
    """
    for fun in (plain, optimised):
        _sample(fun, args, 2)
    calls = max(1, round(sample_seconds / _sample(plain, args, 3)))
    samples: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(samples) < pairs or time.perf_counter() < end:
        if len(samples) % 2:
            second = _sample(optimised, args, calls)
            samples.append((_sample(plain, args, calls), second))
        else:
            first = _sample(plain, args, calls)
            samples.append((first, _sample(optimised, args, calls)))
    before, after = np.asarray(samples).T
    return Timing(float(np.median(before)), float(np.median(after)), tuple((after / before).tolist()))


def _sample(fun: Callable[..., Any], args: tuple[Any, ...], calls: int) -> float:
    """Mean seconds of one of `calls` calls, each waited for."""
    wait: Callable[[Any], Any] = jax.block_until_ready
    start = time.perf_counter()
    for _ in range(calls):
        wait(fun(*args))
    return (time.perf_counter() - start) / calls


def compile_seconds(traced: Any) -> float:
    """Seconds that lowering and compiling a `jax.jit(f).trace(...)` or `optimize(f).trace(...)` take."""
    start = time.perf_counter()
    traced.lower().compile()
    return time.perf_counter() - start


def largest_difference(expected: Any, actual: Any) -> float:
    """Largest absolute difference over all leaves of two pytrees.

    Equal infinities and two NaN do not differ; NaN against a number gives NaN.

    Raises:
        ValueError: if the trees, or the shapes or dtypes of their leaves, differ.
    """
    before, before_tree = jax.tree.flatten(expected)
    after, after_tree = jax.tree.flatten(actual)
    if str(before_tree) != str(after_tree):
        raise ValueError("outputs differ in their pytree structure")
    worst = 0.0
    for one, other in zip(before, after, strict=True):
        if np.shape(one) != np.shape(other) or one.dtype != other.dtype:
            raise ValueError(f"an output of {one.dtype}{np.shape(one)} became {other.dtype}{np.shape(other)}")
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        apart = (a != b) & ~(np.isnan(a) & np.isnan(b))
        gaps = np.abs(np.subtract(a, b, where=apart, out=np.zeros_like(a)))
        worst = float(np.max(gaps, initial=worst))
    return worst
