"""Loops: work that needs no recurrence, loops without one, and recurrences that compose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.rewrite_cases._case import Case, normal
from benchmarks.rewrite_cases._paths import CASES as PATHS
from benchmarks.rewrite_cases._recurrences import (
    advantages,
    advantages_in_parallel,
    capped,
    capped_in_parallel,
    columns,
    columns_as_rows,
    counted,
    counted_at_once,
    differences,
    differences_in_parallel,
    filter_each,
    filter_row,
    gated,
    gated_in_parallel,
    in_place,
    in_place_in_parallel,
    linear_layer,
    linear_layer_in_parallel,
    newton,
    root,
    root_each,
    root_written_out,
    running,
    second_order,
    second_order_in_parallel,
    selective,
    selective_in_parallel,
    sines,
    sines_at_once,
    smoothed_thrice,
    smoothed_thrice_in_one,
    smoothed_thrice_in_parallel,
    squares,
    squares_at_once,
    statistics,
    statistics_in_one,
)
from benchmarks.rewrite_cases._recurrent_networks import (
    leaky,
    leaky_in_parallel,
    leaky_projected,
    lstm,
    lstm_projected,
    rnn,
    rnn_each,
    rnn_gradient,
    rnn_gradient_by_hand,
    rnn_projected,
    rnn_together,
    stacked,
    stacked_by_layers,
    stacked_gradient,
    stacked_gradient_by_layers,
)

Arrays = tuple[Any, ...]


def layer(x: Any, w: Any) -> Any:
    return lax.scan(lambda c, xt: (c, jnp.tanh(xt @ w)), 0.0, x)[1]


def attend(z: Any) -> Any:
    return jax.nn.softmax(z @ z.T / 8) @ z


def attend_each(x: Any) -> Any:
    return lax.map(attend, x)


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
