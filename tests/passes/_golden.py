"""What tests of the passes on regions share: golden texts, programs that must stay as they are, and gates."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite import CheckStructure, PassContext, PassManager, Pipeline
from lepton_jax.targets import get_target
from tests.passes._check import check, run

X = jnp.asarray([0.3, -0.8, 1.7])
ONE = jnp.float32(1.0)
MATRIX = jnp.linspace(0.2, 1.0, 9).reshape(3, 3)


def assert_text(graph: Graph, expected: str) -> None:
    """Assert that a graph reads like this."""
    assert graph.to_text() == dedent(expected).strip()


def assert_untouched(fun: Callable[..., Any], *args: Any, passes: str) -> Graph:
    """Assert that a pipeline changes nothing: it fires nothing, and every node would be bound verbatim."""
    graph, report = run(fun, *args, passes=passes)
    assert report.rules == {}
    assert graph.is_pristine()
    return graph


def ops(graph: Graph) -> list[str]:
    """The operations of a graph and its regions, in order; shared regions once."""
    return [node.op for node in graph.walk()]


def assert_settled(closed: Any, pipeline: Pipeline) -> None:
    """Assert that no pass of a pipeline changes what it has just left."""
    graph = from_jaxpr(closed)
    for step in pipeline.passes():
        step.run(graph, PassContext(get_target("cpu")))
        version = graph.total_version()
        step.run(graph, PassContext(get_target("cpu")))
        assert graph.total_version() == version, f"{step} changes what it has left"


def assert_every_gate(fun: Callable[..., Any], *args: Any, passes: str) -> int:
    """Forbid each single application in turn: the graph must stay sound and compute the same.

    Without a gate the passes must leave nothing to do.

    Returns:
        How many applications there are.
    """
    closed = jax.make_jaxpr(fun)(*args)
    leaves = jax.tree.leaves(args)
    expected = jax.jit(to_callable(from_jaxpr(closed)))(*leaves)
    pipeline = Pipeline.parse(passes)
    assert_settled(closed, pipeline)
    forbidden = asked = 0
    while forbidden <= asked:
        numbers: list[int] = []

        def gate(
            number: int, _pass: str, _rule: str, numbers: list[int] = numbers, no: int = forbidden
        ) -> bool:
            numbers.append(number)
            return number != no

        target = get_target("cpu")
        manager = PassManager(pipeline, target, strict=True, instruments=[CheckStructure()], gate=gate)
        graph, report = manager.run(closed)
        assert sum(report.rules.values()) == len(numbers) - (forbidden in numbers)
        check(expected, jax.jit(to_callable(graph))(*leaves))
        asked = asked if forbidden else len(numbers)
        forbidden += 1
    return asked
