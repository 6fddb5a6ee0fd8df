"""How an attention is cut into blocks, and from where on that pays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from lepton_jax.passes.fuse._attention.known import without
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.plan import Tile
from lepton_jax.passes.fuse._attention.program import NARROW, Program
from lepton_jax.passes.fuse._attention.scales import scaled_queries
from lepton_jax.passes.fuse._attention.skip import Blocks, Grid
from lepton_jax.passes.fuse._attention.tiles import half_of, tiles_of
from lepton_jax.passes.fuse._attention.wide import widened

_SIZES: Final = (128, 256, 512)

_MOST_SCORES: Final = 1 << 20
"""A block has no more scores than this, over all heads of the batch, where it can be smaller.

Two or three such arrays are alive at once, and from 32 MB on memory is handed out page by page in every call.
"""

_OVERHEAD: Final = 160
"""What a block costs beside its scores: as much as this many more keys for each query."""


@dataclass(frozen=True)
class Limits:
    """When blocks pay.

    Attributes:
        masked: the fewest keys where a quarter of the scores or more are left out.
        open: the fewest keys where fewer are.
        scores: the fewest scores.
        block: how many queries and keys a block has; None to choose by the size of the batch.
        widen: whether to compute in float32 what is in bfloat16 or float16.
        target: "gpu" or "tpu" where library kernels are to be used, "" where not.
        kernel: the fewest keys for which a library kernel pays.
    """

    masked: int
    open: int
    scores: int
    block: int | None
    widen: bool = False
    target: str = ""
    kernel: int = 0


@dataclass(frozen=True, eq=False)
class Cutting:
    """How an attention is cut into blocks.

    Attributes:
        size: how many queries and keys a block has.
        blocks: which blocks count.
        scores: makes the scores.
        tiles: the blocks that count, by how they are computed.
        share: how much of all scores is computed.
        widen: whether to compute in float32 what is in bfloat16 or float16.
        grid: what is known of arrays in blocks.
    """

    size: tuple[int, int]
    blocks: Blocks
    scores: Program
    tiles: tuple[Tile, ...]
    share: float
    widen: bool
    grid: Grid


def cutting_of(found: Found, limits: Limits) -> Cutting:
    """The best size of the blocks: small ones leave out more, large ones are fast."""
    queries, keys = found.size
    heads = math.prod(found.scores.shape) // (queries * keys)
    lengths = _SIZES if limits.block is None else (limits.block,)
    grid = Grid(found.scores, found.labels, half_of(lengths[0]))
    program = found.program.ordered()
    narrow = any(str(v.dtype) in NARROW for v in (*found.builder.values, *found.dot.operands))
    widen = limits.widen and narrow
    program, same = scaled_queries(widened(program) if widen else program, found.builder)
    best: tuple[float, Cutting] | None = None
    for length in lengths:
        if best is not None and length * length * heads > _MOST_SCORES:
            break
        size = (min(length, queries), min(length, keys))
        tiles = tiles_of(program, same, found.builder, grid, size, length)
        area = sum(tile.area for tile in tiles)
        cost = area * (1 + _OVERHEAD / length)
        if best is None or cost < best[0]:
            fill = grid.blocks((min(half_of(length), queries), min(half_of(length), keys))).fill
            blocks = replace(grid.blocks(size), fill=fill)
            share = area / (blocks.counts.size * math.prod(size))
            best = (cost, Cutting(size, blocks, without(program, same), tiles, share, widen, grid))
    assert best is not None
    return best[1]
