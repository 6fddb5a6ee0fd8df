"""Sums over blocks of [queries × keys] arrays, as they occur in the backward half of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.fuse._attention.axes import Labels
from lepton_jax.passes.fuse._attention.blocked import needs_rest
from lepton_jax.passes.fuse._attention.blocks import cut_all, joined
from lepton_jax.passes.fuse._attention.program import Program, Step


@dataclass(frozen=True)
class Sum:
    """One sum over blocks.

    Attributes:
        step: the product or sum.
        position: which of its operands is [queries × keys].
        marks: the query and key axes of that operand.
        dtype: the dtype of the result.
    """

    step: Step
    position: int
    marks: Labels
    dtype: Any


@dataclass(frozen=True)
class Stage:
    """Sums that are computed together; hashable.

    Attributes:
        program: the blocks that are summed, and all that they are made of.
        sums: what is summed.
        size: the number of queries and keys.
        block: how many of them a block has.
        pairs: the blocks that count, as (query block, key block).
        rest: the others.
        fill: what the scores are in the others.
    """

    program: Program
    sums: tuple[Sum, ...]
    size: tuple[int, int]
    block: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]
    rest: tuple[tuple[int, int], ...]
    fill: float


def summed(top: Any, *leaves: Any, stage: Stage) -> list[jax.Array]:
    """The results of the sums of a stage.

    Args:
        top: the largest score of each row.
        leaves: the leaves of the stage's program.
    """
    arrays = cut_all(leaves, stage.program.leaves, stage.block, stage.program.orders)

    def step(state: Any, pair: Any) -> tuple[Any, None]:
        made = _partial(stage, arrays.at(pair), pair)
        return [_added(s, sum_, pair, x) for s, sum_, x in zip(state, stage.sums, made, strict=True)], None

    def over(pairs: tuple[tuple[int, int], ...], state: Any) -> Any:
        rows, columns = (jnp.asarray(line, jnp.int32) for line in zip(*pairs, strict=True))
        return lax.scan(step, state, (rows, columns))[0]

    state = [_zeros(stage, sum_) for sum_ in stage.sums]
    if stage.pairs:
        state = over(stage.pairs, state)
    if stage.rest and stage.fill > -float("inf"):
        low = needs_rest(top, stage.fill)
        state = lax.cond(low, lambda s: over(stage.rest, s), lambda s: s, state)
    return [_whole(stage, sum_, x) for sum_, x in zip(stage.sums, state, strict=True)]


def _partial(stage: Stage, blocks: list[Any], pair: tuple[Any, Any]) -> list[Any]:
    """What one block adds to each sum."""
    start = (pair[0] * stage.block[0], pair[1] * stage.block[1])
    blocks = [stage.program.prepared(leaf, block) for leaf, block in enumerate(blocks)]
    env = stage.program.run_all(blocks, start, stage.block)
    made = []
    for sum_ in stage.sums:
        operands = [o[0] if isinstance(o, tuple) else env[o] for o in sum_.step.operands]
        operands[sum_.position] = _there(stage, sum_, operands[sum_.position], start)
        made.append(sum_.step.run(operands, start, stage.block))
    return made


def _there(stage: Stage, sum_: Sum, block: Any, start: tuple[Any, Any]) -> Any:
    """A block with zeros for queries and keys that are not there."""
    for axis, size, length, first in zip(sum_.marks, stage.size, stage.block, start, strict=True):
        if size % length and axis is not None:
            inside = lax.broadcasted_iota(jnp.int32, block.shape, axis) + first < size
            block = lax.select(inside, block, jnp.zeros_like(block))
    return block


def _sides(sum_: Sum) -> list[tuple[int, int]]:
    """Whether the result has queries (0) and keys (1), with their axes there."""
    return [(side, axis) for side, axis in enumerate(sum_.step.labels) if axis is not None]


def _zeros(stage: Stage, sum_: Sum) -> Any:
    """[query blocks, key blocks, ...], without those that the result does not have."""
    shape, blocks = list(sum_.step.shape), []
    for side, axis in _sides(sum_):
        shape[axis] = stage.block[side]
        blocks.append(-(-stage.size[side] // stage.block[side]))
    return jnp.zeros((*blocks, *shape), jnp.promote_types(sum_.step.dtype, jnp.float32))


def _added(state: Any, sum_: Sum, pair: tuple[Any, Any], partial: Any) -> Any:
    """The state with what a block adds to it."""
    partial = partial.astype(state.dtype)
    sides = [pair[side] for side, _ in _sides(sum_)]
    if not sides:
        return state + partial
    starts = (*sides, *[0] * partial.ndim)
    old = lax.dynamic_slice(state, starts, (*[1] * len(sides), *partial.shape), allow_negative_indices=False)
    new = old + partial.reshape(old.shape)
    return lax.dynamic_update_slice(state, new, starts, allow_negative_indices=False)


def _whole(stage: Stage, sum_: Sum, state: Any) -> Any:
    """The result of its blocks."""
    for at, (side, axis) in reversed(list(enumerate(_sides(sum_)))):
        state = joined(state, axis + at, stage.size[side], at)
    return state.astype(sum_.dtype)
