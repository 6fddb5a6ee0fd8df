"""Residual blocks: which there are, how much each changes what it adds to, and programs without some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import erase_dead_nodes

_ADDS = frozenset({"add", "add_any"})


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block: x + f(x), where f has parameters of its own.

    Attributes:
        add: the addition.
        place: of the operand x, which stays when the block is dropped.
        params: the positions among the graph's inputs of the parameters that only f reads.
        name: what the paths of these have in common.
    """

    add: Node
    place: int
    params: frozenset[int]
    name: str

    @property
    def skip(self) -> Value:
        """x, as it is now: the result of an earlier block that was dropped is what that added to."""
        return self.add.operands[self.place]


def residual_blocks(graph: Graph, params: Mapping[int, str]) -> list[Block]:
    """The residual blocks of a graph, in program order; one may lie within another.

    A block is an addition of x and what comes of x, with an array of two or more dimensions among the
    parameters that nothing else reads. x may be the sum of earlier blocks' input and results, as in
    x + f(x) + g(x).

    Args:
        graph: with its calls inlined.
        params: the paths of the parameters, by position among the graph's inputs.
    """
    order = {node: index for index, node in enumerate(graph)}
    positions = {graph.inputs[position]: position for position in params}
    roots: dict[Value, tuple[Value, ...]] = {}
    found = []
    for node in graph:
        if node.op not in _ADDS:
            continue
        for place, skip in enumerate(node.operands):
            branch = node.operands[1 - place]
            if skip.is_const or skip in positions or skip.shape != node.result.shape:
                continue
            within = _branch(branch, (skip, *roots.get(skip, ())), order)
            if not within:
                continue
            roots[node.result] = (skip, *roots.get(skip, ()))
            own = _own_params(within, node, positions, order)
            if any(graph.inputs[position].ndim > 1 for position in own):
                found.append(Block(node, place, own, _common([params[position] for position in sorted(own)])))
            break
    return found


def drop_blocks(graph: Graph, params: Mapping[int, str], dropped: frozenset[frozenset[int]]) -> None:
    """Leave residual blocks out of a graph, which is edited.

    Args:
        params: as for `residual_blocks`.
        dropped: the blocks, each by the positions of its own parameters.

    Raises:
        ValueError: there is no such block.
    """
    if not dropped:
        return
    blocks = {block.params: block for block in residual_blocks(graph, params)}
    for own in dropped:
        if own not in blocks:
            raise ValueError(
                f"{graph.name} has no residual block of {_common([params[i] for i in sorted(own)])}"
            )
        blocks[own].add.result.replace_uses(blocks[own].skip)
    erase_dead_nodes(graph)


def _branch(end: Value, starts: Sequence[Value], order: Mapping[Node, int]) -> dict[Node, None]:
    """The nodes that make `end`, back to any of `starts`; none if it does not come of any of these."""
    first = min(-1 if start.node is None else order[start.node] for start in starts)
    found: dict[Node, None] = {}
    reached = False
    waiting = [end]
    while waiting:
        value = waiting.pop()
        if value in starts:
            reached = True
            continue
        node = value.node
        if node is None or node in found or order[node] < first:
            continue
        found[node] = None
        waiting += node.operands
    return found if reached else {}


def _own_params(
    within: Mapping[Node, None], add: Node, positions: Mapping[Value, int], order: Mapping[Node, int]
) -> frozenset[int]:
    """The parameters that only those nodes read from which nothing but the addition comes."""
    own: dict[Node, None] = {}
    for node in sorted(within, key=order.__getitem__, reverse=True):
        if all(user in own or user is add for result in node.results for user in result.users()):
            own[node] = None
    read = {value for node in own for value in node.operands if value in positions}
    return frozenset(positions[value] for value in read if all(user in own for user in value.users()))


def _common(paths: Sequence[str]) -> str:
    """What paths have in common, without what parts names."""
    first, last = min(paths), max(paths)
    same = next(
        (i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[:same].rstrip("/._")
