"""Products that read one input, as one product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jax
from jax import lax

from lepton_jax.ir.binding import Sources, parameters_of, store
from lepton_jax.ir.cost import dtype_name
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import editable
from lepton_jax.passes.loops._parts.scan import is_plain_scan
from lepton_jax.passes.lower._products.stored import readers, stem
from lepton_jax.rewrite import Pass, PassContext, erase_dead, rewrite
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.replacement import write_before
from lepton_jax.targets.forms import most_merged

_RULE: Final = "merged-products"


@dataclass(frozen=True)
class MergeProducts(Pass):
    """One product in place of several of the same input with weights that `prepare` knows.

    Before:
        %q = dot_general %x %wq;  %k = dot_general %x %wk;  %v = dot_general %x %wv
    After:
        %w = concatenate %wq %wk %wv                                (of parameters alone: `prepare`)
        %y = dot_general %x %w;  %q = slice %y;  %k = slice %y;  %v = slice %y

    Queries, keys and values, with as many heads of keys as you like; the two halves of a gated layer. It
    holds where the weights sum over the same dimensions of one input, differ along one dimension at most,
    and nothing else reads them as they are. It runs only where a program is cut into `prepare` and `apply`:
    putting weights together at each call costs more than it saves. How large the merged weight may be so
    that this is faster, `lepton_jax.targets.forms` says, as measured. Exact on integers, else level
    `reassociate`.

    Attributes:
        level: a tighter limit on the level than the run's.
        most: elements of the merged weight up to which products are merged; -1: what the target wants.
    """

    name: ClassVar[str] = "merge-products"

    level: Level | None = None
    most: int = -1

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Each group of products, regions included."""
        if not ctx.is_bound or not ctx.params:
            return
        nodes = [node for node in graph.walk() if node.op == "dot_general"]
        early = parameters_of(graph, ctx.params) if len(nodes) > 1 else {}
        groups: dict[Any, list[Node]] = {}
        for node in nodes if early else ():
            side = self._weight_at(node, early, ctx)
            if side is not None:
                groups.setdefault(_key(node, side), []).append(node)
        for (side, *_), group in groups.items():
            for chosen in self._chosen(group, side, ctx):
                if ctx.fire(_RULE, chosen[0]):
                    _merge(chosen, side)

    def _weight_at(self, node: Node, early: Sources, ctx: PassContext) -> int | None:
        """Which operand is a weight that may be put together with others, or None."""
        a, b = node.operands
        if not (a.is_static and b.is_static and a.dtype == b.dtype):
            return None
        if node.params.get("out_sharding") is not None or self._most(node, ctx) == 0 or _is_fixed(node):
            return None
        is_exact = dtype_name(a.dtype) == "int8" and dtype_name(node.result.dtype) == "int32"
        if not ctx.allows("exact" if is_exact else "reassociate", self.level):
            return None
        known = [bool(early.get(stem(v))) for v in node.operands]
        if sum(known) != 1:
            return None
        side = known.index(True)
        own = all(
            reader is node or _all_in(reader, early) for reader, _ in readers(stem(node.operands[side]))
        )
        return side if own and _free(node, side) else None

    def _most(self, node: Node, ctx: PassContext) -> int:
        dtype = dtype_name(node.operands[0].dtype)
        return most_merged(ctx.rates.platform, dtype) if self.most < 0 else self.most

    def _chosen(self, group: list[Node], side: int, ctx: PassContext) -> list[list[Node]]:
        """Of products with one input those whose weights fit together and are not too large in all."""
        found: list[list[Node]] = []
        for node in group:
            size = math.prod(node.operands[side].shape)
            for others in found:
                weights = [each.operands[side] for each in (*others, node)]
                total = sum(math.prod(each.shape) for each in weights)
                if total <= self._most(node, ctx) and _along(weights, _free(node, side)) is not None:
                    others.append(node)
                    break
            else:
                if size < self._most(node, ctx):
                    found.append([node])
        return [each for each in found if len(each) > 1]


def _all_in(node: Node, early: Sources) -> bool:
    return bool(node.results) and all(v in early for v in node.results)


