"""Block sizes of the weight-only kernel: measured ones where there are any, else chosen by size.

`weight_only.json` beside this file holds what `python benchmarks/kernels.py --tune` found on the GPU at hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

from lepton_jax.targets.kernels.words import row_block

TABLE: Final = Path(__file__).with_name("weight_only.json")

MOST_ROWS: Final = 64
"""Rows of activations up to which the kernel is used; more are multiplied with the decoded weight."""

_PROGRAMS: Final = 1024
"""How many programs keep the memory of a large GPU busy."""


@dataclass(frozen=True)
class Blocks:
    """How the kernel cuts a product.

    Attributes:
        columns: of the result, for each program: a power of two from 16 to 128.
        splits: into how many parts the sum is cut; their results are added up afterwards.
        warps: of each program.
        stages: blocks of the weight that are on their way at once.
    """

    columns: int
    splits: int
    warps: int
    stages: int


def padded_rows(rows: int) -> int:
    """Rows of activations as the matrix units take them: 16, 32 or 64.

    Example:
        >>> padded_rows(1), padded_rows(17)
        (16, 32)
    """
    return max(16, 1 << (rows - 1).bit_length())


def blocks_for(
    rows: int, columns: int, inner: int, bits: int, group: int, width: int, kind: str = ""
) -> Blocks:
    """The block sizes of a product [rows, inner]·[inner, columns].

    Args:
        rows: of the activations, up to `MOST_ROWS`.
        columns: of the result.
        inner: what is summed over.
        bits: of a code, 4 or 8.
        group: codes that share a scale; 0: a whole column.
        width: see `words`.
        kind: the device's, as `jax.Device.device_kind` gives it.

    Example:
        >>> blocks_for(1, 16384, 16384, 4, 128, 64)
        Blocks(columns=128, splits=8, warps=4, stages=3)
    """
    key = key_of(rows, columns, inner, bits, group, kind)
    return table().get(key) or guess(rows, columns, inner, bits, width)


def guess(rows: int, columns: int, inner: int, bits: int, width: int) -> Blocks:
    """Block sizes by size alone: enough programs to fill the memory's bandwidth."""
    wide = row_block(columns)
    blocks = -(-inner // (16 // bits * width))
    programs = -(-columns // wide)
    splits = max(1, min(blocks // 4, math.ceil(_PROGRAMS / programs)))
    warps = 8 if wide == 128 and rows > 32 else 4  # registers for the sums
    return Blocks(wide, 1 << (splits.bit_length() - 1), warps, 3)


def key_of(rows: int, columns: int, inner: int, bits: int, group: int, kind: str) -> str:
    """Under which name a product stands in the table: rows count as what they are padded to."""
    return f"{kind}/{padded_rows(rows)}x{inner}x{columns}/int{bits}/{group}"


@cache
def table() -> Mapping[str, Blocks]:
    """What was measured."""
    try:
        found = json.loads(TABLE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {key: Blocks(**sizes) for key, sizes in found.items()}


def write_table(more: Mapping[str, Blocks], path: Path = TABLE) -> None:
    """Add measured block sizes to the table."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known.update({key: asdict(blocks) for key, blocks in more.items()})
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    table.cache_clear()
