"""What a blocked attention is told beside its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lepton_jax.passes.fuse._attention.axes import Labels
from lepton_jax.passes.fuse._attention.program import Program, Step

Part = tuple[int, int, int, int]
"""Some of a block: its first query, how many queries, its first key, how many keys."""


@dataclass(frozen=True)
class Tile:
    """Blocks that are computed in the same way.

    Attributes:
        program: makes the scores.
        parts: what counts of a block, the queries in their order and none left out; no keys where none count.
        blocks: for each block of queries the numbers of the key blocks that are of this kind.
        ragged: whether a block may have keys that are not there.
        weights: what moves and masks exponentials, if not that of the plan.
        summed: what masks them before they are summed, if not that of the plan.
    """

    program: Program
    parts: tuple[Part, ...]
    blocks: tuple[tuple[int, ...], ...]
    ragged: bool
    weights: Program | None = None
    summed: Program | None = None

    @property
    def area(self) -> int:
        """How many scores are computed, for one head."""
        return sum(rows * keys for _, rows, _, keys in self.parts) * sum(map(len, self.blocks))


@dataclass(frozen=True)
class Plan:
    """A blocked attention; hashable, so that layers of one shape share a trace.

    Attributes:
        scores: makes a block of scores of blocks of the leaves.
        weights: moves a block of exponentials into the place that the product wants it in, and masks it;
            its first leaf are the exponentials.
        moves: the steps of it that move.
        summed: the same for what is summed.
        labels: the query and key axes of the scores.
        shape: the shape of the whole scores.
        exp_dtype: the dtype of the exponentials.
        contract: the key axes of weights and values in the product.
        batch: the batch axes of weights and values in the product.
        side: which operand of the product the weights were.
        precision: the product's precision.
        dtype: the product's dtype.
        wide: the dtype in which sums are kept.
        divided: whether the result is divided by the sums.
        shift: what the program subtracts: the maximum ("top"), nothing ("none"), or another number for each
            row ("row").
        block: how many queries and keys a block has.
        tiles: the blocks that count, by how they are computed.
        order: for each block of queries the numbers of the key blocks, those that count first.
        counts: for each block of queries how many of them count.
        fill: what the scores are where they do not count.
        tracks: whether the maxima have a derivative that counts.
        layout: the order in which the axes of the product, [batch, free axes of the weights, free axes of the
            values], are best kept; empty for that order.
    """

    scores: Program
    weights: Program
    moves: tuple[Step, ...]
    summed: Program
    labels: Labels
    shape: tuple[int, ...]
    exp_dtype: Any
    contract: tuple[int, int]
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    side: int
    precision: Any
    dtype: Any
    wide: Any
    divided: bool
    shift: Literal["top", "none", "row"]
    block: tuple[int, int]
    tiles: tuple[Tile, ...]
    order: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    fill: float
    tracks: bool = False
    layout: tuple[int, ...] = ()

    @property
    def query(self) -> int:
        """The query axis of the scores."""
        assert self.labels[0] is not None
        return self.labels[0]

    @property
    def key(self) -> int:
        """The key axis of the scores."""
        assert self.labels[1] is not None
        return self.labels[1]

    @property
    def late(self) -> Program:
        """What masks the exponentials, without steps."""
        return Program(self.weights.leaves[1:], (), 0, wide=self.weights.wide)

    @property
    def masks(self) -> bool:
        """Whether exponentials are masked or multiplied."""
        return bool(self.summed.steps) or len(self.weights.leaves) > 1

    @property
    def skips(self) -> bool:
        """Whether some blocks do not count."""
        return any(count < len(self.order[0]) for count in self.counts)

    @property
    def every(self) -> Tile:
        """All blocks, those that do not count too."""
        columns = tuple(range(len(self.order[0])))
        whole = ((0, self.block[0], 0, self.block[1]),)
        ragged = self.shape[self.key] % self.block[1] != 0
        return Tile(self.scores, whole, (columns,) * len(self.order), ragged)
