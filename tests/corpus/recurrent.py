"""Recurrent networks: cells under `lax.scan`, forwards, backwards, unrolled, stacked and in parallel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, affine, dense, floats, integers

TIME, BATCH, FEATURES, HIDDEN = 6, 2, 3, 4


def lstm_cell(params: Any, carry: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
    hidden, cell = carry
    gates = affine(params["input"], x) + hidden @ params["recurrent"]
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1.0) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (hidden, cell), hidden


def lstm_params(inputs: int, hidden: int, seed: int) -> dict[str, Any]:
    recurrent = floats(hidden, 4 * hidden, seed=seed + 7, scale=hidden**-0.5)
    return {"input": dense(inputs, 4 * hidden, seed), "recurrent": recurrent}


def lstm(params: Any, xs: jax.Array) -> tuple[Any, jax.Array]:
    zero = jnp.zeros((xs.shape[1], HIDDEN), xs.dtype)
    return lax.scan(lambda carry, x: lstm_cell(params, carry, x), (zero, zero), xs)


def gru_reverse(params: Any, hidden: jax.Array, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A gated recurrent unit that reads the sequence from its end."""

    def cell(hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = jnp.concatenate([x, hidden], axis=-1)
        reset, update = jnp.split(jax.nn.sigmoid(affine(params["gates"], both)), 2, axis=-1)
        candidate = jnp.tanh(affine(params["candidate"], jnp.concatenate([x, reset * hidden], axis=-1)))
        hidden = update * hidden + (1 - update) * candidate
        return hidden, hidden

    return lax.scan(cell, hidden, xs, reverse=True)


def bidirectional_masked(params: Any, xs: jax.Array, lengths: jax.Array) -> jax.Array:
    """Mean of a forward and a backward tanh network over the valid steps of padded sequences."""
    mask = jnp.arange(TIME)[:, None] < lengths[None, :]

    def run(weights: Any, reverse: bool) -> jax.Array:
        def cell(hidden: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, valid = inputs
            new = jnp.tanh(affine(weights["input"], x) + hidden @ weights["recurrent"])
            hidden = jnp.where(valid[:, None], new, hidden)
            return hidden, hidden

        zero = jnp.zeros((BATCH, HIDDEN))
        return lax.scan(cell, zero, (xs, mask), reverse=reverse)[1]

    both = jnp.concatenate([run(params["forward"], False), run(params["backward"], True)], axis=-1)
    return (both * mask[..., None]).sum(0) / lengths[:, None]


def linear_unrolled(decay: jax.Array, xs: jax.Array) -> jax.Array:
    """Exponential smoothing with a step count that the unrolling does not divide."""

    def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = decay * state + (1 - decay) * x
        return state, state

    return lax.scan(step, jnp.zeros(FEATURES), xs, unroll=4)[1]


def linear_parallel(log_decay: jax.Array, drive: jax.Array, read_out: jax.Array) -> Any:
    """A diagonal state-space layer: the same recurrence, by an associative scan."""
    decay = jnp.broadcast_to(jnp.exp(-jnp.exp(log_decay)), drive.shape)

    def combine(left: Any, right: Any) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, states = lax.associative_scan(combine, (decay, drive))
    return states @ read_out


def stacked_lstm(params: Any, xs: jax.Array) -> jax.Array:
    """Layers of equal width: a scan over stacked parameters around the scan over time."""
    return lax.scan(lambda hidden, layer: (lstm(layer, hidden)[1], None), xs, params)[0]


def truncated_backpropagation(params: Any, xs: jax.Array, targets: jax.Array) -> jax.Array:
    """Loss of an LSTM whose state passes between chunks of time but whose gradient does not."""
    chunks = xs.reshape(3, TIME // 3, BATCH, FEATURES)
    zero = jnp.zeros((BATCH, HIDDEN))

    def chunk(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        carry, hidden = lax.scan(lambda c, x: lstm_cell(params, c, x), lax.stop_gradient(carry), inputs[0])
        return carry, jnp.mean((hidden[-1] - inputs[1]) ** 2)

    return lax.scan(chunk, (zero, zero), (chunks, targets))[1].sum()


def greedy_characters(params: Any, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A character network that feeds its most likely token back: tokens and their log-probabilities."""

    def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        state, token = carry
        state, hidden = lstm_cell(params["cell"], state, params["embedding"][token])
        scores = jax.nn.log_softmax(hidden @ params["embedding"].T)
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return (state, token), (token, jnp.max(scores, axis=-1))

    zero = jnp.zeros((start.shape[0], HIDDEN))
    return lax.scan(step, ((zero, zero), start), None, length=TIME)[1]


def sequences() -> np.ndarray:
    return floats(TIME, BATCH, FEATURES, seed=1)


def tanh_params(seed: int) -> dict[str, Any]:
    return {
        "input": dense(FEATURES, HIDDEN, seed),
        "recurrent": floats(HIDDEN, HIDDEN, seed=seed + 9, scale=0.4),
    }


def gru_params() -> dict[str, Any]:
    both = FEATURES + HIDDEN
    return {"gates": dense(both, 2 * HIDDEN), "candidate": dense(both, HIDDEN, 3)}


def stacked_params() -> Any:
    return jax.tree.map(lambda *layers: np.stack(layers), *(lstm_params(HIDDEN, HIDDEN, s) for s in range(3)))


PROGRAMS = [
    Program(
        "lstm",
        lstm,
        lambda: (lstm_params(FEATURES, HIDDEN, 0), sequences()),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "gru_reverse",
        gru_reverse,
        lambda: (gru_params(), floats(BATCH, HIDDEN), sequences()),
        (0, 1, 2),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "bidirectional_rnn_masked",
        bidirectional_masked,
        lambda: (
            {"forward": tanh_params(0), "backward": tanh_params(4)},
            sequences(),
            np.array([6, 3], np.int32),
        ),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "linear_rnn_unrolled",
        linear_unrolled,
        lambda: (np.float32(0.7), floats(7, FEATURES)),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "linear_rnn_associative_scan",
        linear_parallel,
        lambda: (floats(HIDDEN), floats(9, HIDDEN, seed=1), floats(HIDDEN, 2, seed=2)),
        (0, 1, 2),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "stacked_lstm",
        stacked_lstm,
        lambda: (stacked_params(), floats(TIME, BATCH, HIDDEN)),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "truncated_backpropagation",
        truncated_backpropagation,
        lambda: (lstm_params(FEATURES, HIDDEN, 0), sequences(), floats(3, BATCH, HIDDEN, seed=2)),
        (0,),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "greedy_characters",
        greedy_characters,
        lambda: (
            {"cell": lstm_params(HIDDEN, HIDDEN, 0), "embedding": floats(7, HIDDEN, seed=5)},
            integers(BATCH, high=7),
        ),
        (),
        vmappable=True,
        exportable=True,
    ),
]
