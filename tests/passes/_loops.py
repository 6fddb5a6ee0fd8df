"""What the tests of the passes on loops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite import Report
from tests.passes._check import check, gradient, rewrite_jaxpr

CLEAN = "inline,dce,fixpoint(fold,algebra,movement,cse,forward,dce)"
"""What stands before and after a pass on loops."""


def around(passes: str) -> str:
    """A pipeline with clean-up before and after the passes."""
    return f"{CLEAN},{passes},{CLEAN}"


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed + sum(shape)).normal(size=shape), dtype)


def alike(
    fun: Callable[..., Any],
    *args: Any,
    passes: str,
    target: str = "gpu",
    grad: bool = True,
    every: bool = False,
) -> tuple[Graph, Report]:
    """Assert that passes for a target keep a function's meaning, whatever machine the test runs on.

    Compares values and gradients, and runs the passes on what they have left.

    Args:
        grad: compare gradients.
        every: compare under vmap and export too.

    Returns:
        The rewritten graph, and the report.
    """
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    tree = jax.tree.structure(shapes)
    graph, report = rewrite_jaxpr(closed, "f", passes, target=target)
    flat = to_callable(graph)

    def rewritten(*args: Any) -> Any:
        return jax.tree.unflatten(tree, map(jnp.asarray, flat(*jax.tree.leaves(args))))

    moving = tuple(i for i, a in enumerate(args) if jnp.issubdtype(jnp.result_type(a), jnp.floating))
    stacked = [jnp.stack([jnp.asarray(a)] * 2) for a in args] if every else []

    def views(f: Callable[..., Any], args: Any, stacked: Any) -> list[Any]:
        slopes = gradient(f, moving)(*args) if grad and moving else ()
        return [f(*args), slopes, jax.vmap(f)(*stacked) if stacked else ()]

    both = jax.jit(lambda *given: (views(fun, *given), views(rewritten, *given)))
    for expected, result in zip(*both(args, stacked), strict=True):
        check(expected, result)
    if every:
        assert jax.export.export(jax.jit(rewritten))(*args).mlir_module()
    traced = jax.make_jaxpr(flat)(*closed.in_avals)
    again, _ = rewrite_jaxpr(traced, "f", passes, target=target)
    assert again.to_text() in (graph.to_text(), from_jaxpr(traced, "f").to_text()), "twice is not once"
    return graph, report


def ops(graph: Graph) -> list[str]:
    """The operations of a graph and its regions, in order."""
    return [node.op for node in graph.walk()]


def body(graph: Graph) -> list[str]:
    """The operations in the body of the only loop of a graph."""
    (loop,) = [node for node in graph.walk() if node.op in ("scan", "while")]
    return [node.op for node in loop.regions[-1]]
