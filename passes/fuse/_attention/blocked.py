"""Attention in blocks: a running softmax, so that no [queries × keys] array is ever whole.

Plain JAX, with a tangent that recomputes block after block: forward mode, reverse mode and
batching are JAX's own, and neither mode keeps more than a row of blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lepton_jax.passes.fuse._attention.blocks import cut, cut_all, joined, pick, put
from lepton_jax.passes.fuse._attention.leaves import leaves_of, turned
from lepton_jax.passes.fuse._attention.plan import Plan, Tile
from lepton_jax.passes.fuse._attention.running import (
    State,
    advance,
    along,
    key_first,
    mix,
    near_top,
    query_axis,
    safe,
    scores_of,
    start,
    weigh,
)


def needs_rest(top: Any, fill: float) -> Any:
    """Whether some row's scores are so low that keys in blocks that do not count have a weight."""
    far = -2.0 * float(np.log(jnp.finfo(top.dtype).tiny))
    return (top < 0.99 * fill + far).any()


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend(plan: Plan, values: Any, *leaves: Any) -> State:
    """Attention of a plan.

    Args:
        plan: what is computed.
        values: the other operand of the product.
        leaves: the leaves of the plan's scores, and of what masks the exponentials.

    Returns:
        The product [batch, free axes of the weights, of the values] (divided by the sums if the plan says
        so), the maxima of the scores over the keys, and the sums of the exponentials with that maximum
        subtracted; the latter two with one key.
    """
    count = len(plan.scores.leaves)
    arrays = leaves_of(leaves[:count], plan.scores, plan.block)
    masks = leaves_of(leaves[count:], plan.late, plan.block)
    keys = turned(values, key_first(plan, values.ndim), len(plan.batch[0]), plan.block[1])
    axes = (query_axis(plan), plan.query, plan.query)

    def row(number: Any) -> State:
        mine, late = arrays.rows(number), masks.rows(number)

        def block(tile: Tile, column: Any, state: State | None) -> State:
            blocks = [*arrays.blocks(mine, number, column), *masks.blocks(late, number, column)]
            first = (number * plan.block[0], column * plan.block[1])
            return advance(plan, tile, state, blocks, keys.block(column), first)

        begin = start(plan, keys.block(0), plan.block[0])
        state: State | None = None
        for tile in plan.tiles:
            state = _over(tile, functools.partial(block, tile), number, state, begin)
        mixed, top, total = _rest(plan, functools.partial(block, plan.every), state or begin, begin)
        if plan.divided:
            mixed = mixed / along(total, plan, mixed.ndim)
        return mixed, top, total

    shapes = jax.eval_shape(lambda: start(plan, keys.block(0), plan.block[0]))
    layouts = (plan.layout or tuple(range(shapes[0].ndim)), *[tuple(range(len(plan.shape)))] * 2)
    places = [layout.index(a) for layout, a in zip(layouts, axes, strict=True)]

    def add(number: Any, state: Sequence[Any]) -> list[Any]:
        made = zip(state, row(number), layouts, places, strict=True)
        return [put(x, new.transpose(layout), a, number) for x, new, layout, a in made]

    whole = []
    for x, layout, place in zip(shapes, layouts, places, strict=True):
        shape = [x.shape[d] for d in layout]
        shape[place] *= len(plan.counts)
        whole.append(jnp.zeros(shape, x.dtype))
    found = []
    for x, layout, place in zip(lax.fori_loop(0, len(plan.counts), add, whole), layouts, places, strict=True):
        x = lax.slice_in_dim(x, 0, plan.shape[plan.query], axis=place)
        found.append(x.transpose(*(layout.index(d) for d in range(x.ndim))))
    return found[0], found[1], found[2]


def _over(
    tile: Tile, block: Callable[[Any, Any], State], number: Any, state: State | None, begin: State
) -> State:
    """The state after all blocks of a kind for one block of queries."""
    counts = [len(line) for line in tile.blocks]
    most = max(counts)
    table = jnp.asarray([[*line, *[0] * (most - len(line))] for line in tile.blocks], jnp.int32)
    mine = pick(table, number)
    if set(counts) == {1}:
        return block(mine[0], state)
    end = most if min(counts) == most else pick(jnp.asarray(counts, jnp.int32), number)
    old = begin if state is None else state
    made: State = lax.fori_loop(0, end, lambda at, x: block(pick(mine, at), x), old)
    return made


def _rest(plan: Plan, block: Callable[[Any, Any], State], state: State, begin: State) -> State:
    """The state after all keys, where some row's scores are so low that those left out have a weight."""
    if plan.fill == -np.inf:
        return state
    end = lax.select(needs_rest(state[1], plan.fill), jnp.int32(len(plan.order[0])), jnp.int32(0))

    def again(column: Any, state: State) -> State:
        return block(column, jax.tree.map(lambda old, new: jnp.where(column == 0, new, old), state, begin))

    made: State = lax.fori_loop(0, end, again, state)
    return made


