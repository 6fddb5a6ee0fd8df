"""What every pass is held to: same numbers, under every transformation, and twice equals once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax._reference import in_float64
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics.compare import compare_trees
from lepton_jax.rewrite import CheckStructure, PassManager, Pipeline, Report
from lepton_jax.targets import get_target


def run(
    fun: Callable[..., Any], *args: Any, passes: str, level: str = "reassociate", target: str = "cpu"
) -> tuple[Graph, Report]:
    """The rewritten graph of a function at these arguments, and the report."""
    return rewrite_jaxpr(jax.make_jaxpr(fun)(*args), getattr(fun, "__name__", "f"), passes, level, target)


def rewrite_jaxpr(
    closed: Any, name: str, passes: str, level: str = "reassociate", target: str = "cpu"
) -> tuple[Graph, Report]:
    """A closed jaxpr after a pipeline that checks its structure at every step."""
    manager = PassManager(
        Pipeline.parse(passes),
        get_target(target),
        level,  # type: ignore[arg-type]
        strict=True,
        instruments=[CheckStructure()],
    )
    return manager.run(closed, name)


def optimised(
    fun: Callable[..., Any], *args: Any, passes: str, level: str = "reassociate", target: str = "cpu"
) -> Graph:
    """The rewritten graph of a function at these arguments."""
    return run(fun, *args, passes=passes, level=level, target=target)[0]


def fired(fun: Callable[..., Any], *args: Any, passes: str, level: str = "reassociate") -> dict[str, int]:
    """How often each rule fired."""
    return run(fun, *args, passes=passes, level=level)[1].rules


def same(
    fun: Callable[..., Any],
    *args: Any,
    passes: str,
    level: str = "reassociate",
    grad: bool = True,
    vmap: bool = True,
    export: bool = True,
) -> Graph:
    """Assert that a function keeps its meaning: value, jit, gradient, vmap, export, and twice equals once.

    Args:
        fun: a function of arrays that returns an array or a tree of them.
        args: arrays.
        grad: compare the gradients with respect to all floating point arguments too.
        vmap: compare under vmap over two stacked copies of the arguments.
        export: check that `jax.export` takes it.

    Returns:
        The rewritten graph.
    """
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    tree = jax.tree.structure(shapes)
    graph, _ = rewrite_jaxpr(closed, "f", passes, level)
    flat = to_callable(graph)

    def rewritten(*args: Any) -> Any:
        return jax.tree.unflatten(tree, map(jnp.asarray, flat(*jax.tree.leaves(args))))

    wide = in_float64(from_jaxpr(closed))
    reference = jax.tree.unflatten(tree, wide(*jax.tree.leaves(args)))
    moving = tuple(i for i, a in enumerate(args) if jnp.issubdtype(jnp.result_type(a), jnp.floating))
    stacked = [jnp.stack([jnp.asarray(a)] * 2) for a in args] if vmap else []

    def views(f: Callable[..., Any], args: Any, stacked: Any) -> dict[str, Any]:
        found = {"value": f(*args)}
        if grad and moving:
            found["gradient"] = gradient(f, moving)(*args)
        if stacked:
            found["vmap"] = jax.vmap(f)(*stacked)
        return found

    # In one program, because nearly all of the time goes to compiling.
    both = jax.jit(lambda *given: (views(fun, *given), views(rewritten, *given)))
    expected, result = both(args, stacked)
    check(expected.pop("value"), result.pop("value"), reference, exact=level == "exact")
    for name, array in expected.items():
        check(array, result[name])
    if export:
        assert jax.export.export(jax.jit(rewritten))(*args).mlir_module()
    traced = jax.make_jaxpr(flat)(*closed.in_avals)  # JAX may order the constants of a loop anew
    again, _ = rewrite_jaxpr(traced, "f", passes, level)
    assert again.to_text() in (graph.to_text(), from_jaxpr(traced, "f").to_text()), "twice is not once"
    return graph


def check(expected: Any, result: Any, reference: Any = None, exact: bool = False) -> None:
    """Assert that two results are equal up to rounding."""
    difference = compare_trees(expected, result, reference, exact=exact)
    assert difference.ok, str(difference)


def bitwise(fun: Callable[..., Any], *args: Any, passes: str) -> None:
    """Assert that at level `exact` every bit stays, signs of zeros and NaN included, op by op."""
    flat = to_callable(optimised(fun, *args, passes=passes, level="exact"))
    plain = to_callable(from_jaxpr(jax.make_jaxpr(fun)(*args)))
    leaves = jax.tree.leaves(args)
    for a, b in zip(plain(*leaves), flat(*leaves), strict=True):
        left, right = np.asarray(a), np.asarray(b)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
        if jnp.issubdtype(left.dtype, jnp.floating):
            np.testing.assert_array_equal(np.signbit(left), np.signbit(right))


def gradient(fun: Callable[..., Any], argnums: tuple[int, ...]) -> Callable[..., Any]:
    """The gradient of the sum of all float results, with respect to some arguments."""

    def total(*args: Any) -> Any:
        floats = [o for o in jax.tree.leaves(fun(*args)) if jnp.issubdtype(o.dtype, jnp.floating)]
        return sum((jnp.sum(o.astype(jnp.float32)) for o in floats), jnp.zeros(()))

    return jax.jit(jax.grad(total, argnums))
