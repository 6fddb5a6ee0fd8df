"""Products with weights whose rows, columns or blocks are zero, as smaller products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.passes._weights.selecting import WeightPass
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes._weights.watching import Known, Watcher, observe, seen
from lepton_jax.rewrite import PassContext, UsageError, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write

_RULE: Final = "product-without-zeros"


@dataclass(frozen=True)
class SkipZeros(WeightPass):
    """Products whose weight has rows, columns or large blocks of zeros, without these.

    Before:
        %y = dot_general %x %w
    After, with %r the inputs and %c the outputs that are not all zero:
        %y = (%x[:, %r] @ %w[%r, %c])[:, where each output is in %c], zero where it is not
    Or in blocks, with %b those of each column of blocks that are not all zero (as many for all columns):
        %y = %x[blocks %b] @ %w[blocks %b], a batch of products, one for each column of blocks

    Looks at the weights, so it is for `compile`; what only calibration decides (`prune{importance=wanda}`)
    is not known yet: compile with parameters that are pruned. For weights of two dimensions. Inputs that
    meet nothing but zeros are not read, so that their NaN and infinities do not reach the result. Name it
    after what prunes. `python benchmarks/compress.py --only zeros` prints what it gives.

    Attributes:
        most: the part of the rows, or of the columns, that may be left for these to be left out: gathering
            what stays has to cost less than what goes.
        block: the size of blocks, of which both sizes of the weight have to be multiples; 0: blocks are not
            looked for.
        most_blocks: the part of the blocks of a column that may be left.
        least: as in every pass on weights; products with smaller weights take no less time.

    Raises:
        UsageError: no parameters are named, a selector chooses nothing, or the weights are not known.
        ValueError: an option out of range.
    """

    name: ClassVar[str] = "skip-zeros"
    approximates: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = True

    most: float = 0.625
    block: int = 128
    most_blocks: float = 0.5
    ops: str = "dot_general"
    least: int = 2**20

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not (0 <= self.most <= 1 and 0 <= self.most_blocks <= 1) or self.block < 0:
            raise ValueError("most and most_blocks are parts of the whole, 0 to 1, and block is not negative")
        if self.ops != "dot_general":
            raise ValueError("skip-zeros is for dot_general")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Leave out rows and columns of zeros where enough are."""
        found = self.select(graph, ctx)
        known: Known = {}
        for use in found.selected:
            reason = _why_not(use) or self._rewrite(use, known, ctx)
            if reason:
                self.leave(use, reason, _RULE, ctx)
        self.report_rest(found, _RULE, ctx)

    def _rewrite(self, use: WeightUse, known: Known, ctx: PassContext) -> str | None:
        """Write a smaller product, or let calibration look at the weight; or why neither."""
        watcher = ZerosSeen(_inputs(use), self.block)
        if ctx.watches is not None:
            reason = observe(use, [watcher], known, ctx)
            if reason is None:
                self.note(use, "seen by calibration", "", ctx)
            return reason
        if not ctx.calibration:
            raise UsageError(f"{self} looks at the weights: use lepton.compile(function, params, *sample)")
        values = seen(use, [watcher], known, ctx)
        if isinstance(values, str):
            return values
        found = self._made(use, *values)
        if isinstance(found, str):
            return found
        made, done = found
        if not ctx.fire(_RULE, use.node):
            return None
        write(made, use.node, _RULE)
        if use.node.graph is not None:
            use.node.graph.erase(use.node)
        self.note(use, done, "", ctx)
        return None

    def _made(
        self, use: WeightUse, rows: Value, columns: Value, places: Value, blocks: Value
    ) -> tuple[Rewrite, str] | str:
        """What to put in place of a product, in words too; or that too little is zero."""
        axis, params = _inputs(use), use.node.params
        whole, left = (use.weight.shape[axis], places.shape[0]), (rows.shape[0], columns.shape[0])
        cuts = left[0] <= self.most * whole[0], left[1] <= self.most * whole[1]
        then = tuple(part if cut else size for part, cut, size in zip(left, cuts, whole, strict=True))
        how = Smaller(
            use.side,
            axis,
            params["dimension_numbers"][0][1 - use.side][0],
            cuts,
            params["precision"],
            params["preferred_element_type"],
        )
        count, size = blocks.shape[1], whole[0] // max(self.block, 1)
        if 0 < count <= self.most_blocks * size and count * whole[1] * self.block < then[0] * then[1]:
            words = f"{count} of {size} blocks of {self.block} inputs for {self.block} outputs each"
            return rewrite(in_blocks, use.other, use.weight, blocks, how=how), words
        if not any(cuts):
            return f"{left[0]} of {whole[0]} rows and {left[1]} of {whole[1]} columns are not zero"
        words = f"{whole[0]} × {whole[1]} became {then[0]} × {then[1]}"
        return rewrite(without, use.other, use.weight, rows, columns, places, how=how), words


def _inputs(use: WeightUse) -> int:
    """The axis of a weight of two dimensions that is summed over."""
    axis: int = use.node.params["dimension_numbers"][0][use.side][0]
    return axis


