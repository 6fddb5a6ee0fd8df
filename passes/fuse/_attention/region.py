"""What else reads the weights: in a program that holds its own gradient, the backward half of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import RETURN, Node, Value
from lepton_jax.passes.fuse._attention.axes import ELEMENTWISE, MOVES, Labels, dot_numbers, result_axis
from lepton_jax.passes.fuse._attention.match import Found

_MOST: Final = 512


@dataclass(frozen=True, eq=False)
class Sink:
    """An operation that sums a [queries × keys] array away.

    Attributes:
        node: a product or a sum.
        position: which of its operands is [queries × keys].
        marks: the query and key axes of that operand.
        others: those of the other operand of a product.
        labels: those of the result.
    """

    node: Node
    position: int
    marks: Labels
    others: Labels
    labels: Labels


@dataclass(frozen=True, eq=False)
class Region:
    """All that is computed from the scores.

    Attributes:
        labels: the query and key axes of every [queries × keys] array that depends on the scores.
        sinks: where they are summed away, the forward half's own apart.
    """

    labels: dict[Value, Labels]
    sinks: tuple[Sink, ...]


def region_of(found: Found, kept: frozenset[Value] = frozenset()) -> Region | str:
    """What depends on the scores of an attention, or why some of it cannot be computed in blocks.

    Args:
        found: the attention.
        kept: what its graph returns and will return no longer.
    """
    labels = dict(found.builder.dependent())
    labels[found.exp.result] = found.labels
    ends = set(found.ends)
    sinks: dict[Node, Sink] = {}
    queue = list(labels)
    for value in queue:
        marks = labels[value]
        for user, position in list(value.uses):
            if user in ends or user in sinks or any(v in labels for v in user.results):
                continue
            if user.op == RETURN and value in kept:
                continue
            if len(labels) > _MOST:
                return "too much depends on the scores"
            outcome = _followed(user, position, marks)
            if isinstance(outcome, Sink):
                sinks[user] = outcome
            elif outcome is not None:
                labels[user.result] = outcome
                queue.append(user.result)
            elif (node := _summed(value)) is not None:
                sinks[node] = _output(node, labels)
            else:
                return f"the weights are also read by {user.op}"
    return Region(labels, tuple(sinks.values()))


def _summed(value: Value) -> Node | None:
    """The sum that a value is a view of."""
    while value.node is not None and value.op in MOVES:
        value = value.node.operands[0]
    return value.node if value.node is not None and value.op == "reduce_sum" else None


def _output(node: Node, labels: dict[Value, Labels]) -> Sink:
    """A sum over a batch, as for the gradient of a bias, that is a result of its own."""
    return Sink(node, 0, labels[node.operands[0]], (None, None), labels[node.result])


def _followed(user: Node, position: int, marks: Labels) -> Sink | Labels | None:
    """What a reader makes of a [queries × keys] array: another one, or a sum."""
    if user.effects or len(user.results) != 1:
        return None
    query, key = marks
    assert query is not None and key is not None
    if user.op == "reduce_sum":
        gone = {int(a) for a in user.params["axes"]}
        left = [None if a in gone else a - sum(g < a for g in gone) for a in (query, key)]
        if None not in left:
            return left[0], left[1]
        return Sink(user, position, marks, (None, None), (left[0], left[1]))
    if user.op not in ELEMENTWISE | MOVES | {"dot_general"}:
        return None
    kept = (result_axis(user, position, query), result_axis(user, position, key))
    if None not in kept:
        return kept
    if user.op != "dot_general" or user.operands[0] is user.operands[1]:
        return None
    contract, batch = dot_numbers(user)
    pairs = dict(
        zip(
            (*contract[position], *batch[position]),
            (*contract[1 - position], *batch[1 - position]),
            strict=True,
        )
    )
    return Sink(user, position, marks, (pairs.get(query), pairs.get(key)), kept)


def vanishes(value: Value, exp: Value, known: dict[Value, bool]) -> bool:
    """Whether a value is zero wherever the exponentials are."""
    if value is exp:
        return True
    if value in known:
        return known[value]
    known[value] = False
    node = value.node
    if node is None or node.op not in ELEMENTWISE | MOVES:
        splat = facts_of(value).is_zero if value.is_const else False
        known[value] = bool(splat)
        return known[value]
    parts = node.operands
    if node.op == "mul":
        zero = any(vanishes(v, exp, known) for v in parts)
    elif node.op == "div":
        zero = vanishes(parts[0], exp, known)
    elif node.op == "select_n":
        zero = all(vanishes(v, exp, known) for v in parts[1:])
    elif node.op in ("add", "sub", "add_any"):
        zero = all(vanishes(v, exp, known) for v in parts)
    elif node.op in MOVES or node.op in ("neg", "convert_element_type", "copy"):
        zero = vanishes(parts[0], exp, known)
    else:
        zero = False
    known[value] = zero
    return zero


def stages(region: Region) -> list[list[Sink]]:
    """The sinks in groups, each of which needs only results of those before."""
    if not region.sinks:
        return []
    graph = region.sinks[0].node.graph
    assert graph is not None
    by_node = {sink.node: sink for sink in region.sinks}
    level: dict[Node, int] = {}
    found: dict[int, list[Sink]] = {}
    for node in graph:
        mine = max((level.get(v.node, 0) for v in node.operands if v.node is not None), default=0)
        if node in by_node:
            found.setdefault(mine, []).append(by_node[node])
            mine += 1
        if mine:
            level[node] = mine
    return [found[n] for n in sorted(found)]
