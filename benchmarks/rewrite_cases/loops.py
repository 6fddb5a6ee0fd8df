"""Loops: work that needs no recurrence, loops without one, and recurrences that compose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal
from benchmarks.rewrite_cases._paths import CASES as PATHS

Arrays = tuple[Any, ...]


def cell(z: Any, state: Arrays, u: Any) -> tuple[Any, Any]:
    """A step of an LSTM from its projected input."""
    h, s = state
    i, f, g, o = jnp.split(z + h @ u, 4, -1)
    s = jax.nn.sigmoid(f) * s + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(s), s


def lstm(x: Any, w: Any, u: Any) -> Any:
    start = jnp.zeros((*x.shape[1:-1], u.shape[0]))

    def step(state: Arrays, xt: Any) -> tuple[Arrays, Any]:
        h, s = cell(xt @ w, state, u)
        return (h, s), h

    return lax.scan(step, (start, start), x)[1]


def lstm_projected(x: Any, w: Any, u: Any) -> Any:
    start = jnp.zeros((*x.shape[1:-1], u.shape[0]))

    def step(state: Arrays, z: Any) -> tuple[Arrays, Any]:
        h, s = cell(z, state, u)
        return (h, s), h

    return lax.scan(step, (start, start), x @ w)[1]


def rnn(x: Any, w: Any, u: Any) -> Any:
    def step(h: Any, xt: Any) -> tuple[Any, Any]:
        h = jnp.tanh(xt @ w + h @ u)
        return h, h

    return lax.scan(step, jnp.zeros((*x.shape[1:-1], u.shape[0])), x)[1]


def rnn_projected(x: Any, w: Any, u: Any) -> Any:
    def step(h: Any, z: Any) -> tuple[Any, Any]:
        h = jnp.tanh(z + h @ u)
        return h, h

    return lax.scan(step, jnp.zeros((*x.shape[1:-1], u.shape[0])), x @ w)[1]


def rnn_gradient(x: Any, w: Any, u: Any) -> Any:
    return jax.grad(lambda w, u: jnp.sum(rnn(x, w, u) ** 2), (0, 1))(w, u)


def rnn_gradient_by_hand(x: Any, w: Any, u: Any) -> Any:
    hs = rnn_projected(x, w, u)

    def back(d: Any, parts: Arrays) -> tuple[Any, Any]:
        h, g = parts
        d = (d + g) * (1 - h * h)
        return d @ u.T, d

    ds = lax.scan(back, jnp.zeros(hs.shape[1:]), (hs, 2 * hs), reverse=True)[1]
    before = jnp.concatenate([jnp.zeros_like(hs[:1]), hs[:-1]])
    return jnp.einsum("t...i,t...o->io", x, ds), jnp.einsum("t...i,t...o->io", before, ds)


def stacked(x: Any, w: Any, u: Any) -> Any:
    """Layers of an LSTM, step by step."""

    def step(state: Arrays, xt: Any) -> tuple[Arrays, Any]:
        def layer(y: Any, parts: Arrays) -> tuple[Any, Arrays]:
            w, u, h, s = parts
            h, s = cell(y @ w, (h, s), u)
            return h, (h, s)

        y, state = lax.scan(layer, xt, (w, u, *state))
        return state, y

    start = jnp.zeros((w.shape[0], *x.shape[1:]))
    return lax.scan(step, (start, start), x)[1]


def stacked_by_layers(x: Any, w: Any, u: Any) -> Any:
    return lax.scan(lambda y, parts: (lstm_projected(y, *parts), None), x, (w, u))[0]


def stacked_gradient(x: Any, w: Any, u: Any) -> Any:
    return jax.grad(lambda w, u: jnp.sum(stacked(x, w, u) ** 2), (0, 1))(w, u)


def stacked_gradient_by_layers(x: Any, w: Any, u: Any) -> Any:
    return jax.grad(lambda w, u: jnp.sum(stacked_by_layers(x, w, u) ** 2), (0, 1))(w, u)


def leaky(x: Any, w: Any, v: Any) -> Any:
    def step(h: Any, xt: Any) -> tuple[Any, Any]:
        h = 0.9 * h + jnp.tanh(xt @ w)
        return h, h @ v

    return lax.scan(step, jnp.zeros((*x.shape[1:-1], w.shape[1])), x)[1]


def leaky_projected(x: Any, w: Any, v: Any) -> Any:
    def step(h: Any, z: Any) -> tuple[Any, Any]:
        h = 0.9 * h + z
        return h, h

    return lax.scan(step, jnp.zeros((*x.shape[1:-1], w.shape[1])), jnp.tanh(x @ w))[1] @ v


def leaky_in_parallel(x: Any, w: Any, v: Any) -> Any:
    z = jnp.tanh(x @ w)
    return composed(jnp.full_like(z, 0.9), z) @ v


def layer(x: Any, w: Any) -> Any:
    return lax.scan(lambda c, xt: (c, jnp.tanh(xt @ w)), 0.0, x)[1]


def attend(z: Any) -> Any:
    return jax.nn.softmax(z @ z.T / 8) @ z


def attend_each(x: Any) -> Any:
    return lax.map(attend, x)


def rnn_each(x: Any, w: Any, u: Any) -> Any:
    return lax.map(lambda one: rnn(one, w, u)[-1], x)


def rnn_together(x: Any, w: Any, u: Any) -> Any:
    return rnn(jnp.swapaxes(x, 0, 1), w, u)[-1]


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


def recurrent(length: int, rows: int, width: int, gates: int = 1) -> Arrays:
    w = normal(width, gates * width, seed=1) * width**-0.5
    return normal(length, rows, width), w, normal(width, gates * width, seed=2) * 0.5 * width**-0.5


def layered(length: int, layers: int, width: int) -> Arrays:
    x, w, u = recurrent(length, 1, width, 4)
    return x, jnp.stack([w] * layers), jnp.stack([u] * layers)


def long(width: int, *more: str) -> Any:
    """Arguments of a recurrence: 4,096 iterations on a CPU, 65,536 on a GPU."""
    return (
        lambda: tuple(normal(4096, width, seed=i) for i in range(1 + len(more))),
        lambda: tuple(normal(65536, width, seed=i) for i in range(1 + len(more))),
    )


def rollout(length: int) -> Arrays:
    return (
        normal(length, 16),
        normal(length, 16, seed=1),
        (normal(length, 16, seed=2) > 1).astype(jnp.float32),
    )


def sequence(length: int) -> Arrays:
    d, n = 16, 8
    x, b, c = normal(length, d), normal(length, n, seed=1), normal(length, n, seed=2)
    return x, -jnp.exp(normal(d, n, seed=3)), b, c, jax.nn.softplus(normal(length, d, seed=4))


_ONE, _TWO = long(64), long(64, "b")

CASES = [
    Case(
        "scan without a carry: tanh(x_t @ w)",
        layer,
        lambda x, w: jnp.tanh(x @ w),
        lambda: (normal(128, 512), normal(512, 512, seed=1)),
    ),
    Case(
        "lax.map: attention of 32 tokens, 256 times",
        attend_each,
        jax.vmap(attend),
        lambda: (normal(256, 32, 32),),
    ),
    Case(
        "lax.map: a recurrent layer over 32 sequences",
        rnn_each,
        rnn_together,
        lambda: (normal(32, 64, 128), *recurrent(1, 1, 128)[1:]),
    ),
    Case("lax.map: a filter over 512 rows", filter_each, jax.vmap(filter_row), lambda: (normal(512, 256),)),
    Case(
        "lax.map: Newton's method, 4,096 times", root_each, jax.vmap(newton), lambda: (normal(4096) ** 2 + 1,)
    ),
    Case(
        "lax.map: a filter over 64 sequences of vectors: stays",
        filter_each,
        filter_each,
        lambda: (normal(64, 64, 64),),
        gpu=jax.vmap(filter_row),
    ),
    Case(
        "fori_loop: sum of tanh(x[i] @ w)",
        counted,
        counted_at_once,
        lambda: (normal(512, 256), normal(256, 256, seed=1)),
    ),
    Case("LSTM, one sequence", lstm, lstm_projected, lambda: recurrent(128, 1, 256, 4)),
    Case(
        "LSTM, 32 sequences: the products stay",
        lstm,
        lstm,
        lambda: recurrent(64, 32, 128, 4),
        gpu=lstm_projected,
    ),
    Case("recurrent layer, one sequence", rnn, rnn_projected, lambda: recurrent(256, 1, 256)),
    Case(
        "recurrent layer, one sequence, gradient",
        rnn_gradient,
        rnn_gradient_by_hand,
        lambda: recurrent(256, 1, 256),
    ),
    Case(
        "recurrent layer, 8 sequences, gradient",
        rnn_gradient,
        rnn_gradient_by_hand,
        lambda: recurrent(128, 8, 128),
    ),
    Case("four layers of an LSTM, step by step", stacked, stacked_by_layers, lambda: layered(64, 4, 256)),
    Case(
        "four layers of an LSTM, step by step, gradient",
        stacked_gradient,
        stacked_gradient_by_layers,
        lambda: layered(64, 4, 256),
    ),
    Case(
        "leaky integrator between two products",
        leaky,
        leaky_projected,
        lambda: recurrent(256, 4, 256),
        gpu=leaky_in_parallel,
    ),
    Case("lax.map, elementwise: stays", sines, sines, lambda: (normal(4096, 64),), gpu=sines_at_once),
    Case("sum of squares in a scan: stays", squares, squares, _ONE[0], gpu=squares_at_once, gpu_args=_ONE[1]),
    Case(
        "running sum in a scan: stays",
        running,
        running,
        _ONE[0],
        gpu=lambda x: jnp.cumsum(x, 0),
        gpu_args=_ONE[1],
    ),
    Case("gated average: stays", gated, gated, _TWO[0], gpu=gated_in_parallel, gpu_args=_TWO[1]),
    Case(
        "generalised advantages: stays",
        advantages,
        advantages,
        lambda: rollout(2048),
        gpu=advantages_in_parallel,
        gpu_args=lambda: rollout(65536),
    ),
    Case(
        "selective state space: stays",
        selective,
        selective,
        lambda: sequence(1024),
        gpu=selective_in_parallel,
        gpu_args=lambda: sequence(16384),
    ),
    Case("sum that stays positive: stays", capped, capped, _ONE[0], gpu=capped_in_parallel, gpu_args=_ONE[1]),
    Case(
        "linear recurrent layer: stays",
        linear_layer,
        linear_layer,
        lambda: (normal(1024, 16), normal(16, 16, seed=1) * 0.1),
        gpu=linear_layer_in_parallel,
        gpu_args=lambda: (normal(16384, 16), normal(16, 16, seed=1) * 0.1),
    ),
    Case(
        "three smoothing filters in a row",
        smoothed_thrice,
        smoothed_thrice_in_one,
        lambda: (normal(4096, 64),),
        gpu=smoothed_thrice_in_parallel,
        gpu_args=lambda: (normal(16384, 64),),
    ),
    Case("two running statistics", statistics, statistics_in_one, lambda: (normal(4096, 256),)),
    Case(
        "fori_loop: four steps of Newton's method",
        root,
        root_written_out,
        lambda: (jnp.abs(normal(1 << 20)) + 0.5,),
    ),
    Case("fori_loop over columns", columns, columns_as_rows, lambda: (normal(1024, 2048),)),
    Case(
        "fori_loop over neighbouring rows: stays",
        differences,
        differences,
        lambda: (normal(4096, 64),),
        gpu=differences_in_parallel,
    ),
    Case(
        "fori_loop that reads the row it has written: stays",
        in_place,
        in_place,
        lambda: (normal(4096, 64),),
        gpu=in_place_in_parallel,
    ),
    Case(
        "second-order filter: stays",
        second_order,
        second_order,
        _ONE[0],
        gpu=second_order_in_parallel,
        gpu_args=_ONE[1],
    ),
    *PATHS,
]
