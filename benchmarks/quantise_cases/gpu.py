"""Products on a GPU: int8, fp8 and int4 through `lepton.compile`, against bfloat16, in turn.

A chain of layers whose weights are larger than the cache, so that each is read from memory. Times are of one
layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp

import lepton_jax as lepton
from benchmarks._common import Row, batches, in_turn, nbytes, relative


@dataclass(frozen=True)
class Case:
    """Products of activations [rows, width] with square weights, and the pipelines to compile them with."""

    rows: int
    width: int
    layers: int
    kinds: dict[str, str]


EIGHT: Final = {
    "fp8, static": "quantize{weights=fp8_e4m3,activations=static}",
    "fp8, dynamic": "quantize{weights=fp8_e4m3,activations=dynamic}",
    "int8, static": "quantize{activations=static}",
    "int8, dynamic": "quantize{activations=dynamic}",
}
FEW: Final = {"int8, weights alone": "quantize", **EIGHT}
FOUR: Final = {
    "int4 in groups of 128": "quantize{weights=int4,group=128}",
    "int4 in groups of 64": "quantize{weights=int4,group=64}",
}

CASES: Final = (
    Case(4096, 8192, 4, EIGHT),
    Case(1, 8192, 8, FEW),
    Case(16, 8192, 8, FEW),
    Case(1, 16384, 4, FOUR),
    Case(16, 16384, 4, FOUR),
    Case(64, 16384, 4, FOUR),
)

QUICK: Final = (Case(16, 256, 2, EIGHT), Case(1, 256, 2, {**FEW, **FOUR}))


def chain(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """One product after another."""
    for weight in weights:
        x = x @ weight
    return x


def build(case: Case) -> tuple[list[jax.Array], jax.Array]:
    """The weights [width, width] and the activations, in bfloat16."""
    *keys, last = jax.random.split(jax.random.key(0), case.layers + 1)
    shape = (case.width, case.width)
    weights = [jax.random.normal(key, shape, jnp.bfloat16) * case.width**-0.5 for key in keys]
    return weights, jax.random.normal(last, (case.rows, case.width), jnp.bfloat16)


def measure(quick: bool) -> list[Row]:
    """`jax.jit` in bfloat16 and the compiled models, in turn; nothing without a GPU."""
    if jax.default_backend() != "gpu":
        print("not measured: there is no GPU")
        return []
    return [row for case in (QUICK if quick else CASES) for row in rows_of(case, 2 if quick else 11)]


def rows_of(case: Case, rounds: int) -> list[Row]:
    """The rows of a case."""
    weights, x = build(case)
    plain: Any = functools.partial(jax.jit(chain), weights, x)
    expected = plain()
    found = []
    for name, passes in case.kinds.items():
        pipeline = f"default,{passes}"
        model = lepton.compile(chain, weights, x, passes=pipeline, calibration=batches(pipeline, x))
        ratio, ours = in_turn(plain, functools.partial(model, x), rounds)
        found.append(
            {
                "rows": case.rows,
                "width": case.width,
                "model": name,
                "microseconds a layer": ours * 1e6 / case.layers,
                "times as fast as bfloat16": ratio,
                "bytes": model.nbytes / nbytes(weights),
                "error": relative(expected, model(x)),
            }
        )
    return found
