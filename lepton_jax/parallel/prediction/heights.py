"""How far operations stand from the end of a program, as XLA counts it when it decides what to gather again.

Its pass `schedule-aware-collective-cse` joins two gathers of one array if what reads the first and the second
gather are not further apart than a number of operations, along the longest way to the end of the program. It
runs on a program that is simplified already: what is simplified away is not counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.parallel.factors import factors_of
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.layouts import Layout

FAR: Final = 100
"""Of two products with a chain of operations between them the second gathers again what the first had
gathered if the chain is longer than this: so compiling for TPUs showed."""

_NOTHING: Final = frozenset({"stop_gradient", "copy", "copy_p", "name", "shard_hint", "sharding_constraint"})
_SHAPES: Final = frozenset({"reshape", "squeeze", "expand_dims", "broadcast_in_dim"})
_SEVERAL: Final[Mapping[str, int]] = MappingProxyType({"one_minus_square": 2})


def heights(
    graph: Graph, needed: Collection[Node], lies: Callable[[Value], Layout] | None = None
) -> dict[Node, int]:
    """Of each needed node the length of the longest way to the end of its graph, in operations of XLA.

    Args:
        graph: its nodes, without those of their regions.
        needed: the nodes that somebody needs.
        lies: how arrays lie: where they are split along what is summed over, the sum is one more operation.
    """
    ways: dict[Node, dict[bool | None, int]] = {}
    for node in reversed(graph):
        if node not in needed:
            continue
        mine = _drops_units(node)
        summed = 0 if lies is None else int(_is_summed(node, lies))
        ways[node] = dict.fromkeys((None, False, True), 0)
        for value in node.results:
            for user, _ in value.uses:
                if user in ways:
                    _lengthen(ways[node], ways[user], user, value, mine)
        for before in ways[node]:
            ways[node][before] += summed
    return {node: found[_drops_units(node)] for node, found in ways.items()}


def _is_summed(node: Node, lies: Callable[[Value], Layout]) -> bool:
    """Whether devices add up parts of what a product or a reduction makes."""
    if node.op != "dot_general" and not node.op.startswith("reduce_"):
        return False
    factors = factors_of(node)
    split = [
        {
            (factor, name)
            for parts, names in zip(dims, lies(value).dims, strict=True)
            for factor in parts
            if factor in factors.reduced
            for name in names
        }
        for dims, value in zip(factors.operands, node.operands, strict=True)
    ]
    return bool(set.intersection(*split))


def _lengthen(
    ways: dict[bool | None, int],
    after: Mapping[bool | None, int],
    user: Node,
    value: Value,
    mine: bool | None,
) -> None:
    """Look at one more way behind a node; ways differ by whether dimensions of size 1 were dropped before."""
    theirs, count = _drops_units(user), _steps(user, value)
    for before in ways:
        now = before if mine is None else mine
        reshaped = now is not None and theirs is not None and now != theirs
        ways[before] = max(ways[before], count + int(reshaped) + after[now if theirs is None else theirs])


def _drops_units(node: Node) -> bool | None:
    """Whether XLA writes a node without dimensions of size 1, or with them; None: as what is around it."""
    if node.op == "dot_general":
        return True
    if node.op == "transpose" and 1 in node.results[0].shape:
        return False
    return None


def _steps(node: Node, value: Value) -> int:
    """How many operations of XLA follow one another from an operand of a node to its results."""
    if node.regions:
        return 3  # its operands as one, itself, its result taken out
    if node.op in _NOTHING or not node.results:
        return 0
    (result, *_) = node.results
    if node.op in _SHAPES or node.op.startswith("reduce_"):
        return int(_sizes(value) != _sizes(result))
    if _is_bound(node):
        return 0
    count = _SEVERAL.get(node.op, 1)
    if node.op == "integer_pow":
        count = _products(abs(node.params["y"])) + int(node.params["y"] < 0)
    is_spread = node.op in ELEMENTWISE and value.ndim > 0 and _sizes(value) != _sizes(result)
    return count + int(is_spread)


def _sizes(value: Value) -> tuple[int, ...]:
    """The shape without dimensions of size 1, which XLA adds and drops as it likes."""
    return tuple(size for size in value.shape if size != 1)


def _is_bound(node: Node) -> bool:
    """Whether it is the least of a greatest, as `jax.nn.softmax` has it: XLA drops it."""
    return (
        node.op == "max"
        and any(value.is_const for value in node.operands)
        and any(value.node is not None and value.node.op == "reduce_max" for value in node.operands)
    )


def _products(power: int) -> int:
    """How many multiplications follow one another in a power."""
    return max(0, power.bit_length() - 1 + (power & (power - 1) != 0))
