"""Recurrences over maxima, sums in logarithms, choices and resets: they stay on a CPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal

Arrays = tuple[Any, ...]


def _over(step: Any, init: Any, *xs: Any) -> Any:
    def body(h: Any, rows: Any) -> tuple[Any, Any]:
        h = step(h, *rows)
        return h, h

    return lax.scan(body, init, xs)[1]


def log_sums(a: Any, b: Any) -> Any:
    return _over(lambda h, x, y: jnp.logaddexp(h + x, y), jnp.zeros(a.shape[1]), a, b)


def log_sums_in_parallel(a: Any, b: Any) -> Any:
    def then(p: Arrays, q: Arrays) -> Arrays:
        return p[0] + q[0], jnp.logaddexp(p[1] + q[0], q[1])

    return lax.associative_scan(then, (a, b.at[0].set(jnp.logaddexp(a[0], b[0]))))[1]


def forward_algorithm(x: Any, a: Any) -> Any:
    return _over(lambda h, e: jax.nn.logsumexp(h[:, None] + a, axis=0) + e, jnp.zeros(len(a)), x)


def forward_in_parallel(x: Any, a: Any) -> Any:
    def then(p: Any, q: Any) -> Any:
        return jax.nn.logsumexp(p[:, :, :, None] + q[:, None], axis=2)

    return jax.nn.logsumexp(lax.associative_scan(then, a + x[:, None]), axis=1)


def best_paths(x: Any, a: Any) -> Any:
    def step(h: Any, e: Any) -> tuple[Any, Any]:
        z = h[:, None] + a
        return z.max(0) + e, z.argmax(0)

    return lax.scan(step, jnp.zeros(len(a)), x)


def best_paths_in_parallel(x: Any, a: Any) -> Any:
    def then(p: Any, q: Any) -> Any:
        return jnp.max(p[:, :, :, None] + q[:, None], 2)

    h = jnp.max(lax.associative_scan(then, a + x[:, None]), 1)
    before = jnp.concatenate([jnp.zeros((1, len(a))), h[:-1]])
    return h[-1], (before[:, :, None] + a).argmax(1)


def best_so_far(x: Any) -> Any:
    def step(carry: Any, parts: Any) -> Any:
        best, at = carry
        xt, t = parts
        better = xt > best
        carry = jnp.where(better, xt, best), jnp.where(better, t, at)
        return carry, carry

    start = jnp.full(x.shape[1], -jnp.inf), jnp.zeros(x.shape[1], int)
    return lax.scan(step, start, (x, jnp.arange(len(x))))[1]


def best_so_far_in_parallel(x: Any) -> Any:
    best = lax.cummax(x)
    new = best > jnp.concatenate([jnp.full((1, x.shape[1]), -jnp.inf), best[:-1]])
    return best, lax.cummax(jnp.where(new, jnp.arange(len(x))[:, None], 0))


def sums_from_resets(x: Any, y: Any) -> Any:
    return _over(lambda h, x, d: jnp.where(d, x, h + x), jnp.zeros(x.shape[1]), x, y > 2)


def sums_from_resets_in_parallel(x: Any, y: Any) -> Any:
    def then(p: Arrays, q: Arrays) -> Arrays:
        return p[0] | q[0], jnp.where(q[0], q[1], p[1] + q[1])

    return lax.associative_scan(then, (y > 2, x))[1]


def hysteresis(x: Any) -> Any:
    start = jnp.zeros(x.shape[1], bool)
    return _over(lambda on, z: jnp.where(on, z > -0.5, z > 0.5), start, x)


def hysteresis_in_parallel(x: Any) -> Any:
    """The last that was sure."""

    def then(p: Arrays, q: Arrays) -> Arrays:
        return p[0] | q[0], jnp.where(q[0], q[1], p[1])

    high = x > 0.5
    return lax.associative_scan(then, (high | (x <= -0.5), high))[1]


def _rows(length: int, width: int = 64) -> Arrays:
    return normal(length, width), normal(length, width, seed=1)


def _states(length: int) -> Arrays:
    return normal(length, 8), jax.nn.log_softmax(normal(8, 8, seed=1))


def _case(name: str, naive: Any, gpu: Any, make: Any, count: int = 2) -> Case:
    return Case(
        f"{name}: stays",
        naive,
        naive,
        lambda: make(4096)[:count],
        gpu=gpu,
        gpu_args=lambda: make(65536)[:count],
    )


CASES = [
    _case("logaddexp(h + a, b)", log_sums, log_sums_in_parallel, _rows),
    _case("forward algorithm, 8 states", forward_algorithm, forward_in_parallel, _states),
    _case("Viterbi, 8 states", best_paths, best_paths_in_parallel, _states),
    _case("best so far, and where", best_so_far, best_so_far_in_parallel, _rows, 1),
    _case("sums from resets", sums_from_resets, sums_from_resets_in_parallel, _rows),
    _case("hysteresis", hysteresis, hysteresis_in_parallel, _rows, 1),
]
