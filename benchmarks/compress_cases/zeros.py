"""Products with weights whose rows, columns or blocks are zero: by `skip-zeros`, and as they are."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

import lepton_jax as lepton
from benchmarks._common import Row, in_turn

ROUNDS: Final = 7


def measure(quick: bool) -> list[Row]:
    """How many times as fast as the jitted function in floats, by rows of the input and what is left."""
    size, batches, left = (64, (4,), (0.5,)) if quick else (1024, (1, 16, 256), (0.25, 0.5))
    return [
        _row(size, batch, part, what)
        for batch in batches
        for part in left
        for what in ("rows", "columns", "blocks")
    ]


def _row(size: int, batch: int, part: float, what: str) -> Row:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((size, size)).astype(np.float32)
    weight *= _mask(rng, size, part, what)
    x = jnp.asarray(rng.standard_normal((batch, size)), jnp.float32)
    model = lepton.compile(_product, weight, x, passes=f"deploy,skip-zeros{{least=0,block={_block(size)}}}")
    plain: Any = jax.jit(_product)
    given = jnp.asarray(weight)
    found = model.jit
    ratio, seconds = in_turn(
        lambda: plain(given, x), lambda: found(model.params, x), 1 if _is_small(size) else ROUNDS
    )
    error = float(jnp.max(jnp.abs(plain(given, x) - model(x))))
    return {
        "weight": f"{size} × {size}",
        "rows of the input": batch,
        "left": f"{part:.0%} of its {what}",
        "times as fast": ratio,
        "microseconds": seconds * 1e6,
        "largest difference": error,
    }


def _mask(rng: np.random.Generator, size: int, part: float, what: str) -> Any:
    """What is left: rows, columns, or as many blocks of each column of blocks, chosen at random."""
    if what == "blocks":
        count = size // _block(size)
        kept = np.argsort(rng.random((count, count)), 0) < count * part
        return np.kron(kept, np.ones((_block(size), _block(size)), np.float32))
    there = (rng.permutation(size) < size * part).astype(np.float32)
    return there[:, None] if what == "rows" else there


def _block(size: int) -> int:
    return min(128, size // 4)


def _is_small(size: int) -> bool:
    return size < 128


def _product(weight: Any, x: jax.Array) -> Any:
    return x @ weight
