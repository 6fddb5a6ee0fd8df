"""Products of one array with parts of another: one product, of which parts are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.structure import params_key
from lepton_jax.passes.simplify._movement.common import is_free, unplaced
from lepton_jax.passes.simplify._movement.slices import strides_of
from lepton_jax.rewrite import PassContext, erase_dead, profit, rewrite
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.replacement import Rewrite, write_before

NAME: Final = "sliced-products"

_BACKENDS: Final = frozenset({"cpu", "gpu"})

_LEAST_BATCHED: Final = 2**16
"""Elements of a weight from which on a batched product is as fast as several."""


@dataclass(frozen=True, eq=False)
class Part:
    """A product with a part of an array.

    Attributes:
        node: the product.
        side: which operand the part is.
        dim: the dimension along which the part is cut; nothing is summed along it.
        start, size: where the part begins, and how long it is.
        is_index: whether that dimension is gone, as in `w[i]`.
        makers: what takes the dimension away, and last what cuts the part.
    """

    node: Node
    side: int
    dim: int
    start: int
    size: int
    is_index: bool
    makers: tuple[Node, ...]

    @property
    def source(self) -> Value:
        """The array. It is asked for anew: it may be a product that has since been merged with others."""
        return self.makers[-1].operands[0]


@dataclass(frozen=True)
class Parts:
    """How an array is cut for its products, hashable.

    Attributes:
        side: which operand of the products the parts are.
        dim: the dimension along which they are cut.
        starts, sizes: where they begin, and how long they are.
        is_index: whether they have lost that dimension.
        numbers: `lax.dot_general`'s dimension numbers for the whole array.
        how: its other parameters.
    """

    side: int
    dim: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    is_index: bool
    numbers: Any
    how: tuple[tuple[str, Any], ...]

    def together(self, source: jax.Array) -> jax.Array:
        """All parts of an array."""
        end = self.starts[-1] + self.sizes[-1]
        if (self.starts[0], end) == (0, source.shape[self.dim]):
            return source
        return lax.slice_in_dim(source, self.starts[0], end, axis=self.dim)

    def pair(self, part: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The operands of a product."""
        return (part, other) if self.side == 0 else (other, part)


def merge_products(graph: Graph, ctx: PassContext, level: Level | None) -> None:
    """x @ w[:, :a], x @ w[:, a:] → parts of x @ w; also x @ w[0], x @ w[1], and parts of x

    Queries, keys and values, or the gates of a cell, whose weights lie in one array. XLA copies a part of an
    array before it multiplies, in a loop on every iteration: it pays where the parts of the result, which are
    copied then, are smaller. Level `reassociate`. 2.1× for 8 rows with 512×1536, 1.6× for 16 rows in a loop
    (`python benchmarks/rewrites.py --only batching`).
    """
    if not ctx.allows("reassociate", level) or ctx.rates.platform not in _BACKENDS:
        return
    groups: dict[Any, list[Part]] = {}
    for node in graph:
        for part in _parts(node, ctx) if node.op == "dot_general" else ():
            key = params_key(node.params)
            other = node.operands[1 - part.side]
            if key is not None:
                kind = (part.side, part.source, other, part.dim, part.is_index, node.context, key)
                groups.setdefault(kind, []).append(part)
    for group in groups.values():
        for run in _runs([part for part in group if part.node.graph is graph]):
            _merge(run, ctx)


def _parts(node: Node, ctx: PassContext) -> list[Part]:
    """The ways to see a product as one with a part of an array."""
    if not is_free(node) or not all(v.is_static for v in (*node.operands, node.result)):
        return []
    found = [_part(node, side) for side in (1, 0)]
    return [part for part in found if part is not None and unplaced(node, ctx) is None]


def _part(node: Node, side: int) -> Part | None:
    maker = node.operands[side].node
    if maker is None or maker.context is not node.context:
        return None
    makers: tuple[Node, ...] = (maker,)
    gone: int | None = None
    if maker.op == "squeeze" and len(maker.params["dimensions"]) == 1:
        gone = int(maker.params["dimensions"][0]) % maker.operands[0].ndim
        inner = maker.operands[0].node
        if inner is None or inner.op != "slice" or inner.context is not node.context:
            return None
        makers, maker = (maker, inner), inner
    cut = _cut(maker, node.operands[side])
    if cut is None or (gone is not None and (gone != cut[0] or cut[2] != 1)):
        return None
    dim, start, size = cut
    is_index = gone is not None or maker.op == "unstack"
    (summed, batch) = node.params["dimension_numbers"]
    if not is_index and (dim in summed[side] or dim in batch[side]):
        return None
    return Part(node, side, dim, start, size, is_index, makers)


