"""Recurrent networks as users write them, and by hand: products out of the loop, layers exchanged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._recurrences import composed

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


def rnn_each(x: Any, w: Any, u: Any) -> Any:
    return lax.map(lambda one: rnn(one, w, u)[-1], x)


def rnn_together(x: Any, w: Any, u: Any) -> Any:
    return rnn(jnp.swapaxes(x, 0, 1), w, u)[-1]
