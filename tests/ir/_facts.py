"""What tests of facts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir import trace
from lepton_jax.ir.facts import Facts, facts_of
from lepton_jax.ir.graph import Graph

Fun = Callable[..., Any]

F32 = jax.ShapeDtypeStruct((), jnp.float32)
MATRIX = jax.ShapeDtypeStruct((3, 3), jnp.float32)
INTS = jax.ShapeDtypeStruct((3, 3), jnp.int32)


def facts(fun: Fun, *args: Any) -> Facts:
    """Facts of the only output of a function."""
    (output,) = trace(fun, *args).outputs
    return facts_of(output)


def graph_of(graph: Graph, op: str) -> Graph:
    """The first region of the first node with this operation."""
    return next(node for node in graph.walk() if node.op == op).regions[0]
