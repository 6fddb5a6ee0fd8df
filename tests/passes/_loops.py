"""What the tests of the passes on loops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import Report
from tests.passes._check import kept

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

    Compares values and gradients, and runs the passes on what they have left; `kept` says how.

    Args:
        grad: compare gradients.
        every: compare under vmap and export too.

    Returns:
        The rewritten graph, and the report.
    """
    return kept(fun, *args, passes=passes, target=target, grad=grad, vmap=every, export=every)


def ops(graph: Graph) -> list[str]:
    """The operations of a graph and its regions, in order."""
    return [node.op for node in graph.walk()]


def body(graph: Graph) -> list[str]:
    """The operations in the body of the only loop of a graph."""
    (loop,) = [node for node in graph.walk() if node.op in ("scan", "while")]
    return [node.op for node in loop.regions[-1]]


# Programs


@jax.jit
def handed_on(x: Any) -> Any:
    """Its first result is its argument, which a loop around it cannot know when it is traced."""
    return x, x + 1


def trips(low: int, high: int) -> Any:
    """A loop from `low` to `high`, which JAX does not know when it traces it."""

    def f(x: Any) -> Any:
        bounds = jnp.asarray(low), jnp.asarray(high)
        return lax.fori_loop(*bounds, lambda i, v: jnp.sin(v) + i, x)

    return f


def average(x: Any, rate: Any) -> Any:
    """A moving average, and its value after each step."""

    def step(mean: Any, xt: Any) -> tuple[Any, Any]:
        mean = mean + rate * (xt - mean)
        return mean, mean

    return lax.scan(step, x[0], x)
