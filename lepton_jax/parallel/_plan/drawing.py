"""Pictures of arrays in blocks, with the devices that hold each block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec

_MOST = 8


def draw(layout: Layout, mesh: MeshSpec) -> list[str]:
    """An array as a grid of blocks with the devices that hold each.

    Rows and columns are its last two dimensions that are split; a grid for each block of those before.
    Devices are counted through the mesh, its last axis fastest.

    Example:
        >>> mesh = MeshSpec.of("data=2,model=2", chip="v5e")
        >>> for line in draw(Layout((("data",), ("model",))), mesh):
        ...     print(line)
        ┌───┬───┐
        │ 0 │ 1 │
        ├───┼───┤
        │ 2 │ 3 │
        └───┴───┘
    """
    split = [dim for dim, axes in enumerate(layout.dims) if mesh.size(*axes) > 1]
    counts = [mesh.size(*layout.dims[dim]) for dim in split]
    holders = _holders([layout.dims[dim] for dim in split], mesh)
    rows, cols = ([1, 1, *counts])[-2:] if len(counts) > 1 else (1, math.prod(counts))
    if len(counts) == 1 and split[0] < layout.ndim - 1:
        rows, cols = cols, 1
    lines: list[str] = []
    outer = list(itertools.product(*(range(count) for count in counts[:-2])))
    for place in outer[:_MOST]:
        if counts[:-2]:
            where = ", ".join(f"dim {dim} block {i}" for dim, i in zip(split, place, strict=False))
            lines.append(f"{where}:")
        cells = [
            [_devices(holders[*place, *_index(counts, r, c, rows)]) for c in range(cols)] for r in range(rows)
        ]
        lines += _grid(cells)
    return lines + ([f"… {len(outer) - _MOST} more grids"] if len(outer) > _MOST else [])


def _index(counts: Sequence[int], row: int, col: int, rows: int) -> tuple[int, ...]:
    if len(counts) > 1:
        return row, col
    return (row if rows > 1 else col,) if counts else ()


def _holders(dims: Sequence[Sequence[str]], mesh: MeshSpec) -> dict[tuple[int, ...], list[int]]:
    """Of each block, by its place along each split dimension, the devices that hold it."""
    sizes = [axis.size for axis in mesh.axes]
    found: dict[tuple[int, ...], list[int]] = {}
    names = mesh.names
    for device, place in enumerate(np.ndindex(*sizes)):
        block = []
        for axes in dims:
            index = 0
            for name in axes:
                index = index * mesh.size(name) + place[names.index(name)]
            block.append(index)
        found.setdefault(tuple(block), []).append(device)
    return found


def _devices(numbers: Sequence[int]) -> str:
    """The numbers of devices: `0-3`, `0,4`, `0,2,…,14` where they are many."""
    if len(numbers) > 2 and all(b - a == 1 for a, b in itertools.pairwise(numbers)):
        return f"{numbers[0]}-{numbers[-1]}"
    if len(numbers) > 4:
        return f"{numbers[0]},{numbers[1]},…,{numbers[-1]}"
    return ",".join(map(str, numbers))


def _grid(cells: Sequence[Sequence[str]]) -> list[str]:
    shown = [_cut(list(row)) for row in _cut([list(row) for row in cells], ["…"] * len(cells[0]))]
    width = max(len(text) for row in shown for text in row)
    bars = ["─" * (width + 2)] * len(shown[0])
    lines = ["┌" + "┬".join(bars) + "┐"]
    for i, row in enumerate(shown):
        if i:
            lines.append("├" + "┼".join(bars) + "┤")
        lines.append("│" + "│".join(f" {text.center(width)} " for text in row) + "│")
    return [*lines, "└" + "┴".join(bars) + "┘"]


def _cut(items: list, between: object = "…") -> list:  # type: ignore[type-arg]
    """The first and the last where there are many."""
    return items if len(items) <= _MOST else [*items[: _MOST - 2], between, items[-1]]
