"""Values that only pass through loops, branches and calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jax import lax

from lepton_jax.ir.graph import Graph, Node, Value, constant
from lepton_jax.ir.inline import is_plain_call
from lepton_jax.ir.regions import LOOPS, Slot, add_constant, drop_slots, editable, outer_of, slots
from lepton_jax.ir.structure import operand_key
from lepton_jax.rewrite import Pass, PassContext, rewrite
from lepton_jax.rewrite.replacement import write_before


@dataclass(frozen=True)
class Forward(Pass):
    """Takes values out of loops, branches and calls that they only pass through.

    Before:
        %3, %4 = scan[...] %w %x { region body(%w, %x) { %2 = dot_general %x %w; return %w, %2 } }
    After:
        %4 = scan[num_consts=1 ...] %w %x { ... };  %3 is %w

    - a carry that the body returns unchanged becomes a constant of the loop;
    - an output that stacks a scanned input is that input; one that stacks a constant is a broadcast;
    - carries and outputs that are always equal, and operands given twice, are kept once;
    - scalar constants move into the region;
    - a call's or a branch's result that is an argument is that argument, and likewise a constant.

    Exact. XLA does part of this itself; it saves compile time and opens the way for others.
    """

    name: ClassVar[str] = "forward"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Sweep, outer nodes first, until nothing fires: what passes through one may pass through all."""
        while True:
            fired = ctx.counts.total()
            for inner in graph.graphs():
                for node in list(inner):
                    if node.regions and node.alive:
                        for simplify in _SIMPLIFICATIONS:
                            simplify(node, ctx)
            if ctx.counts.total() == fired:
                return


def _unchanged_carry(node: Node, ctx: PassContext) -> None:
    """A carry that comes out as it went in is a constant."""
    if node.op not in LOOPS or not editable(node):
        return
    found = [slot for slot in slots(node) if _is_unchanged(node, slot) and ctx.fire("unchanged-carry", node)]
    if not found:
        return
    body = node.regions[-1]
    returned = {slot.outputs[0][1] for slot in found}
    nothing = constant(None, None)  # in place of the outputs, which must not count as uses
    body.set_outputs([nothing if i in returned else value for i, value in enumerate(body.outputs)])
    carries: set[Value] = set()
    for outer, result, inner in [_ends(node, slot) for slot in found]:
        result.replace_uses(outer)
        for region, value in inner:
            carries.add(value)
            if value.uses:
                value.replace_uses(add_constant(node, region, outer))
    held = [[node.regions[r].inputs[i] for r, i in slot.inputs] for slot in slots(node)]
    drop_slots(node, [slot for slot, values in zip(slots(node), held, strict=True) if carries & {*values}])


def _ends(node: Node, slot: Slot) -> tuple[Value, Value, list[tuple[int, Value]]]:
    """A carry's operand, its result, and its region inputs, each with the number of its region."""
    assert slot.operand is not None and slot.result is not None
    inner = [(r, node.regions[r].inputs[i]) for r, i in slot.inputs]
    return node.operands[slot.operand], node.results[slot.result], inner


def _is_unchanged(node: Node, slot: Slot) -> bool:
    """Whether a slot is a carry that the body returns as it got it."""
    if slot.kind != "carry":
        return False
    (r, out), (_, i) = slot.outputs[0], slot.inputs[-1]
    return node.regions[r].outputs[out] is node.regions[r].inputs[i]


def _stacked_through(node: Node, ctx: PassContext) -> None:
    """A stacked output that is a scanned input, or a constant of the loop."""
    if node.op != "scan":
        return
    (body,) = node.regions
    scanned = {body.inputs[i]: s.operand for s in slots(node) if s.kind == "scanned" for _, i in s.inputs}
    constant = outer_of(node, body)
    for slot in slots(node):
        if slot.kind != "stacked" or slot.result is None or not node.results[slot.result].uses:
            continue
        value = body.outputs[slot.outputs[0][1]]
        result = node.results[slot.result]
        if value in scanned and ctx.fire("stacked-input", node):
            result.replace_uses(node.operands[scanned[value] or 0])
        elif (
            (value in constant or value.is_const) and result.is_static and ctx.fire("stacked-constant", node)
        ):
            outer = constant.get(value, value)
            (stacked,) = write_before(
                rewrite(_stack_constant, outer, length=node.params["length"]), node, "stacked-constant"
            )
            result.replace_uses(stacked)


