"""A multilayer perceptron of four 4096-wide layers at 1, 16 and 256 rows, and the bytes of its weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

import lepton_jax as lepton
from benchmarks._common import Row, batches, in_turn, nbytes, relative

KINDS: Final = {
    "int8, dynamic": "deploy,quantize{activations=dynamic}",
    "int8, static": "deploy,quantize{activations=static}",
    "int8, weights alone": "deploy,quantize",
    "int4 in groups of 64": "deploy,quantize{weights=int4,group=64}",
}


def perceptron(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Layers with ReLU between them: x [rows, width], weights [width, width] each."""
    for weight in weights[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ weights[-1]


def build(quick: bool, rows: int) -> tuple[Any, list[jax.Array], tuple[jax.Array]]:
    """The function, its weights and a sample [rows, width]."""
    width = 64 if quick else 4096
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(0, width**-0.5, (width, width)), jnp.float32) for _ in range(4)]
    return perceptron, weights, (jnp.asarray(rng.normal(size=(rows, width)), jnp.float32),)


def measure(quick: bool) -> list[Row]:
    """`jax.jit` in float32 and the compiled models, in turn; the bytes as a part of float32's."""
    found = []
    for rows in (4,) if quick else (1, 16, 256):
        fun, weights, (x,) = build(quick, rows)
        plain: Any = functools.partial(jax.jit(fun), weights, x)
        expected = plain()
        for name, passes in KINDS.items():
            model = lepton.compile(fun, weights, x, passes=passes, calibration=batches(passes, x))
            ratio, ours = in_turn(plain, functools.partial(model, x), 2 if quick else 11)
            found.append(
                {
                    "rows": rows,
                    "model": name,
                    "milliseconds": ours * 1e3,
                    "times as fast as jit": ratio,
                    "bytes": model.nbytes / nbytes(weights),
                    "error": relative(expected, model(x)),
                }
            )
    return found
