"""How tests of lowering are written: programs with parameters, all compiled as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import CheckStructure, PassManager, Pipeline
from lepton_jax.targets import get_target

RNG = np.random.default_rng(0)


def int8(*shape: int) -> jax.Array:
    """Random int8 numbers, all of them."""
    return jnp.asarray(RNG.integers(-128, 128, shape), jnp.int8)


def floats(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Random floating-point numbers about as large as a weight's."""
    return jnp.asarray(RNG.normal(size=shape) * 0.25, dtype)


@dataclass(frozen=True)
class Case:
    """A program.

    Attributes:
        fun: the program.
        args: its arguments.
        rules: the rules that are to fire, and how often.
        params: positions of its parameters.
        passes: the pipeline.
        target: what it is lowered for.
    """

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    rules: Mapping[str, int]
    params: tuple[int, ...] = (1,)
    passes: str = "products"
    target: str = "cpu"


def lowered(case: Case, level: Any = "reassociate") -> tuple[Graph, dict[str, int]]:
    """The rewritten graph, and how often each rule fired."""
    closed = jax.make_jaxpr(case.fun)(*case.args)
    return rewrite(closed, case, level)


def rewrite(closed: Any, case: Case, level: Any = "reassociate") -> tuple[Graph, dict[str, int]]:
    """The graph of a closed jaxpr after a case's passes."""
    pipeline, target = Pipeline.parse(case.passes), get_target(case.target)
    manager = PassManager(pipeline, target, level, strict=True, instruments=[CheckStructure()])
    graph, report = manager.run(closed, "f", frozenset(case.params))
    return graph, dict(report.rules)


def check_cases(cases: Mapping[str, Case]) -> dict[str, Graph]:
    """Assert that the rules fire, and that every program gives what it gave, exactly for integers.

    Also under vmap; that jax.export takes them; and that twice is once. All are compiled as one program.
    """
    graphs, subjects = {}, {}
    for name, case in cases.items():
        graph, rules = lowered(case)
        assert rules == dict(case.rules), name
        again = rewrite(jax.make_jaxpr(to_callable(graph))(*case.args), case)[0]
        assert again.to_text() == graph.to_text(), name
        graphs[name], subjects[name] = graph, to_callable(graph)

    def run(args: Any) -> Any:
        found = {}
        for name, case in cases.items():
            axes = tuple(None if i in case.params else 0 for i in range(len(case.args)))
            pair = jax.tree.leaves(case.fun(*args[name])), subjects[name](*args[name])
            two = [jnp.stack([a, a]) if axis == 0 else a for a, axis in zip(args[name], axes, strict=True)]
            found[name] = *pair, jax.vmap(subjects[name], in_axes=axes, axis_size=2)(*two)
        return found

    args = {name: case.args for name, case in cases.items()}
    jitted = jax.jit(run)
    for name, (before, after, mapped) in jitted(args).items():
        for a, b, c in zip(before, after, mapped, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            exact = jnp.issubdtype(a.dtype, jnp.integer)
            tolerance = 0.0 if exact else 0.02 if a.dtype.itemsize < 4 else 1e-5
            for found in (b, c[0], c[1]):
                expected, got = np.asarray(a, np.float64), np.asarray(found, np.float64)
                np.testing.assert_allclose(got, expected, tolerance, tolerance, err_msg=name)
    assert jax.export.export(jitted)(args).mlir_module_serialized
    return graphs
