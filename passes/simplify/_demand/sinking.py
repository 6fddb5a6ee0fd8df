"""Reads of a part, sunk through what makes the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.structure import node_key
from lepton_jax.passes.simplify._demand.convolutions import is_convolution_cut, part_of_convolution
from lepton_jax.passes.simplify._demand.makers import HEAVY, is_known, is_relu, plan_of
from lepton_jax.passes.simplify._demand.readers import OPS, Cuts, Reading, part_of, reading_of
from lepton_jax.passes.simplify._demand.rows import in_rows
from lepton_jax.passes.simplify._demand.views import part_of_view
from lepton_jax.passes.simplify._movement.common import bind, unplaced
from lepton_jax.rewrite import PassContext, erase_dead, profit, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write

_MOST_READERS: Final = 64
_FURTHEST: Final = 256

_LEAST_WORK: Final = 4
"""So many times what starting an operation takes must be at stake."""

_NAMES: Final = {
    "dot_general": "part-of-dot",
    "conv_general_dilated": "part-of-convolution",
    "custom_jvp_call": "part-of-relu",
}


def sink(graph: Graph, ctx: PassContext) -> None:
    """Let nodes of a graph make only the part that is read, last nodes first.

    A node is made smaller where all that reads it reads the same part. Elementwise operations and
    those that move data, which XLA would make smaller by itself, only on the way to one that it would not.
    """
    known: dict[Value, bool] = {}
    worth = 0.0 if profit.is_disregarded() else _LEAST_WORK * ctx.rates.seconds_per_node
    for node in reversed(graph):
        if node.effects or len(node.results) != 1 or not node.result.uses:
            continue
        if next(iter(node.result.uses))[0].op in OPS and _leads_to_work(node.result, known, worth, ctx):
            _sink_into(node, ctx)


def _leads_to_work(value: Value, known: dict[Value, bool], worth: float, ctx: PassContext) -> bool:
    """Whether a value is made, by operations that can be cut, of one that XLA would compute or keep whole.

    One that takes at least `worth` seconds; `known` keeps what has been found out.
    """
    stack = [value]
    while stack:
        current = stack[-1]
        node = current.node
        if current in known:
            stack.pop()
        elif node is not None and node.op == "scan":
            known[current] = current.index >= node.params["num_carry"]  # its last row may be all that is read
        elif node is None or not (is_known(node) or is_relu(node)) or len(stack) > _FURTHEST:
            known[current] = False
        elif (node.op in HEAVY and ctx.seconds(node_cost(node)) > worth) or any(
            known.get(v, False) for v in node.operands
        ):
            known[current] = True
        elif missing := [v for v in node.operands if v not in known]:
            stack.append(missing[0])
        else:
            known[current] = False
    return known[value]


def _sink_into(maker: Node, ctx: PassContext) -> None:
    """Make only a part of a node's result, if that is all that is read."""
    readers = maker.result.users()
    if not all(user.op in OPS and user.operands[0] is maker.result for user in readers):
        return
    reader = _only(maker, readers, ctx)
    if reader is None or reader.context is not maker.context or not _is_static(maker, reader):
        return
    reading = reading_of(reader)
    if reading is None and (made := in_rows(reader, maker, ctx)) is not None:
        reader, reading = made, reading_of(made)
    if reading is None or not reading.cuts or maker.result in reading.starts:
        return
    made_of = _made_of_parts(maker, reading)
    if made_of is None or unplaced(reader, ctx) is not None:
        return
    name = _NAMES.get(maker.op, f"part-of-{maker.op.replace('_', '-')}")
    if maker.op in HEAVY and (reason := profit.why_not(made_of, reader, ctx)) is not None:
        ctx.miss(name, reader, reason)
        return
    if ctx.fire(name, reader):
        write(made_of, reader, name)
        erase_dead(reader)


def _is_static(*nodes: Node) -> bool:
    return all(v.is_static for node in nodes for v in (*node.operands, *node.results))


def _only(maker: Node, readers: Sequence[Node], ctx: PassContext) -> Node | None:
    """The first of the readers, if all of them read the same; the others then read from it."""
    if len(readers) == 1:
        return readers[0]
    if len(readers) > _MOST_READERS or len({node_key(reader) for reader in readers}) != 1:
        return None
    if node_key(readers[0]) is None:
        return None
    first = maker.next
    while first is not None and first not in readers:
        first = first.next
    if first is None or not ctx.fire("same-part", first):
        return None
    for other in readers:
        if other is not first:
            other.result.replace_uses(first.result)
            erase_dead(other)
    return first


def _made_of_parts(maker: Node, reading: Reading) -> Rewrite | None:
    """The part of a node's result, made of parts of its operands."""
    values = (*maker.operands, *reading.starts)
    if is_relu(maker):
        return rewrite(relu_of_part, *values, kind=reading.kind, cuts=reading.cuts)
    if maker.op == "conv_general_dilated" and is_convolution_cut(maker, reading):
        return part_of_convolution(maker, reading)
    plan = plan_of(maker, reading.dimensions)
    if plan is None:
        return part_of_view(maker, reading)
    cuts = tuple(reading.at(places) for places in plan.places)
    if None in cuts:
        return None
    if not any(cuts):
        return _uncut(maker, reading)
    return rewrite(
        made_of_parts,
        *values,
        primitive=maker.primitive,
        params=tuple(sorted(maker.params.items())),
        kind=reading.kind,
        cuts=cuts,
        shape=None if plan.shape is None else (plan.shape, reading.shape(maker.result.shape)),
    )


def _uncut(maker: Node, reading: Reading) -> Rewrite | None:
    """A part of a broadcast along dimensions that its operand has not: a smaller broadcast."""
    if maker.op != "broadcast_in_dim":
        return None
    return rewrite(
        made_of_parts,
        *maker.operands,
        primitive=maker.primitive,
        params=tuple(sorted(maker.params.items())),
        kind=reading.kind,
        cuts=((),),
        shape=("shape", reading.shape(maker.result.shape)),
    )


def made_of_parts(
    *arrays: jax.Array,
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
    kind: str,
    cuts: tuple[Cuts, ...],
    shape: tuple[str, tuple[int, ...]] | None,
) -> Any:
    """The operation on parts of its operands; what follows the operands says where the parts begin."""
    operands, starts = arrays[: len(cuts)], arrays[len(cuts) :]
    parts = [part_of(x, kind, own, starts) for x, own in zip(operands, cuts, strict=True)]
    changes = {} if shape is None else {shape[0]: shape[1]}
    return bind(*parts, primitive=primitive, params=tuple({**dict(params), **changes}.items()))


# relu, whose derivative is its own


def relu_of_part(x: jax.Array, *starts: jax.Array, kind: str, cuts: Cuts) -> jax.Array:
    """A part of `x`, and zero where it is negative."""
    return jax.nn.relu(part_of(x, kind, cuts, starts))
