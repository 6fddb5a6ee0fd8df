"""The kernel for int4 and int8 weights on a GPU: how it compares with bfloat16, and its block sizes.

    python benchmarks/kernels.py [--rows N] [--width N] [--tune] [--json FILE]

A chain of square layers, weights larger than the cache: the bfloat16 product `x @ w`, the kernel, and the
product with the decoded weight, in turn in one process; the median of the ratios. `--tune` tries all block
sizes first, takes the fastest, and writes them to the table of the kernel
(`lepton_jax/targets/kernels/weight_only.json`) for GPUs of this kind. Without a GPU nothing is measured.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

from benchmarks._common import seconds, table, turns
from lepton_jax.targets.kernels.blocks import Blocks, blocks_for, key_of, write_table
from lepton_jax.targets.kernels.weight_only import Layout, call_kernel, plain, relaid

ROWS: Final = (1, 4, 16, 32, 64)
WIDTHS: Final = (4096, 8192, 16384)
FORMATS: Final = ((4, 32), (4, 64), (4, 128), (4, 0), (8, 0), (8, 128))
CACHE: Final = 256 * 2**20
"""Bytes of weights that no cache of a GPU holds."""


@dataclass(frozen=True)
class Case:
    """Activations [rows, width] times weights [width, width] of so many bits, in groups (0: columns)."""

    rows: int
    width: int
    bits: int
    group: int

    @property
    def layout(self) -> Layout:
        """How a weight is kept."""
        return Layout(self.width, self.width, self.bits, self.group)

    @property
    def layers(self) -> int:
        """How many weights are larger than the cache."""
        return max(2, -(-CACHE * 8 // (self.width**2 * self.bits)))

    def key(self, kind: str) -> str:
        """Under which name the table has it."""
        return key_of(self.rows, self.width, self.width, self.bits, self.group, kind)


def candidates(case: Case) -> Iterable[Blocks]:
    """The block sizes that are tried: no more parts than blocks of the sum."""
    most = case.width * case.bits // (16 * case.layout.width)
    for columns, splits, warps, stages in itertools.product(
        (64, 128), (1, 2, 4, 8, 16, 32), (4, 8), (2, 3, 4, 5)
    ):
        if splits <= most:
            yield Blocks(columns, splits, warps, stages)


def best(choices: Iterable[Blocks], time: Callable[[Blocks], float]) -> tuple[Blocks, float] | None:
    """The choice with the least time; those that cannot be compiled (too little memory, say) are left out."""
    found: tuple[Blocks, float] | None = None
    for choice in choices:
        try:
            took = time(choice)
        except Exception as problem:  # whatever a compiler raises
            print(f"  {choice}: {str(problem).splitlines()[0][:80]}", file=sys.stderr)
            continue
        if found is None or took < found[1]:
            found = choice, took
    return found


Weights = list[tuple[jax.Array, jax.Array]]


def build(case: Case) -> tuple[jax.Array, Weights]:
    """Activations, and of each layer words and scales."""
    layout, keys = case.layout, jax.random.split(jax.random.key(0), case.layers)
    most = 2 ** (case.bits - 1)
    shape = (case.width, case.width)
    size = 2 / most * case.width**-0.5
    scale = jnp.full((layout.groups, case.width), size, jnp.float32)
    make = jax.jit(lambda key: relaid(jax.random.randint(key, shape, -most, most, jnp.int8), layout))
    return jnp.ones((case.rows, case.width), jnp.bfloat16), [(make(key), scale) for key in keys]


def chained(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """One product after another, compiled."""

    @jax.jit
    def run(x: jax.Array, weights: Sequence[Any]) -> jax.Array:
        for weight in weights:
            x = product(x, *weight)
        return x

    return run


def by_kernel(case: Case, blocks: Blocks) -> Callable[..., jax.Array]:
    """The layers by the kernel, cut in blocks."""

    def product(x: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
        return call_kernel(x, words, scale, case.layout, x.dtype, blocks)

    return chained(product)


def tune(case: Case) -> Blocks | None:
    """The fastest block sizes on the GPU at hand."""
    x, weights = build(case)

    def time(blocks: Blocks) -> float:
        return seconds(functools.partial(by_kernel(case, blocks), x, weights))

    found = best(candidates(case), time)
    return None if found is None else found[0]


def compare(case: Case, kind: str, rounds: int = 11) -> dict[str, Any]:
    """A row of the table: bfloat16, the kernel, and the decoded weight, in turn."""
    layout = case.layout
    x, weights = build(case)
    blocks = blocks_for(case.rows, case.width, case.width, case.bits, case.group, layout.width, kind)
    halves = [
        (jnp.full((case.width, case.width), case.width**-0.5, jnp.bfloat16) * (i + 1),)
        for i in range(len(weights))
    ]
    decoded = chained(lambda x, words, scale: plain(x, words, scale, layout, x.dtype))
    runs = [
        functools.partial(chained(jnp.dot), x, halves),
        functools.partial(by_kernel(case, blocks), x, weights),
        functools.partial(decoded, x, weights),
    ]
    times = sorted(turns(runs, rounds), key=lambda row: row[0] / row[1])
    base, ours, other = times[len(times) // 2]
    nbytes = sum(array.nbytes for pair in weights for array in pair)
    return {
        "rows": case.rows,
        "width": case.width,
        "weights": f"int{case.bits}, " + (f"groups of {case.group}" if case.group else "per channel"),
        "bfloat16 µs": base * 1e6 / case.layers,
        "kernel µs": ours * 1e6 / case.layers,
        "ratio": base / ours,
        "decoded": base / other,
        "TB/s": nbytes / ours / 1e12,
        "blocks": f"{blocks.columns}, {blocks.splits} parts, {blocks.warps} warps, {blocks.stages} stages",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, action="append", help=f"default: {ROWS}")
    parser.add_argument("--width", type=int, action="append", help=f"default: {WIDTHS}")
    parser.add_argument("--tune", action="store_true", help="try all block sizes and fill the table first")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    if jax.default_backend() != "gpu":
        print("not measured: there is no GPU")
        return 0
    kind = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {kind}\n")
    sizes = itertools.product(options.width or WIDTHS, options.rows or ROWS, FORMATS)
    rows = []
    for width, count, (bits, group) in sizes:
        case = Case(count, width, bits, group)
        if options.tune and (blocks := tune(case)) is not None:
            write_table({case.key(kind): blocks})
        rows.append(compare(case, kind))
        print(table(rows[-1:]), flush=True)
    print(f"\n{table(rows)}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