def _why_not(use: WeightUse) -> str | None:
    params = use.node.params
    (contracted, batch) = params["dimension_numbers"]
    if use.weight.ndim != 2 or len(contracted[use.side]) != 1 or batch[use.side]:
        return "it is no product with a matrix"
    if use.node.graph is None or use.node.graph.parents:
        return "it is in a loop or branch"
    return "its result has a sharding" if params.get("out_sharding") is not None else None


@dataclass(frozen=True)
class ZerosSeen(Watcher):
    """Which rows, columns and blocks of a matrix are not all zero.

    Attributes:
        inputs: the axis of the rows.
        block: the size of blocks; 0: they are not looked at.
    """

    inputs: int
    block: int
    looks_at: ClassVar[Any] = "weight"
    kind: ClassVar[str] = "weight-zeros"

    def see(self, x: jax.Array) -> list[jax.Array]:
        """Whether each row, each column, and each block has anything; no blocks where they do not fit."""
        there, size = jnp.moveaxis(x != 0, self.inputs, 0), self.block
        blocks = jnp.zeros((0, 0), bool)
        if size and not any(n % size for n in there.shape):
            blocks = jnp.any(there.reshape(there.shape[0] // size, size, -1, size), (1, 3))
        return [jnp.any(there, 1), jnp.any(there, 0), blocks]

    def merge(self, left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
        """Weights do not change from batch to batch."""
        return left

    def check(self, state: list[jax.Array], name: str) -> None:
        """Nothing can be wrong: NaN is not zero."""

    def result(self, state: list[jax.Array]) -> tuple[jax.Array, ...]:
        """The rows and columns that have anything, and where each column is among these; all int32.

        Last the blocks of each column of blocks that have anything, and so many others that columns have as
        many: [columns, blocks].
        """
        rows, columns = (np.flatnonzero(np.asarray(each)).astype(np.int32) for each in state[:2])
        places = np.full(state[1].shape, len(columns), np.int32)
        places[columns] = np.arange(len(columns))
        there = np.asarray(state[2]).T
        most = int(there.sum(1).max(initial=0))
        blocks = np.sort(np.argsort(~there, 1, kind="stable")[:, :most], 1).astype(np.int32)
        return jnp.asarray(rows), jnp.asarray(columns), jnp.asarray(places), jnp.asarray(blocks)


@dataclass(frozen=True)
class Smaller:
    """A product without zeros.

    Attributes:
        side: which operand the weight was.
        inputs: the weight's axis that is summed over.
        read: the other operand's.
        cuts: whether rows, and columns, are left out.
        precision: of the product.
        wide: what is summed up in.
    """

    side: int
    inputs: int
    read: int
    cuts: tuple[bool, bool]
    precision: Any
    wide: Any


def without(
    x: jax.Array, weight: jax.Array, rows: jax.Array, columns: jax.Array, places: jax.Array, *, how: Smaller
) -> jax.Array:
    """The product of the rows and columns that are not zero, with zeros where they belong."""
    outputs = 1 - how.inputs
    if how.cuts[0]:
        weight, x = _taken(weight, rows, how.inputs), _taken(x, rows, how.read)
    if how.cuts[1]:
        weight = _taken(weight, columns, outputs)
    axes = ((how.inputs,), (how.read,)) if how.side == 0 else ((how.read,), (how.inputs,))
    left, right = (weight, x) if how.side == 0 else (x, weight)
    y = lax.dot_general(
        left, right, (axes, ((), ())), precision=how.precision, preferred_element_type=how.wide
    )
    if not how.cuts[1]:
        return y
    axis = 0 if how.side == 0 else y.ndim - 1
    if not len(columns):
        return jnp.zeros((*y.shape[:axis], len(places), *y.shape[axis + 1 :]), y.dtype)
    return jnp.take(y, places, axis, mode="fill", fill_value=0)


def _taken(x: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    return jnp.take(x, places, axis, mode="clip")


def in_blocks(x: jax.Array, weight: jax.Array, blocks: jax.Array, *, how: Smaller) -> jax.Array:
    """The product of blocks that are not zero, one for each column of blocks.

    Args:
        blocks: the rows of blocks that each column of blocks has, int32[columns, count].
    """
    matrix, rows = jnp.moveaxis(weight, how.inputs, 0), jnp.moveaxis(x, how.read, -1)
    (inputs, outputs), (columns, count) = matrix.shape, blocks.shape
    size = outputs // columns
    tiles = matrix.reshape(inputs // size, size, columns, size).transpose(2, 0, 1, 3)
    chosen = jax.vmap(lambda some, which: some[which])(tiles, blocks).reshape(columns, count * size, size)
    parts = rows.reshape(-1, inputs // size, size).transpose(1, 0, 2)[blocks]
    read = parts.transpose(0, 2, 1, 3).reshape(columns, -1, count * size)
    y = lax.dot_general(
        read, chosen, (((2,), (1,)), ((0,), (0,))), precision=how.precision, preferred_element_type=how.wide
    )
    whole = y.transpose(1, 0, 2).reshape(*rows.shape[:-1], outputs)
    return jnp.moveaxis(whole, -1, 0) if how.side == 0 else whole