def _stack_constant(x: Any, *, length: int) -> Any:
    return lax.broadcast(x, (length,))


def _twins(node: Node, ctx: PassContext) -> None:
    """Slots that always hold the same are kept once."""
    if not editable(node):
        return
    first: dict[Hashable, Slot] = {}
    dropped: list[Slot] = []
    for slot in slots(node):
        key = _TWIN_KEYS.get(slot.kind, _no_key)(node, slot)
        if key is None:
            continue
        twin = first.setdefault((slot.kind, *key), slot)
        if twin is slot or not ctx.fire("same-slot", node):
            continue
        if slot.result is not None and twin.result is not None:
            node.results[slot.result].replace_uses(node.results[twin.result])
        for (r, i), (q, j) in zip(slot.inputs, twin.inputs, strict=True):
            node.regions[r].inputs[i].replace_uses(node.regions[q].inputs[j])
        dropped.append(slot)
    if dropped:
        drop_slots(node, dropped)


def _no_key(node: Node, slot: Slot) -> tuple[Hashable, ...] | None:
    return None


def _operand_twin(node: Node, slot: Slot) -> tuple[Hashable, ...] | None:
    assert slot.operand is not None
    return (operand_key(node.operands[slot.operand]), tuple(r for r, _ in slot.inputs))


def _result_twin(node: Node, slot: Slot) -> tuple[Hashable, ...] | None:
    return tuple(operand_key(node.regions[r].outputs[i]) for r, i in slot.outputs)


def _carry_twin(node: Node, slot: Slot) -> tuple[Hashable, ...] | None:
    return (*(_operand_twin(node, slot) or ()), *(_result_twin(node, slot) or ()))


_TWIN_KEYS: dict[str, Callable[[Node, Slot], tuple[Hashable, ...] | None]] = {
    "constant": _operand_twin,
    "scanned": _operand_twin,
    "argument": _operand_twin,
    "carry": _carry_twin,
    "stacked": _result_twin,
    "result": _result_twin,
}


def _scalar_constants(node: Node, ctx: PassContext) -> None:
    """A scalar constant given as an operand is written into the region."""
    if not editable(node):
        return
    dropped = []
    for slot in slots(node):
        if slot.kind not in ("constant", "argument") or slot.operand is None:
            continue
        value = node.operands[slot.operand]
        if not value.literal or not ctx.fire("constant-operand", node):
            continue
        for r, i in slot.inputs:
            node.regions[r].inputs[i].replace_uses(value)
        dropped.append(slot)
    if dropped:
        drop_slots(node, dropped)


def _forwarded_results(node: Node, ctx: PassContext) -> None:
    """A result of a call or branch that is one of its arguments, whichever branch runs."""
    if node.op == "jit" and not is_plain_call(node):  # it may put its result elsewhere
        return
    if all(value.node is not None for region in node.regions for value in region.outputs):
        return
    outer = [outer_of(node, region) for region in node.regions]
    for slot in slots(node):
        if slot.kind != "result" or slot.result is None or not node.results[slot.result].uses:
            continue
        sources = set(_sources(node, slot, outer))
        if len(sources) != 1 or None in sources or not ctx.fire("forwarded-result", node):
            continue
        source = sources.pop()
        assert source is not None
        node.results[slot.result].replace_uses(source)


def _sources(node: Node, slot: Slot, outer: Sequence[dict[Value, Value]]) -> Iterator[Value | None]:
    """What each region returns for a result, as a value outside; None where it is made inside."""
    if node.op.startswith("custom_"):
        yield None
    for r, i in slot.outputs:
        value = node.regions[r].outputs[i]
        yield value if value.is_const and len(slot.outputs) == 1 else outer[r].get(value)


_SIMPLIFICATIONS = (_unchanged_carry, _stacked_through, _twins, _scalar_constants, _forwarded_results)
