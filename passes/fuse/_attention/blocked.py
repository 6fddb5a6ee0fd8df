"""Attention in blocks: a running softmax, so that no [queries × keys] array is ever whole.

Plain JAX, with a tangent that recomputes block after block: forward mode, reverse mode and
batching are JAX's own, and neither mode keeps more than a row of blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lepton_jax.passes.fuse._attention.blocks import cut, cut_all, joined, pick
from lepton_jax.passes.fuse._attention.plan import Plan


def attention(values: Any, *leaves: Any, plan: Plan) -> tuple[Any, Any, Any]:
    """Attention of a plan.

    Args:
        values: the other operand of the product.
        leaves: the leaves of the plan's scores.

    Returns:
        The product (divided by the sums if the plan says so), the maxima of the scores over the
        keys, and the sums of the exponentials; the latter two without the key axis.
    """
    mixed, top, total = _attend(plan, values, *leaves)
    if plan.shift == "none":
        back = jnp.exp(_safe(top))
        total = total * back
        if not plan.divided:
            mixed = mixed * _along(back, plan, plan.shape[plan.query], mixed.ndim)
    if plan.shift == "top":
        total = lax.select(top == -jnp.inf, jnp.full_like(total, jnp.nan), total)
    if plan.side == 1:
        batch, free = len(plan.batch[0]), _weights_free(plan)
        order = [*range(batch), *range(batch + free, mixed.ndim), *range(batch, batch + free)]
        mixed = mixed.transpose(order)
    return mixed.astype(plan.dtype), top.squeeze(plan.key), total.squeeze(plan.key)


def _key_first(plan: Plan, rank: int) -> tuple[int, ...]:
    """The order [batch, keys, free] of the product's other operand."""
    first = (*plan.batch[1], plan.contract[1])
    return (*first, *(d for d in range(rank) if d not in first))


def _weights_rank(plan: Plan) -> int:
    steps = plan.weights.steps
    return len(steps[-1].shape) if steps else len(plan.shape)


def _weights_free(plan: Plan) -> int:
    return _weights_rank(plan) - len(plan.batch[0]) - 1


def _query_axis(plan: Plan) -> int:
    """The query axis of the product, [batch, free axes of the weights, free axes of the values]."""
    steps = plan.weights.steps
    query = steps[-1].labels[0] if steps else plan.query
    used = (*plan.batch[0], plan.contract[0])
    free = [d for d in range(_weights_rank(plan)) if d not in used]
    assert query is not None
    return len(plan.batch[0]) + free.index(query)


def _safe(top: Any) -> Any:
    """Zero for rows without a score, so that their exponentials are zero, not NaN."""
    return lax.select(top == -jnp.inf, jnp.zeros_like(top), top)


def _mix(weights: Any, values: Any, plan: Plan) -> Any:
    """The product of one block of exponentials [like the scores] with one of values [batch, keys, free]."""
    block = plan.weights.run([weights.astype(plan.exp_dtype)], (0, 0), plan.block)
    batch = len(plan.batch[0])
    numbers = (((plan.contract[0],), (batch,)), (plan.batch[0], tuple(range(batch))))
    return lax.dot_general(block, values, numbers, precision=plan.precision, preferred_element_type=plan.wide)


def _along(rows: Any, plan: Plan, queries: int, rank: int) -> Any:
    """Numbers for each row of the scores (one key) in the places that the product's axes have."""
    for step in plan.weights.steps:
        if step.op != "convert_element_type":
            rows = step.run([rows], (0, 0), (queries, 1))
    used = (*plan.batch[0], plan.contract[0])
    free = [d for d in range(rows.ndim) if d not in used]
    rows = rows.transpose(*plan.batch[0], *free, plan.contract[0]).squeeze(-1)
    return rows.reshape(*rows.shape, *[1] * (rank - rows.ndim))


def _scores(plan: Plan, blocks: Sequence[Any], row: Any, column: Any) -> Any:
    """One block of scores, -inf for keys that are not there."""
    start = (row * plan.block[0], column * plan.block[1])
    scores = plan.scores.run(blocks, start, plan.block).astype(plan.wide)
    keys = plan.shape[plan.key]
    if keys % plan.block[1] == 0:
        return scores
    there = lax.broadcasted_iota(jnp.int32, scores.shape, plan.key) + start[1] < keys
    return lax.select(there, scores, jnp.full_like(scores, -jnp.inf))


def needs_rest(top: Any, fill: float) -> Any:
    """Whether some row's scores are so low that keys in blocks that do not count have a weight."""
    far = -2.0 * float(np.log(jnp.finfo(top.dtype).tiny))
    return (top < 0.99 * fill + far).any()


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(plan: Plan, values: Any, *leaves: Any) -> tuple[Any, Any, Any]:
    """The product [batch, free axes of the weights, of the values], maxima and sums with one key."""
    parts = cut_all(leaves, plan.scores.leaves, plan.block, plan.scores.orders)
    values = cut(values, len(plan.batch[0]), plan.block[1], _key_first(plan, values.ndim))
    order, counts = jnp.asarray(plan.order, jnp.int32), jnp.asarray(plan.counts, jnp.int32)
    full = len(plan.order[0])

    def row(x: Any) -> Any:
        number, mine, sequence, count = x
        per_key = (parts.per_key(mine), values)

        def block(at: Any, state: Any) -> Any:
            column = pick(sequence, at)
            theirs, value = jax.tree.map(lambda x: pick(x, column), per_key)
            scores = _scores(plan, parts.blocks(mine, theirs), number, column)
            return _update(plan, state, scores, value)

        state = lax.fori_loop(0, count if plan.skips else full, block, _start(plan, values))
        if plan.skips and plan.fill > -np.inf:
            end = lax.select(needs_rest(state[1], plan.fill), jnp.full_like(count, full), count)
            state = lax.fori_loop(count, end, block, state)
        mixed, top, total = state
        if plan.divided:
            mixed = mixed / _along(total, plan, plan.block[0], mixed.ndim)
        return mixed, top, total

    numbers = jnp.arange(len(plan.counts), dtype=jnp.int32)
    mixed, top, total = lax.map(row, (numbers, parts.rows, order, counts))
    queries = plan.shape[plan.query]
    rows = (joined(x, plan.query, queries) for x in (top, total))
    return joined(mixed, _query_axis(plan), queries), *rows