def _cut(maker: Node, value: Value) -> tuple[int, int, int] | None:
    """Along which dimension a value is cut from what its maker reads, from where, and how long it is."""
    if maker.op == "unstack":
        return int(maker.params["axis"]), value.index, 1
    if maker.op == "split":
        sizes = tuple(map(int, maker.params["sizes"]))
        return int(maker.params["axis"]), sum(sizes[: value.index]), sizes[value.index]
    if maker.op != "slice" or any(s != 1 for s in strides_of(maker)):
        return None
    starts, limits = maker.params["start_indices"], maker.params["limit_indices"]
    shape = maker.operands[0].shape
    cut = [d for d, n in enumerate(shape) if (starts[d], limits[d]) != (0, n)]
    return (cut[0], int(starts[cut[0]]), int(limits[cut[0]] - starts[cut[0]])) if len(cut) == 1 else None


def _runs(parts: list[Part]) -> list[list[Part]]:
    """Parts that lie side by side."""
    found: list[list[Part]] = []
    for part in sorted(parts, key=lambda each: each.start):
        last = found[-1][-1] if found else None
        if last is not None and last.start + last.size == part.start:
            found[-1].append(part)
        elif last is None or last.start + last.size < part.start:
            found.append([part])
    return [run for run in found if len(run) > 1]


def _merge(run: list[Part], ctx: PassContext) -> None:
    """Put one product in the place of several, where the first of them stands, if that pays."""
    nodes = [part.node for part in run]
    graph = nodes[0].graph
    assert graph is not None
    first = next(node for node in graph if node in nodes)
    made = _made(run)
    reason = None if profit.is_disregarded() else _why_not(run, made, first, ctx)
    if reason is not None:
        ctx.miss(NAME, first, reason)
        return
    if not ctx.fire(NAME, first):
        return
    for node, value in zip(nodes, write_before(made, first, NAME), strict=True):
        node.result.replace_uses(value)
        erase_dead(node)


def _why_not(run: Sequence[Part], made: Rewrite, first: Node, ctx: PassContext) -> str | None:
    """Why one product takes longer, or None. In a loop too, XLA makes the parts anew each time."""
    own = {part.node for part in run} | {maker for part in run for maker in part.makers}
    alone = [
        n for n in own if n in {p.node for p in run} or all(u in own for v in n.results for u in v.users())
    ]
    before = sum(ctx.seconds(node_cost(node)) for node in alone)
    after = profit.seconds_of(made, first, ctx)
    if made.fun is batched and min(p.node.operands[p.side].aval.size for p in run) < _LEAST_BATCHED:
        return "the products are small, and the weights lie apart"
    if after < profit.WORTH * before:
        return None
    return f"takes {after * 1e6:.3g} µs instead of {before * 1e6:.3g} on {ctx.rates.name}, as estimated"


def _made(run: Sequence[Part]) -> Rewrite:
    """One product for all parts of a run; batched where the array would have to be turned for it."""
    part, node = run[0], run[0].node
    (summed, batch), how = node.params["dimension_numbers"], dict(node.params)
    del how["dimension_numbers"]
    own = tuple(summed[part.side]), tuple(batch[part.side])
    if part.is_index:
        own = tuple(tuple(d + (d >= part.dim) for d in dims) for dims in own)  # type: ignore[assignment]
    numbers = [summed, batch]
    for place, dims in enumerate(own):
        pair = tuple(map(tuple, numbers[place]))
        numbers[place] = (dims, pair[1]) if part.side == 0 else (pair[0], dims)
    is_apart = part.is_index and any(d > part.dim for dims in own for d in dims)
    parts = Parts(
        part.side,
        part.dim,
        tuple(each.start for each in run),
        tuple(each.size for each in run),
        part.is_index,
        tuple(numbers),
        tuple(sorted(how.items())),
    )
    return rewrite(batched if is_apart else merged, part.source, node.operands[1 - part.side], parts=parts)


def merged(source: jax.Array, other: jax.Array, *, parts: Parts) -> list[jax.Array]:
    """The products of `other` with parts of `source`, as parts of one product."""
    whole, (summed, batch) = parts.together(source), parts.numbers
    taken = (*batch[parts.side], *summed[parts.side])
    y = lax.dot_general(*parts.pair(whole, other), (summed, batch), **dict(parts.how))
    free = [d for d in range(whole.ndim) if d not in taken]
    place = (len(batch[0]) if parts.side == 0 else y.ndim - len(free)) + free.index(parts.dim)
    found = [
        lax.slice_in_dim(y, start - parts.starts[0], start - parts.starts[0] + size, axis=place)
        for start, size in zip(parts.starts, parts.sizes, strict=True)
    ]
    return [lax.squeeze(part, (place,)) for part in found] if parts.is_index else found


def batched(source: jax.Array, other: jax.Array, *, parts: Parts) -> list[jax.Array]:
    """The products of `other` with the entries of `source` along `dim`, as one batched product."""
    rest: Any = tuple(
        tuple(tuple(d - (s == parts.side and d > parts.dim) for d in dims) for s, dims in enumerate(pair))
        for pair in parts.numbers
    )
    count = len(parts.starts)

    def one(part: jax.Array, other: jax.Array) -> jax.Array:
        return lax.dot_general(*parts.pair(part, other), rest, **dict(parts.how))

    found = jax.vmap(one, in_axes=(parts.dim, 0))(parts.together(source), lax.broadcast(other, (count,)))
    return [lax.index_in_dim(found, i, 0, keepdims=False) for i in range(count)]
