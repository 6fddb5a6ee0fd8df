"""A cache of analyses: each is computed once for each state of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from lepton_jax.ir.graph import Graph

P = ParamSpec("P")
T = TypeVar("T")


class Analyses:
    """Remembers what analyses of graphs returned, until the graph or a region in it changes.

    Example:
        >>> import jax.numpy as jnp
        >>> from lepton_jax.ir import trace
        >>> graph = trace(jnp.sin, 1.0)
        >>> analyses = Analyses()
        >>> analyses.get(Graph.num_nodes, graph)
        1
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[int, Graph, Any]] = {}

    def get(
        self,
        analysis: Callable[Concatenate[Graph, P], T],
        graph: Graph,
        *args: P.args,
        **options: P.kwargs,
    ) -> T:
        """What `analysis(graph, *args, **options)` returns.

        It is computed only when it was not asked for since the graph's last change. The
        arguments must be hashable; what it returns must not be edited.
        """
        key = (analysis, id(graph), args, tuple(sorted(options.items())))
        version = graph.total_version()
        known = self._known.get(key)
        if known is not None and known[0] == version and known[1] is graph:
            found: T = known[2]
            return found
        result = analysis(graph, *args, **options)
        self._known[key] = (version, graph, result)
        return result

    def invalidate(self) -> None:
        """Forget everything."""
        self._known.clear()
