"""The kinds of blocks: those without a mask, and those that masks cut in one way or another."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lepton_jax.passes.fuse._attention.known import Same, known_in_most, superfluous, without
from lepton_jax.passes.fuse._attention.plan import Part, Tile
from lepton_jax.passes.fuse._attention.program import Builder, Program
from lepton_jax.passes.fuse._attention.skip import Grid

_MOST: Final = 3
"""With more ways than this in which masks cut blocks, the blocks are computed whole."""


def tiles_of(
    program: Program, same: Same, builder: Builder, grid: Grid, block: tuple[int, int], length: int
) -> tuple[Tile, ...]:
    """The blocks that count, by how they are computed.

    Args:
        program: makes the scores; its numbers are the builder's.
        same: its steps that are superfluous in all blocks.
        builder: holds the values behind the program's numbers.
        grid: what is known of the values.
        block: how many queries and keys a block has.
        length: the same, where arrays are no shorter.
    """
    counts = grid.blocks(block).counts
    fine = (min(half_of(length), block[0]), min(half_of(length), block[1]))
    seen = grid.blocks(fine).counts
    known, plain = known_in_most(program, builder, grid, block, counts & _all(seen, block, fine))
    ragged = grid.size[1] % block[1] != 0
    if ragged:
        plain[:, -1] = False
    whole: Part = (0, block[0], 0, block[1])
    cut = _parts(seen, block, fine, counts & ~plain)
    if len(set(cut.values())) > _MOST:
        cut = dict.fromkeys(cut, (whole,))
    kinds = [
        (without(program, same), parts, _chosen(counts.shape, [p for p in cut if cut[p] == parts]))
        for parts in set(cut.values())
    ]
    if plain.any():
        kinds.append((without(program, same | superfluous(program, builder, known)), (whole,), plain))
    tiles = [
        Tile(
            own,
            parts,
            tuple(tuple(map(int, np.flatnonzero(line))) for line in where),
            ragged and bool(where[:, -1].any()),
        )
        for own, parts, where in kinds
    ]
    return tuple(sorted(tiles, key=lambda tile: ({len(line) for line in tile.blocks} != {1}, tile.blocks)))


def _chosen(shape: tuple[int, int], pairs: list[tuple[int, int]]) -> Any:
    where = np.zeros(shape, bool)
    for pair in pairs:
        where[pair] = True
    return where


def half_of(length: int) -> int:
    """How many queries and keys the parts of blocks have."""
    return length // 2 if length % 2 == 0 else length


def _all(seen: Any, block: tuple[int, int], fine: tuple[int, int]) -> Any:
    """For each block whether all of its smaller blocks count."""
    for axis, (size, small) in enumerate(zip(block, fine, strict=True)):
        seen = np.logical_and.reduceat(seen, np.arange(0, seen.shape[axis], -(-size // small)), axis)
    return seen


def _parts(
    seen: Any, block: tuple[int, int], fine: tuple[int, int], cut: Any
) -> dict[tuple[int, int], tuple[Part, ...]]:
    """What counts of the blocks in which `cut` is True: for each half of the queries one run of keys."""
    steps = [-(-size // small) for size, small in zip(block, fine, strict=True)]
    found = {}
    for i, j in zip(*np.nonzero(cut), strict=True):
        rows = np.minimum(np.arange(i * steps[0], (i + 1) * steps[0]), len(seen) - 1)
        part = seen[rows, j * steps[1] : (j + 1) * steps[1]]
        found[int(i), int(j)] = _runs(part, block, fine)
    return found


def _runs(seen: Any, block: tuple[int, int], fine: tuple[int, int]) -> tuple[Part, ...]:
    """The parts of one block: rows of smaller blocks, each from the first to the last that counts."""
    parts: list[Part] = []
    for at, line in enumerate(seen):
        first = at * fine[0]
        rows = min(fine[0], block[0] - first)
        columns = np.flatnonzero(line)
        low = int(columns[0]) * fine[1] if columns.size else 0
        high = min((int(columns[-1]) + 1) * fine[1], block[1]) if columns.size else 0
        if parts and parts[-1][2:] == (low, high - low):
            parts[-1] = (parts[-1][0], parts[-1][1] + rows, low, high - low)
        else:
            parts.append((first, rows, low, high - low))
    return tuple(parts)
