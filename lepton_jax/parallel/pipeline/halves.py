"""Backward work in two halves: what hands cotangents on, and what only one parameter waits for.

The gradients of a stage are traced as one program. Its operations that lead to the gradient of a single
parameter and to nothing else (the product `xᵀ dy` of a layer, the sum over a bias's examples) are the half
that can wait; what they read of the other half is kept. Loops over layers are cut alike: the loops of
the second half carry nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lepton_jax.ir.binding import may_run_once
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import erase_dead_nodes
from lepton_jax.ir.split import part


@dataclass(frozen=True)
class Halves:
    """The two halves of a stage's backward work.

    Attributes:
        inputs: from all that is given to what is handed on, the gradients that do not wait, and what is kept.
        params: from what is given and can be read later, and what is kept, to the gradients that waited.
        early: which gradients do not wait, by position.
        late: which wait.
        kept: the shapes and dtypes of what is kept.
        given: the positions of what the second half is given again.
    """

    inputs: Graph
    params: Graph
    early: tuple[int, ...]
    late: tuple[int, ...]
    kept: tuple[Any, ...]
    given: tuple[int, ...]


def halves(graph: Graph, first: int, params: Collection[int], batch: Collection[int]) -> Halves:
    """Cut the program of a stage's backward work; it is edited.

    Args:
        graph: its outputs are what is handed on, then from `first` on the gradients of parameters.
        params: the inputs that are parameters, which can be read later again.
        batch: those that are the batch, likewise.
    """
    erase_dead_nodes(inline_calls(graph))
    for node in list(graph):
        if node.op == "scan" and may_run_once(node):
            _cut_loop(graph, node, first)
    late = _late(graph, range(first, len(graph.outputs)))
    outputs = graph.outputs
    waits = [i for i in range(first, len(outputs)) if outputs[i].node in late]
    again = sorted({*params, *batch})
    cheap = _made_of(graph, batch)
    kept = [
        value
        for value in _read(late)
        if value not in cheap and (value.node is not None or value.index not in again)
    ]
    goes = [i for i in range(first, len(outputs)) if i not in waits]
    return Halves(
        inputs=part("inputs", graph, graph.inputs, [*outputs[:first], *(outputs[i] for i in goes), *kept]),
        params=part("params", graph, [*(graph.inputs[i] for i in again), *kept], [outputs[i] for i in waits]),
        early=tuple(i - first for i in goes),
        late=tuple(i - first for i in waits),
        kept=tuple(value.aval for value in kept),
        given=tuple(again),
    )


def _leads(graph: Graph) -> dict[Value | Node, int]:
    """For each node and value the outputs that it leads to, as bits."""
    found: dict[Value | Node, int] = {}

    def of(value: Value) -> int:
        bits = 0
        for node, position in value.uses:
            bits |= 1 << position if node is graph.ret else found.get(node, 0)
        return bits

    for node in reversed(graph):
        found[node] = 0
        for value in node.results:
            found[value] = of(value)
            found[node] |= found[value]
    return found


def _late(graph: Graph, outputs: Collection[int]) -> set[Node]:
    """The nodes that lead to one of these outputs and to nothing else."""
    single = {1 << i for i in outputs}
    leads = _leads(graph)
    return {node for node in graph if leads[node] in single and may_run_once(node)}


def _read(nodes: Collection[Node]) -> list[Value]:
    """What nodes read of others, each value once."""
    found: dict[Value, None] = {}
    ordered = [node for node in next(iter(nodes)).graph or () if node in nodes] if nodes else []
    for node in ordered:
        found.update(
            (v, None) for v in node.operands if not v.is_const and (v.node is None or v.node not in nodes)
        )
    return list(found)


def _made_of(graph: Graph, inputs: Collection[int]) -> set[Value]:
    """The values that depend on these inputs and constants alone."""
    found = {graph.inputs[i] for i in inputs}
    for node in graph:
        if all(v.is_const or v in found for v in node.operands) and may_run_once(node):
            found.update(node.results)
    return found


def _cut_loop(graph: Graph, node: Node, first: int) -> None:
    """Let a loop leave what only one gradient waits for to loops that carry nothing."""
    leads = _leads(graph)
    waiting = {1 << i for i in range(first, len(graph.outputs))}
    if leads[node] in waiting:  # all of it waits
        return
    consts, carry = node.params["num_consts"], node.params["num_carry"]
    (body,) = node.regions
    inline_calls(body)
    stacked = [i for i in range(carry, len(node.results)) if leads[node.results[i]] in waiting]
    late = _late(body, stacked)
    moved = [i for i in stacked if body.outputs[i].node in late]
    if not moved:
        return
    read = _read(late)
    handed = [v for v in read if v.node is not None or consts <= v.index < consts + carry]
    stays = [i for i in range(len(body.outputs)) if i not in moved]
    length = node.params["length"]
    one = _loop(
        node,
        node.operands,
        part("body", body, body.inputs, [*(body.outputs[i] for i in stays), *handed]),
        [*(node.results[i].aval for i in stays), *(_stacked(v.aval, length) for v in handed)],
        consts,
        carry,
    )
    graph.insert(one, node)
    made = dict(zip(handed, one.results[len(stays) :], strict=True))
    for i, value in zip(stays, one.results, strict=False):
        node.results[i].replace_uses(value)
    for i in moved:  # a loop for each gradient, so that each can wait
        node.results[i].replace_uses(_alone(graph, node, i, made))
    graph.erase(node)


def _alone(graph: Graph, node: Node, result: int, made: Mapping[Value, Value]) -> Value:
    """One stacked result of a loop by a loop of its own, from what another loop has stacked for it."""
    consts = node.params["num_consts"]
    (body,) = node.regions
    read = _read(_late(body, [result]))
    fixed = [v for v in read if v.node is None and v.index < consts]
    handed = [v for v in read if v in made]
    scanned = [v for v in read if v not in made and v not in fixed]
    loop = _loop(
        node,
        [*(node.operands[v.index] for v in (*fixed, *scanned)), *(made[v] for v in handed)],
        part("body", body, [*fixed, *scanned, *handed], [body.outputs[result]]),
        [node.results[result].aval],
        len(fixed),
        0,
    )
    return graph.insert(loop, node).result


def _loop(like: Node, operands: list[Value], body: Graph, avals: list[Any], consts: int, carry: int) -> Node:
    """A loop as another, with another body."""
    return Node(
        like.op,
        like.primitive,
        operands,
        avals,
        {**like.params, "num_consts": consts, "num_carry": carry},
        regions=[body],
        source=like.source,
        context=like.context,
        rule=like.rule,
    )


def _stacked(aval: Any, length: int) -> Any:
    return aval.update(shape=(length, *aval.shape))
