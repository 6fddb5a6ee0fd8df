"""Marks in a user's code that say where stages may end."""

from __future__ import annotations

from typing import Any, Final

import jax
from jax.ad_checkpoint import checkpoint_name

from lepton_jax.ir.graph import Graph, Node

_NAME: Final = "lepton.stage_boundary"


def stage_boundary(x: Any) -> Any:
    """The value itself, marked: a stage of a pipeline may end here.

    Where a program has as many marks as a pipeline has stages, less one, they are its boundaries; where it
    has more, the best of them are. Without a pipeline a mark does nothing. It is kept by `jax.grad`,
    `jax.vmap` and `jax.lax.scan`; in the body of a scan over layers it says that a stage may end after each.

    Args:
        x: an array, or a tree of arrays, of any shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> stage_boundary(jnp.arange(3)).tolist()
        [0, 1, 2]
    """
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, _NAME), x)


def is_mark(node: Node) -> bool:
    """Whether a node is a mark."""
    return node.op == "name" and node.params.get("name") == _NAME


def has_mark(graph: Graph) -> bool:
    """Whether a graph, or a region of it, has a mark."""
    return any(is_mark(node) for node in graph.walk())