@functools.partial(attend.defjvp, symbolic_zeros=True)
def _attend_jvp(plan: Plan, primals: Any, tangents: Any) -> Any:
    """Tangents block by block, each recomputed in the transpose: linear memory in either mode."""
    out, top, total = attend(plan, *primals)
    zero = jnp.zeros_like(top)
    moving = [n for n, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
    labels = [(None, len(plan.batch[0])), *plan.scores.leaves, *plan.late.leaves]
    orders = [
        key_first(plan, primals[0].ndim),
        *(plan.scores.orders or [None] * len(plan.scores.leaves)),
        *[None] * len(plan.late.leaves),
    ]
    parts = cut_all(primals, labels, plan.block, orders)
    moves = cut_all(
        [tangents[n] for n in moving], [labels[n] for n in moving], plan.block, [orders[n] for n in moving]
    )
    rows = (cut(x, plan.query, plan.block[0]) for x in (top, total))
    kept = (cut(out, query_axis(plan), plan.block[0]), *rows)
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
        begin = (jnp.zeros_like(out), *[jnp.zeros_like(total)] * (3 if plan.tracks else 1))
        (mixed, sums, *tops), _ = lax.scan(block, begin, xs)
        if plan.divided:
            mixed = (mixed - out * along(sums, plan, out.ndim)) / along(total, plan, out.ndim)
        if not tops:
            return mixed, sums
        change = tops[0] / jnp.maximum(tops[1], 1)
        if not plan.divided:
            mixed = mixed - out * along(change, plan, out.ndim)
        return mixed, sums - total * change, change

    numbers = jnp.arange(len(plan.counts), dtype=jnp.int32)
    again = jax.checkpoint(row, prevent_cse=False)  # else each block of each row leaves something behind
    mixed, sums, *tops = lax.map(again, (numbers, parts.rows, moves.rows, kept, jnp.asarray(counted)))
    queries = plan.shape[plan.query]
    return (out, top, total), (
        joined(mixed, query_axis(plan), queries),
        joined(tops[0], plan.query, queries) if tops else zero,
        joined(sums, plan.query, queries),
    )


def _tangent(
    plan: Plan, moving: Sequence[int], blocks: Sequence[Any], tangents: Any, top: Any, row: Any, column: Any
) -> tuple[Any, ...]:
    """What one block adds to the tangents of the product and of the sums.

    Where the maxima have one too: to the tangents of the scores that reach them, and to the number of these.
    """
    count, tile = 1 + len(plan.scores.leaves), plan.every
    begin = (row * plan.block[0], column * plan.block[1])

    def with_moved(numbers: Sequence[int], moved: Sequence[Any]) -> list[Any]:
        mine = list(blocks)
        for n, block in zip(numbers, moved, strict=True):
            mine[n] = block
        return mine

    def scores(mine: Sequence[Any]) -> Any:
        own = [plan.scores.prepared(leaf, block) for leaf, block in enumerate(mine[1:count])]
        return scores_of(plan, tile.program, tile.ragged, own, begin, plan.block)

    if plan.masks or plan.tracks:

        def every(*moved: Any) -> tuple[Any, Any, Any]:
            mine = with_moved(moving, moved)
            made = scores(mine)
            late = [plan.late.prepared(leaf, block) for leaf, block in enumerate(mine[count:])]
            return *weigh(plan, tile, jnp.exp(made - safe(top)), mine[0], late, begin), made

        (_, _, made), (*changed, change) = jax.jvp(every, [blocks[n] for n in moving], list(tangents))
        if plan.tracks:
            near = near_top(made, top)
            change = lax.select(near, change, jnp.zeros_like(change))
            changed += [x.astype(plan.wide).sum(plan.key, keepdims=True) for x in (change, near)]
        return tuple(changed)
    leaf = [n for n in moving if n]
    by_leaf = [t for n, t in zip(moving, tangents, strict=True) if n]
    mixed: list[Any] = []
    if leaf:
        made, change = jax.jvp(
            lambda *moved: scores(with_moved(leaf, moved)), [blocks[n] for n in leaf], by_leaf
        )
        weights = jnp.exp(made - safe(top))
        change = weights * change
        mixed.append(mix(change, blocks[0], plan))
        sums = change.sum(plan.key, keepdims=True)
    else:
        weights = jnp.exp(scores(blocks) - safe(top))
        sums = jnp.zeros_like(top)
    if 0 in moving:
        mixed.append(mix(weights, tangents[moving.index(0)], plan))
    return sum(mixed[1:], mixed[0]), sums