def _is_fixed(node: Node) -> bool:
    """Whether the node stands in a region out of which what is early cannot be taken."""
    graph = node.graph
    while graph is not None and graph.parents:
        parent = next(iter(graph.parents))
        if len(graph.parents) > 1 or not editable(parent) or parent.op == "shard_map":
            return True
        if parent.op == "scan" and not is_plain_scan(parent):
            return True
        graph = parent.graph
    return False


def _key(node: Node, side: int) -> Any:
    """What products must have in common."""
    weight, x, params = node.operands[side], node.operands[1 - side], node.params
    stored = stem(weight) is not weight
    kind = (weight.dtype, weight.ndim, stored, node.result.dtype)
    return side, x, node.graph, *kind, params["dimension_numbers"], str(params["precision"])


def _free(node: Node, side: int) -> tuple[int, ...]:
    """The dimensions of the weight that the result has and that are no batch."""
    summed, batch = node.params["dimension_numbers"]
    taken = {*summed[side], *batch[side]}
    return tuple(d for d in range(node.operands[side].ndim) if d not in taken)


def _along(weights: Sequence[Value], free: tuple[int, ...]) -> int | None:
    """The dimension along which weights can be put together: the one in which they differ, or the first."""
    shapes = [weight.shape for weight in weights]
    differ = [d for d in range(len(shapes[0])) if len({shape[d] for shape in shapes}) > 1]
    if len(differ) > 1 or (differ and differ[0] not in free):
        return None
    return differ[0] if differ else free[0]


def _merge(group: Sequence[Node], side: int) -> None:
    """Put one product in the place of several, where the first stands."""
    first = group[0]
    weights = [node.operands[side] for node in group]
    stems = [stem(weight) for weight in weights]
    _raise_makers(stems, first)
    along = _along(weights, _free(first, side))
    made = rewrite(
        merged,
        first.operands[1 - side],
        *stems,
        side=side,
        along=along,
        stored=stems[0] is not weights[0],
        dims=first.params["dimension_numbers"],
        precision=first.params["precision"],
        wide=first.params["preferred_element_type"],
    )
    for node, value in zip(group, write_before(made, first, _RULE), strict=True):
        node.result.replace_uses(value)
        erase_dead(node)


def _raise_makers(values: Sequence[Value], before: Node) -> None:
    """Move what makes early values in front of a node."""
    graph = before.graph
    assert graph is not None
    rest: list[Node] = []
    node = before.next
    while node is not None:
        rest.append(node)
        node = node.next
    order = {node: i for i, node in enumerate(rest)}
    found: set[Node] = set()
    stack = [value.node for value in values]
    while stack:
        maker = stack.pop()
        if maker is not None and maker in order and maker not in found:
            found.add(maker)
            stack += [operand.node for operand in maker.operands]
    for maker in sorted(found, key=lambda each: order[each]):
        graph.move(maker, before)


def merged(
    x: jax.Array,
    *weights: jax.Array,
    side: int,
    along: int,
    stored: bool,
    dims: Any,
    precision: Any,
    wide: Any,
) -> list[jax.Array]:
    """The products of an input with several weights, as one.

    Args:
        x: the input.
        weights: equal in shape but for dimension `along`.
        side: which operand the weights are.
        along: the dimension along which they are put together.
        stored: whether the merged weight is marked as what is kept of parameters.
        dims: `lax.dot_general`'s dimension numbers.
        precision: of the product.
        wide: what is summed up in.

    Returns:
        The products, one for each weight.
    """
    whole = lax.concatenate(weights, along)
    if stored:
        whole = store(whole)
    pair = (whole, x) if side == 0 else (x, whole)
    y = lax.dot_general(*pair, dims, precision=precision, preferred_element_type=wide)
    taken = {*dims[0][side], *dims[1][side]}
    free = [d for d in range(whole.ndim) if d not in taken]
    before = len(dims[1][0]) if side == 0 else y.ndim - len(free)
    place, start, found = before + free.index(along), 0, []
    for weight in weights:
        end = start + weight.shape[along]
        found.append(lax.slice_in_dim(y, start, end, axis=place))
        start = end
    return found