def _start(plan: Plan, values: Any) -> tuple[Any, Any, Any]:
    """The state before the first block."""
    shape = [*plan.shape]
    shape[plan.query], shape[plan.key] = plan.block
    weights = jax.ShapeDtypeStruct(tuple(shape), plan.exp_dtype)
    value = jax.ShapeDtypeStruct(values.shape[1:], values.dtype)
    mixed = jax.eval_shape(lambda w, v: _mix(w, v, plan), weights, value)
    shape[plan.key] = 1
    return (
        jnp.zeros(mixed.shape, plan.wide),
        jnp.full(shape, -jnp.inf, plan.wide),
        jnp.zeros(shape, plan.wide),
    )


def _update(plan: Plan, state: Any, scores: Any, values: Any) -> tuple[Any, Any, Any]:
    """The state after one more block."""
    mixed, top, total = state
    new = jnp.maximum(top, scores.max(plan.key, keepdims=True))
    safe = _safe(new)
    shrink = jnp.exp(top - safe)
    weights = jnp.exp(scores - safe)
    total = total * shrink + weights.sum(plan.key, keepdims=True)
    mixed = mixed * _along(shrink, plan, plan.block[0], mixed.ndim) + _mix(weights, values, plan)
    return mixed, new, total


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(plan: Plan, primals: Any, tangents: Any) -> Any:
    """Tangents block by block, each recomputed in the transpose: linear memory in either mode."""
    out, top, total = _attend(plan, *primals)
    zero = jnp.zeros_like(top)
    moving = [n for n, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
    labels = [(None, len(plan.batch[0])), *plan.scores.leaves]
    orders = [_key_first(plan, primals[0].ndim), *(plan.scores.orders or [None] * (len(primals) - 1))]
    parts = cut_all(primals, labels, plan.block, orders)
    moves = cut_all(
        [tangents[n] for n in moving], [labels[n] for n in moving], plan.block, [orders[n] for n in moving]
    )
    rows = (cut(x, plan.query, plan.block[0]) for x in (top, total))
    kept = (cut(out, _query_axis(plan), plan.block[0]), *rows)
    counted = np.zeros((len(plan.counts), len(plan.order[0])), bool)
    for line, order, count in zip(counted, plan.order, plan.counts, strict=True):
        line[list(order[:count])] = True

    def row(x: Any) -> Any:
        number, mine, mine_moving, (out, top, total), counts = x
        if plan.skips and plan.fill > -np.inf:
            counts = counts | needs_rest(top, plan.fill)

        def block(state: Any, y: Any) -> Any:
            column, theirs, theirs_moving, active = y

            def add(state: Any) -> Any:
                made = jax.checkpoint(functools.partial(_tangent, plan, moving), prevent_cse=False)(
                    parts.blocks(mine, theirs), moves.blocks(mine_moving, theirs_moving), top, number, column
                )
                return jax.tree.map(jnp.add, state, made)

            return (lax.cond(active, add, lambda s: s, state) if plan.skips else add(state)), None

        columns = jnp.arange(counted.shape[1], dtype=jnp.int32)
        xs = (columns, parts.per_key(mine), moves.per_key(mine_moving), counts)
        (mixed, sums), _ = lax.scan(block, (jnp.zeros_like(out), jnp.zeros_like(total)), xs)
        if plan.divided:
            along = functools.partial(_along, plan=plan, queries=plan.block[0], rank=out.ndim)
            mixed = (mixed - out * along(sums)) / along(total)
        return mixed, sums

    numbers = jnp.arange(len(plan.counts), dtype=jnp.int32)
    again = jax.checkpoint(row, prevent_cse=False)  # else each block of each row leaves something behind
    mixed, sums = lax.map(again, (numbers, parts.rows, moves.rows, kept, jnp.asarray(counted)))
    queries = plan.shape[plan.query]
    return (out, top, total), (
        joined(mixed, _query_axis(plan), queries),
        zero,
        joined(sums, plan.query, queries),
    )


def _tangent(
    plan: Plan, moving: Sequence[int], blocks: Sequence[Any], tangents: Any, top: Any, row: Any, column: Any
) -> tuple[Any, Any]:
    """What one block adds to the tangents of the product and of the sums."""

    def scores(moved: Sequence[Any]) -> Any:
        mine = list(blocks)
        for n, block in zip(leaf, moved, strict=True):
            mine[n] = block
        return _scores(plan, mine[1:], row, column)

    leaf = [n for n in moving if n]
    by_leaf = [t for n, t in zip(moving, tangents, strict=True) if n]
    mixed: list[Any] = []
    if leaf:
        made, change = jax.jvp(scores, ([blocks[n] for n in leaf],), (by_leaf,))
        weights = jnp.exp(made - _safe(top))
        change = weights * change
        mixed.append(_mix(change, blocks[0], plan))
        sums = change.sum(plan.key, keepdims=True)
    else:
        weights = jnp.exp(scores([]) - _safe(top))
        sums = jnp.zeros_like(top)
    if 0 in moving:
        mixed.append(_mix(weights, tangents[moving.index(0)], plan))
    return sum(mixed[1:], mixed[0]), sums
