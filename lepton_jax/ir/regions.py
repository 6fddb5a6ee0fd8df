"""What the operations with regions mean: how their operands and results connect to the regions.

A *slot* is one thing that flows through such an operation: a constant of a loop, a
carry, an argument of a call. It ties together an operand of the node, inputs and
outputs of its regions, and a result of the node. Passes read slots and drop or add
whole slots, so none of them needs to know scan from while.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lepton_jax.ir._jax import jit_is_plain
from lepton_jax.ir.graph import Graph, Node, Value

Kind = Literal["constant", "carry", "scanned", "stacked", "argument", "result", "predicate", "opaque"]
Place = tuple[int, int]
"""(region, position among its inputs or outputs)"""


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing that flows through a node with regions.

    Attributes:
        kind: `constant` (the same on every iteration), `carry`, `scanned` (an input cut
            along its leading axis), `stacked` (an output stacked along it), `argument`
            and `result` (of regions that run at most once), `predicate`, or `opaque`
            (a connection that passes must not use).
        operand: position among the node's operands, or None.
        inputs: the region inputs that it feeds.
        outputs: the region outputs that feed it.
        result: position among the node's results, or None.
    """

    kind: Kind
    operand: int | None = None
    inputs: tuple[Place, ...] = ()
    outputs: tuple[Place, ...] = ()
    result: int | None = None


