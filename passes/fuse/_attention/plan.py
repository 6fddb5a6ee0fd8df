"""What a blocked attention is told beside its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lepton_jax.passes.fuse._attention.axes import Labels
from lepton_jax.passes.fuse._attention.program import Program


@dataclass(frozen=True)
class Plan:
    """A blocked attention; hashable, so that layers of one shape share a trace.

    Attributes:
        scores: makes a block of scores of blocks of the leaves.
        weights: moves a block of exponentials into the place that the product wants it in.
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
        shift: what the program subtracts: the maximum ("top"), nothing ("none"), or what does not
            matter since the sums cancel it ("any").
        block: how many queries and keys a block has.
        order: for each block of queries the numbers of the key blocks, those that count first.
        counts: for each block of queries how many of them count.
        fill: what the scores are in blocks that do not count.
    """

    scores: Program
    weights: Program
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
    shift: Literal["top", "none", "any"]
    block: tuple[int, int]
    order: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    fill: float

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
    def skips(self) -> bool:
        """Whether some blocks do not count."""
        return any(count < len(self.order[0]) for count in self.counts)
