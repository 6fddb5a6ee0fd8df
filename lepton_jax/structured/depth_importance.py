"""How much residual blocks and scanned layers matter, as batches show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._options import StaticArguments
from lepton_jax._stage import dynamic_leaves
from lepton_jax.ir.cutting import Cut, scan_length
from lepton_jax.ir.dimensions import Dependencies, Group
from lepton_jax.ir.export import evaluate, to_callable
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.regions import erase_dead_nodes
from lepton_jax.numerics.group_importance import angle, change
from lepton_jax.rewrite import UsageError
from lepton_jax.structured.blocks import residual_blocks
from lepton_jax.structured.smaller import Change, Smaller, trace_program

DepthImportance = Literal["angle", "change", "loss"]
Batch = tuple[Any, ...]
_MEASURES: Final[Mapping[str, Callable[[Any, Any], jax.Array]]] = {"angle": angle, "change": change}


def block_changes(
    fun: Callable[..., Any], static: StaticArguments, params: Any, batches: Sequence[Batch], measure: str
) -> list[float]:
    """How much each residual block changes what it adds to, in the mean over batches.

    Args:
        measure: `angle` or `change`, see `lepton_jax.numerics.group_importance`.
    """
    totals: list[float] = []
    for batch in batches:
        program = trace_program(fun, static, (params, *batch), {})
        graph, blocks = program.graph, residual_blocks(program.graph, program.params)
        graph.set_outputs([each for block in blocks for each in (block.skip, block.add.result)])
        erase_dead_nodes(graph)
        run = jax.jit(_pairs(graph, _MEASURES[measure]))
        found = [float(each) for each in run(*dynamic_leaves(static, (params, *batch), {}))]
        totals = [a + b for a, b in zip(totals or [0.0] * len(found), found, strict=True)]
    return [total / len(batches) for total in totals]


def _pairs(graph: Graph, measure: Callable[[Any, Any], jax.Array]) -> Callable[..., list[jax.Array]]:
    def run(*leaves: Any) -> list[jax.Array]:
        outputs = to_callable(graph)(*leaves)
        return [measure(outputs[i], outputs[i + 1]) for i in range(0, len(outputs), 2)]

    return run


def layer_changes(
    fun: Callable[..., Any],
    static: StaticArguments,
    params: Any,
    batches: Sequence[Batch],
    measure: str,
    name: str,
) -> list[float]:
    """How much each iteration of a scan changes the largest array that it carries, in the mean over batches.

    Args:
        measure: `angle` or `change`.
        name: of the group of layers.
    """
    totals: Any = 0.0
    for batch in batches:
        program = trace_program(fun, static, (params, *batch), {})
        node = _scan_of(program.graph, program.found, program.found[name])
        graph = program.graph
        (body,) = node.regions
        graph.set_outputs(node.operands)
        run = jax.jit(_iterations(graph, body, node.params, _MEASURES[measure]))
        totals += np.asarray(run(*dynamic_leaves(static, (params, *batch), {})), np.float64)
    return [float(total) / len(batches) for total in np.asarray(totals)]


def _scan_of(graph: Graph, found: Dependencies, group: Group) -> Node:
    """The scan that goes round less often when a layer goes."""
    cut = Cut.found(found, found.select({group.name: np.arange(group.units - 1)}))
    for node in graph:
        if node.op == "scan" and scan_length(node, cut) != node.params["length"]:
            return node
    raise UsageError(f"{group.name}: its scan is within another operation, where layers cannot be measured")


def _iterations(
    graph: Graph, body: Graph, params: Mapping[str, Any], measure: Callable[[Any, Any], jax.Array]
) -> Callable[..., jax.Array]:
    consts, carry = params["num_consts"], params["num_carry"]
    moving = [i for i in range(carry) if jnp.issubdtype(body.inputs[consts + i].dtype, jnp.floating)]
    if not moving:
        raise UsageError(f"{graph.name}: the scan carries no floats, so importance of its layers is unknown")
    widest = max(moving, key=lambda i: int(np.prod(body.inputs[consts + i].shape)))

    def run(*leaves: Any) -> jax.Array:
        operands = to_callable(graph)(*leaves)
        fixed, init, xs = operands[:consts], operands[consts : consts + carry], operands[consts + carry :]

        def step(state: list[Any], x: list[Any]) -> tuple[list[Any], jax.Array]:
            after = evaluate(body, [*fixed, *state, *x])[:carry]
            return after, measure(state[widest], after[widest])

        _, found = jax.lax.scan(step, init, xs, length=params["length"], reverse=params["reverse"])
        return found

    return run


def losses(
    loss: Callable[..., Any],
    static: StaticArguments,
    params: Any,
    batches: Sequence[Batch],
    changes: Iterable[Change],
) -> list[float]:
    """By how much the loss grows with each change, in the mean over batches."""

    def mean(fun: Callable[..., Any], given: Any) -> float:
        run = jax.jit(fun)
        return float(np.mean([float(run(given, *batch)) for batch in batches]))

    plain = mean(loss, params)
    return [mean(Smaller(loss, each, static), each.shrink(params)) - plain for each in changes]