LOOPS: Final = frozenset({"scan", "while"})
CALLS: Final = frozenset({"jit", "closed_call", "core_call"})
RUN_ONCE: Final = CALLS | {"remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}
"""Operations that run their body once, with what is around them."""
_EDITABLE: Final = frozenset({"scan", "while", "cond", "remat2", "checkpoint"}) | CALLS


def slots(node: Node) -> list[Slot]:
    """The slots of a node with regions; every operand, result, region input and output is in one."""
    return _SLOTS[node.op](node)


def _scan(node: Node) -> list[Slot]:
    consts, carry = node.params["num_consts"], node.params["num_carry"]
    found = [Slot("constant", i, ((0, i),)) for i in range(consts)]
    found += [Slot("carry", consts + i, ((0, consts + i),), ((0, i),), i) for i in range(carry)]
    found += [Slot("scanned", i, ((0, i),)) for i in range(consts + carry, len(node.operands))]
    found += [Slot("stacked", None, (), ((0, i),), i) for i in range(carry, len(node.results))]
    return found


def _while(node: Node) -> list[Slot]:
    nc, nb = node.params["cond_nconsts"], node.params["body_nconsts"]
    found = [Slot("constant", i, ((0, i),)) for i in range(nc)]
    found += [Slot("constant", nc + i, ((1, i),)) for i in range(nb)]
    found += [
        Slot("carry", nc + nb + i, ((0, nc + i), (1, nb + i)), ((1, i),), i) for i in range(len(node.results))
    ]
    found.append(Slot("predicate", None, (), ((0, 0),)))
    return found


def _cond(node: Node) -> list[Slot]:
    branches = range(len(node.regions))
    found = [Slot("predicate", 0)]
    found += [Slot("argument", i, tuple((r, i - 1) for r in branches)) for i in range(1, len(node.operands))]
    found += [Slot("result", None, (), tuple((r, i) for r in branches), i) for i in range(len(node.results))]
    return found


def _call(node: Node) -> list[Slot]:
    found = [Slot("argument", i, ((0, i),)) for i in range(len(node.operands))]
    found += [Slot("result", None, (), ((0, i),), i) for i in range(len(node.results))]
    return found


def _opaque(node: Node) -> list[Slot]:
    found = [Slot("opaque", i) for i in range(len(node.operands))]
    found += [Slot("opaque", None, (), (), i) for i in range(len(node.results))]
    for r, region in enumerate(node.regions):
        found += [Slot("opaque", None, ((r, i),)) for i in range(len(region.inputs))]
        found += [Slot("opaque", None, (), ((r, i),)) for i in range(len(region.outputs))]
    return found


_SLOTS: Final[Mapping[str, Callable[[Node], list[Slot]]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "jit": _call,
    "closed_call": _call,
    "core_call": _call,
    "remat2": _call,
    "checkpoint": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "shard_map": _opaque,  # its regions see shards, not the operands themselves
    "custom_linear_solve": _opaque,
}


def editable(node: Node) -> bool:
    """Whether slots of a node may be dropped or added: nobody else depends on its interface."""
    if node.op not in _EDITABLE or not node.regions or not node.own_regions():
        return False
    return node.op != "jit" or jit_is_plain(node.params)


def drop_slots(node: Node, dropped: Sequence[Slot]) -> None:
    """Remove slots from a node and its regions, and what in the regions only they need.

    Their results must have no uses left, and nothing that stays may need their inputs.

    Raises:
        ValueError: the operation's interface is fixed, its regions are shared, or a
            value of a dropped slot is still read.
    """
    if not editable(node):
        raise ValueError(f"the interface of {node.op} is fixed")
    kept = [slot for slot in slots(node) if slot not in set(dropped)]
    for slot in dropped:
        if slot.result is not None and node.results[slot.result].uses:
            raise ValueError(f"result {slot.result} of {node.op} is still read")
    for r, region in enumerate(node.regions):
        gone_out = {i for slot in dropped for q, i in slot.outputs if q == r}
        gone_in = {i for slot in dropped for q, i in slot.inputs if q == r}
        if gone_out:
            region.set_outputs([v for i, v in enumerate(region.outputs) if i not in gone_out])
            erase_dead_nodes(region)
        if gone_in:
            region.remove_inputs(gone_in)
    operands = {slot.operand for slot in kept}
    results = {slot.result for slot in kept}
    node.params = {**node.params, **_counts(node.op, kept)}
    node.set_operands([v for i, v in enumerate(node.operands) if i in operands])
    node.set_results([v for i, v in enumerate(node.results) if i in results])
    node.raw = None


def erase_dead_nodes(graph: Graph) -> None:
    """Erase every node of a graph (not of its regions) that nothing needs."""
    for node in reversed(graph):
        if node.is_dead:
            graph.erase(node)


def _counts(op: str, kept: Sequence[Slot]) -> dict[str, int]:
    """The parameters that count slots."""
    constants = [slot for slot in kept if slot.kind == "constant"]
    if op == "scan":
        carry = sum(1 for slot in kept if slot.kind == "carry")
        return {"num_consts": len(constants), "num_carry": carry}
    if op == "while":
        in_cond = sum(1 for slot in constants if slot.inputs[0][0] == 0)
        return {"cond_nconsts": in_cond, "body_nconsts": len(constants) - in_cond}
    return {}


def add_constant(node: Node, region: int, value: Value) -> Value:
    """Let a region of a node read an outer value; returns the region's new input.

    Scan and while get a loop constant, calls and branches an argument.

    Raises:
        ValueError: the operation's interface is fixed, or its regions are shared.
    """
    if not editable(node):
        raise ValueError(f"the interface of {node.op} is fixed")
    params = dict(node.params)
    if node.op == "scan":
        operand = position = 0
        params["num_consts"] += 1
    elif node.op == "while":
        operand, position = (0, 0) if region == 0 else (params["cond_nconsts"], 0)
        params["cond_nconsts" if region == 0 else "body_nconsts"] += 1
    else:
        operand = len(node.operands)
        position = len(node.regions[region].inputs)
    added = node.regions[region].add_input(value.aval, position)
    if node.op == "cond":
        for r, other in enumerate(node.regions):
            if r != region:
                other.add_input(value.aval)
    node.params = params
    node.set_operands([*node.operands[:operand], value, *node.operands[operand:]])
    node.raw = None
    return added


def inside(node: Node, value: Value) -> list[Value]:
    """The region inputs that hold just what the operand `value` holds, on every iteration."""
    found: list[Value] = []
    for slot in slots(node):
        if slot.operand is None or node.operands[slot.operand] is not value:
            continue
        if slot.kind in ("constant", "argument"):
            found += [node.regions[r].inputs[i] for r, i in slot.inputs]
    return found


def trip_count(node: Node) -> int:
    """How often a node runs its regions: a scan's length, 1 for a call, 0 if unknown (while)."""
    if node.op == "scan":
        length = node.params["length"]
        return length if type(length) is int else 0
    return 0 if node.op == "while" else 1


def outer_of(node: Node, region: Graph) -> dict[Value, Value]:
    """Region inputs that equal an operand of the node on every run, with that operand."""
    found: dict[Value, Value] = {}
    for slot in slots(node):
        if slot.operand is None or slot.kind not in ("constant", "argument"):
            continue
        for r, i in slot.inputs:
            if node.regions[r] is region:
                found[region.inputs[i]] = node.operands[slot.operand]
    return found
