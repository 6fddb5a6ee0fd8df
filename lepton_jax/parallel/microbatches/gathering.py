"""Weights that lie split, gathered once before the loop over parts of the batch rather than in each round."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import jax
import jax.numpy as jnp

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.importer import copy_equations, struct_of
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.microbatches.choosing import loop_of


def split_weights(
    graph: Graph, assignment: Mapping[Value, Layout], axes: Collection[str]
) -> dict[int, Layout]:
    """What the loop over parts reads of outside that lies split over these axes.

    Args:
        axes: those of the mesh over which the batch is split: along them each round needs all of it.

    Returns:
        By the position among the loop's operands, the layout without these axes.
    """
    loop = loop_of(graph)
    found: dict[int, Layout] = {}
    for place in range(0 if loop is None else loop.params["num_consts"]):
        assert loop is not None
        value = loop.operands[place]
        layout = assignment.get(value)
        if value.is_const or layout is None or layout.partial:
            continue
        dims = tuple(tuple(name for name in names if name not in axes) for names in layout.dims)
        if dims != layout.dims:
            found[place] = Layout(dims)
    return found


def gather_first(graph: Graph, places: Iterable[int]) -> list[Value]:
    """Let the loop over parts read copies of what it reads of outside; they may lie otherwise.

    Args:
        places: positions among the loop's operands.

    Returns:
        The copies, in this order.
    """
    loop = loop_of(graph)
    found = []
    for place in places:
        assert loop is not None
        value = loop.operands[place]
        (copy,) = copy_equations(_jax.trace_flat(_copied, [struct_of(value)]), [value], graph, loop, {})
        loop.set_operand(place, copy)
        found.append(copy)
    return found


def _copied(x: jax.Array) -> list[jax.Array]:
    return [jnp.copy(x)]
