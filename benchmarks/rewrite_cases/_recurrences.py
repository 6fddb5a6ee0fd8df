"""Loops over time as users write them, and by hand: counted, in parallel, joined, written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Arrays = tuple[Any, ...]


def counted(x: Any, w: Any) -> Any:
    start = jnp.zeros(w.shape[1])
    return lax.fori_loop(0, x.shape[0], lambda i, total: total + jnp.tanh(x[i] @ w), start)


def counted_at_once(x: Any, w: Any) -> Any:
    return jnp.sum(jnp.tanh(x @ w), 0)


def sines(x: Any) -> Any:
    return lax.map(lambda z: jnp.sin(z) * 2 + z, x)


def sines_at_once(x: Any) -> Any:
    return jnp.sin(x) * 2 + x


def squares(x: Any) -> Any:
    return lax.scan(lambda c, z: (c + z * z, None), jnp.zeros(x.shape[1]), x)[0]


def squares_at_once(x: Any) -> Any:
    return jnp.sum(x * x, 0)


def running(x: Any) -> Any:
    def step(c: Any, z: Any) -> tuple[Any, Any]:
        return c + z, c + z

    return lax.scan(step, jnp.zeros(x.shape[1]), x)[1]


def composed(a: Any, b: Any, reverse: bool = False) -> Any:
    """h ← a·h + b in log2(length) rounds."""
    return lax.associative_scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (a, b), reverse=reverse)[1]


def gated(a: Any, b: Any) -> Any:
    def step(h: Any, parts: Arrays) -> tuple[Any, Any]:
        gate = jax.nn.sigmoid(parts[0])
        h = gate * h + (1 - gate) * parts[1]
        return h, h

    return lax.scan(step, jnp.zeros(a.shape[1]), (a, b))[1]


def gated_in_parallel(a: Any, b: Any) -> Any:
    gate = jax.nn.sigmoid(a)
    return composed(gate, (1 - gate) * b)


def advantages(r: Any, v: Any, done: Any) -> Any:
    def step(carry: Arrays, parts: Arrays) -> tuple[Arrays, Any]:
        advantage, after = carry
        reward, value, end = parts
        delta = reward + 0.99 * after * (1 - end) - value
        advantage = delta + 0.99 * 0.95 * (1 - end) * advantage
        return (advantage, value), advantage

    zero = jnp.zeros(r.shape[1])
    return lax.scan(step, (zero, zero), (r, v, done), reverse=True)[1]


def advantages_in_parallel(r: Any, v: Any, done: Any) -> Any:
    after = jnp.concatenate([v[1:], jnp.zeros_like(v[:1])])
    delta = r + 0.99 * after * (1 - done) - v
    return composed(0.99 * 0.95 * (1 - done), delta, reverse=True)


def selective(x: Any, a: Any, b: Any, c: Any, dt: Any) -> Any:
    def step(h: Any, parts: Arrays) -> tuple[Any, Any]:
        xt, bt, ct, d = parts
        h = jnp.exp(d[:, None] * a) * h + (d * xt)[:, None] * bt
        return h, h @ ct

    return lax.scan(step, jnp.zeros(a.shape), (x, b, c, dt))[1]


def selective_in_parallel(x: Any, a: Any, b: Any, c: Any, dt: Any) -> Any:
    decay = jnp.exp(dt[:, :, None] * a)
    h = composed(decay, (dt * x)[:, :, None] * b[:, None])
    return jnp.einsum("tdn,tn->td", h, c)


def capped(x: Any) -> Any:
    def step(c: Any, z: Any) -> tuple[Any, Any]:
        c = jnp.maximum(c + z, 0.0)
        return c, c

    return lax.scan(step, jnp.zeros(x.shape[1]), x)[1]


def capped_in_parallel(x: Any) -> Any:
    sums = jnp.cumsum(x, 0)
    return sums - jnp.minimum(lax.cummin(sums), 0.0)


def linear_layer(x: Any, m: Any) -> Any:
    def step(h: Any, z: Any) -> tuple[Any, Any]:
        h = h @ m + z
        return h, h

    return lax.scan(step, jnp.zeros(x.shape[1]), x)[1]


def linear_layer_in_parallel(x: Any, m: Any) -> Any:
    def then(p: Arrays, q: Arrays) -> Arrays:
        return p[0] @ q[0], (p[1][:, None] @ q[0])[:, 0] + q[1]

    return lax.associative_scan(then, (jnp.broadcast_to(m, (x.shape[0], *m.shape)), x))[1]


def smooth(h: Any, z: Any) -> tuple[Any, Any]:
    h = 0.9 * h + 0.1 * z
    return h, h


def smoothed_thrice(x: Any) -> Any:
    for _ in range(3):
        x = jnp.tanh(lax.scan(smooth, jnp.zeros(x.shape[1:]), x)[1])
    return x


def smoothed_thrice_in_one(x: Any) -> Any:
    def step(state: Arrays, z: Any) -> tuple[Arrays, Any]:
        new = []
        for h in state:
            h, z = smooth(h, z)
            new.append(h)
            z = jnp.tanh(z)
        return tuple(new), z

    return lax.scan(step, (jnp.zeros(x.shape[1:]),) * 3, x)[1]


def smoothed_thrice_in_parallel(x: Any) -> Any:
    for _ in range(3):
        x = jnp.tanh(composed(jnp.full_like(x, 0.9), 0.1 * x))
    return x


def statistics(x: Any) -> Any:
    zero = jnp.zeros(x.shape[1])
    means = lax.scan(smooth, zero, x)[1]
    peaks = lax.scan(lambda h, z: ((y := jnp.maximum(0.99 * h, z)), y), zero, x)[1]
    return means, peaks


def statistics_in_one(x: Any) -> Any:
    def step(state: Arrays, z: Any) -> tuple[Arrays, Arrays]:
        mean, peak = state
        state = smooth(mean, z)[0], jnp.maximum(0.99 * peak, z)
        return state, state

    zero = jnp.zeros(x.shape[1])
    return lax.scan(step, (zero, zero), x)[1]


def root_step(x: Any, y: Any) -> Any:
    return y * (1.5 - 0.5 * x * y * y)


def root(x: Any) -> Any:
    return lax.fori_loop(0, 4, lambda i, y: root_step(x, y), jnp.full_like(x, 0.5))


def root_written_out(x: Any) -> Any:
    y = jnp.full_like(x, 0.5)
    for _ in range(4):
        y = root_step(x, y)
    return y


def columns(x: Any) -> Any:
    return lax.fori_loop(0, x.shape[1], lambda t, h: 0.9 * h + x[:, t], jnp.zeros(x.shape[0]))


def columns_as_rows(x: Any) -> Any:
    return lax.scan(lambda h, z: (0.9 * h + z, None), jnp.zeros(x.shape[0]), x.T)[0]


def differences(x: Any) -> Any:
    start = jnp.zeros(x.shape[1])
    return lax.fori_loop(1, x.shape[0], lambda t, h: 0.9 * h + jnp.abs(x[t] - x[t - 1]), start)


def differences_in_parallel(x: Any) -> Any:
    steps = jnp.abs(x[1:] - x[:-1])
    return composed(jnp.full_like(steps, 0.9), steps)[-1]


def in_place(x: Any) -> Any:
    start = jnp.zeros_like(x)
    return lax.fori_loop(1, x.shape[0], lambda t, out: out.at[t].set(0.9 * out[t - 1] + x[t]), start)


def in_place_in_parallel(x: Any) -> Any:
    return jnp.zeros_like(x).at[1:].set(composed(jnp.full_like(x[1:], 0.9), x[1:]))


def second_order(x: Any) -> Any:
    def step(state: Arrays, z: Any) -> tuple[Arrays, Any]:
        y, before = state
        new = z + 1.6 * y - 0.8 * before
        return (new, y), new

    zero = jnp.zeros(x.shape[1])
    return lax.scan(step, (zero, zero), x)[1]


def second_order_in_parallel(x: Any) -> Any:
    def then(p: Arrays, q: Arrays) -> Arrays:
        (a, b, c, d, u, v), (e, f, g, h, w, z) = p, q
        return (
            e * a + f * c,
            e * b + f * d,
            g * a + h * c,
            g * b + h * d,
            e * u + f * v + w,
            g * u + h * v + z,
        )

    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    return lax.associative_scan(then, (1.6 * one, -0.8 * one, one, zero, x, zero))[4]


def filter_row(row: Any) -> Any:
    """A filter that saturates, along numbers or vectors."""
    return lax.scan(lambda c, x: ((y := jnp.tanh(0.9 * c + 0.1 * x)), y), jnp.zeros_like(row[0]), row)[1]


def filter_each(x: Any) -> Any:
    """One row after the other."""
    return lax.map(filter_row, x)


def newton(x: Any) -> Any:
    """A square root by Newton's method."""
    return lax.fori_loop(0, 20, lambda _, y: 0.5 * (y + x / y), x)


def root_each(x: Any) -> Any:
    """One number after the other."""
    return lax.map(newton, x)
