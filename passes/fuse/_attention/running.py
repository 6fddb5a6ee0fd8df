"""The running softmax: what is kept of the blocks that were seen, and what one more makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.fuse._attention.axes import Labels
from lepton_jax.passes.fuse._attention.plan import Part, Plan, Tile
from lepton_jax.passes.fuse._attention.program import Program, as_wide

State = tuple[Any, Any, Any]
"""The product so far, the maxima and the sums with one key."""


def key_first(plan: Plan, rank: int) -> tuple[int, ...]:
    """The order [batch, keys, free] of the product's other operand."""
    first = (*plan.batch[1], plan.contract[1])
    return (*first, *(d for d in range(rank) if d not in first))


def _weights_rank(plan: Plan) -> int:
    return len(plan.moves[-1].shape) if plan.moves else len(plan.shape)


def result_order(plan: Plan, rank: int) -> tuple[int, ...]:
    """The transpose of [batch, free axes of the weights, free axes of the values] that the program has."""
    batch = len(plan.batch[0])
    last = _weights_rank(plan) - 1
    if plan.side == 0:
        return tuple(range(rank))
    return (*range(batch), *range(last, rank), *range(batch, last))


def query_axis(plan: Plan) -> int:
    """The query axis of the product, [batch, free axes of the weights, free axes of the values]."""
    query = plan.moves[-1].labels[0] if plan.moves else plan.query
    used = (*plan.batch[0], plan.contract[0])
    free = [d for d in range(_weights_rank(plan)) if d not in used]
    assert query is not None
    return len(plan.batch[0]) + free.index(query)


def safe(top: Any) -> Any:
    """Zero for rows without a score, so that their exponentials are zero, not NaN."""
    return lax.select(top == -jnp.inf, jnp.zeros_like(top), top)


def weigh(
    plan: Plan, tile: Tile, weights: Any, values: Any, late: Sequence[Any], start: tuple[Any, Any]
) -> tuple[Any, Any]:
    """The product of one block of exponentials [like the scores] with one of values, and the sums over keys.

    Args:
        plan: what is computed.
        tile: the kind of block.
        weights: the exponentials.
        values: [batch, keys, free].
        late: blocks of what masks the exponentials.
        start: the first query and the first key of the block.
    """
    size = (weights.shape[plan.query], weights.shape[plan.key])
    given = [weights.astype(plan.exp_dtype), *late]
    block = (tile.weights or plan.weights).run(given, start, size)
    summed = tile.summed or plan.summed
    counted = summed.run(given, start, size).astype(plan.wide) if summed.steps else weights
    return multiply(block, values, plan), counted.sum(plan.key, keepdims=True)


def mix(weights: Any, values: Any, plan: Plan) -> Any:
    """The product of one block of exponentials [like the scores], unmasked, with one of values."""
    size = (weights.shape[plan.query], weights.shape[plan.key])
    return multiply(plan.weights.run([weights.astype(plan.exp_dtype)], (0, 0), size), values, plan)


def near_top(scores: Any, top: Any) -> Any:
    """Which scores are the maximum of their row, up to the rounding of scores that are computed again."""
    eps = float(jnp.finfo(scores.dtype).eps)
    scale = lax.max(lax.abs(top), lax.full_like(top, 1))
    least = top - scale * lax.full_like(top, 64 * eps if scores.dtype.itemsize >= 4 else 0.5 * eps)
    return lax.ge(scores, lax.broadcast_in_dim(least, scores.shape, range(scores.ndim)))


def multiply(block: Any, values: Any, plan: Plan) -> Any:
    """The product of a block of weights, as the product wants it, with values [batch, keys, free]."""
    values = as_wide(values) if plan.scores.wide else values
    batch = len(plan.batch[0])
    numbers = (((plan.contract[0],), (batch,)), (plan.batch[0], tuple(range(batch))))
    return lax.dot_general(block, values, numbers, precision=plan.precision, preferred_element_type=plan.wide)


def along(rows: Any, plan: Plan, rank: int) -> Any:
    """Numbers for each row of the scores (one key) in the places that the product's axes have."""
    queries = rows.shape[plan.query]
    for step in plan.moves:
        rows = step.run([rows], (0, 0), (queries, 1))
    used = (*plan.batch[0], plan.contract[0])
    free = [d for d in range(rows.ndim) if d not in used]
    rows = rows.transpose(*plan.batch[0], *free, plan.contract[0]).squeeze(-1)
    return rows.reshape(*rows.shape, *[1] * (rank - rows.ndim))


def scores_of(
    plan: Plan,
    program: Program,
    ragged: bool,
    blocks: Sequence[Any],
    start: tuple[Any, Any],
    size: tuple[int, int],
) -> Any:
    """Scores that begin at `start`, -inf for keys that are not there."""
    scores = program.run(blocks, start, size).astype(plan.wide)
    if not ragged:
        return scores
    there = lax.broadcasted_iota(jnp.int32, scores.shape, plan.key) + start[1] < plan.shape[plan.key]
    return lax.select(there, scores, jnp.full_like(scores, -jnp.inf))


def start(plan: Plan, values: Any, queries: int) -> State:
    """The state of so many queries before the first block.

    Args:
        plan: what is computed.
        values: a block of values, for its shape.
        queries: how many there are.
    """
    shape = [*plan.shape]
    shape[plan.query], shape[plan.key] = queries, values.shape[len(plan.batch[0])]
    moved = tuple(shape)
    if plan.moves:
        last = plan.moves[-1]
        lengths = dict(zip(last.labels, (queries, shape[plan.key]), strict=True))
        moved = tuple(lengths.get(d, n) for d, n in enumerate(last.shape))
    value = jax.ShapeDtypeStruct(values.shape, values.dtype)
    block = jax.ShapeDtypeStruct(moved, plan.exp_dtype)
    mixed = jax.eval_shape(lambda w, v: multiply(w, v, plan), block, value)
    shape[plan.key] = 1
    return (
        jnp.zeros(mixed.shape, plan.wide),
        jnp.full(shape, -jnp.inf, plan.wide),
        jnp.zeros(shape, plan.wide),
    )


def update(
    plan: Plan,
    tile: Tile,
    state: State | None,
    scores: Any,
    values: Any,
    late: Sequence[Any],
    first: tuple[Any, Any],
) -> State:
    """The state after one more block; None before the first."""
    top = scores.max(plan.key, keepdims=True)
    if state is not None:
        top = jnp.maximum(state[1], top)
    weights = jnp.exp(scores - safe(top))
    mixed, total = weigh(plan, tile, weights, values, late, first)
    if state is None:
        return mixed, top, total
    shrink = jnp.exp(state[1] - safe(top))
    return state[0] * along(shrink, plan, mixed.ndim) + mixed, top, state[2] * shrink + total


def advance(
    plan: Plan, tile: Tile, state: State | None, blocks: Sequence[Any], values: Any, first: tuple[Any, Any]
) -> State:
    """The state after one more block of a kind.

    Args:
        plan: what is computed.
        tile: the kind.
        state: the state before, None if there is none.
        blocks: a block of each leaf, of the scores and of what masks the exponentials.
        values: a block of the values, [batch, keys, free].
        first: the block's first query and first key.
    """
    axes = (query_axis(plan), plan.query, plan.query)
    made = []
    for part in tile.parts:
        row, rows, column, columns = part
        old = None
        if state is not None:
            cut = [lax.slice_in_dim(x, row, row + rows, axis=a) for x, a in zip(state, axes, strict=True)]
            old = cut[0], cut[1], cut[2]
        if columns:
            every = (*tile.program.leaves, *plan.late.leaves)
            mine = [_part(x, labels, part) for x, labels in zip(blocks, every, strict=True)]
            count = len(tile.program.leaves)
            begin = (first[0] + row, first[1] + column)
            scores = scores_of(plan, tile.program, tile.ragged, mine[:count], begin, (rows, columns))
            theirs = _part(values, (None, len(plan.batch[0])), part)
            old = update(plan, tile, old, scores, theirs, mine[count:], begin)
        made.append(start(plan, values, rows) if old is None else old)
    if len(made) == 1:
        return made[0]
    mixed, top, total = (lax.concatenate(x, a) for x, a in zip(zip(*made, strict=True), axes, strict=True))
    return mixed, top, total


def _part(x: Any, labels: Labels, part: Part) -> Any:
    """Some of a block's queries and keys."""
    for axis, begin, size in zip(labels, part[::2], part[1::2], strict=True):
        if axis is not None and x.shape[axis] != size:
            x = lax.slice_in_dim(x, begin, begin + size, axis=axis)
    return x
