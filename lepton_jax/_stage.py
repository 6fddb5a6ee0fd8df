"""One staging of a function: trace it, run the passes, re-evaluate it under the trace that is running."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax

from lepton_jax._inputs import name_inputs
from lepton_jax._options import Options, StaticArguments
from lepton_jax._sharded.hints import droppers
from lepton_jax.ir import _jax, collection
from lepton_jax.ir.cost import program_seconds
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite import Instrument, PassManager, Pipeline, Report
from lepton_jax.targets import get_target


class EvaluationFailed(Exception):
    """The rewritten program could not be evaluated, though the passes had not failed.

    Attributes:
        has_effects: whether the program has effects, part of which may be in the running trace by now.
    """

    def __init__(self, message: str, has_effects: bool) -> None:
        super().__init__(message)
        self.has_effects = has_effects


@dataclass(frozen=True)
class Program:
    """A function traced and optimised at one set of shapes.

    Attributes:
        jaxpr: as JAX traced it.
        graph: as the passes left it.
        report: what they did.
        name: the function's name.
        options: what Lepton was told to do with it.
    """

    jaxpr: Any
    graph: Graph
    report: Report
    name: str
    options: Options

    @property
    def graph_before(self) -> Graph:
        """The program before the passes."""
        return from_jaxpr(self.jaxpr, self.name)

    def predicted(self) -> tuple[float, float]:
        """Estimated seconds on the target: of the program as XLA runs it by itself, and as rewritten.

        XLA too leaves out what nobody reads, computes once what is written twice, and takes out of loops
        what does not change in them, so none of this counts as saved.
        """
        rates = get_target(self.options.target)
        manager = PassManager(Pipeline.parse(_XLA_DOES), rates, self.options.level)
        plain, _ = manager.run(self.jaxpr, self.name)
        return program_seconds(plain, rates), program_seconds(self.graph, rates)


_XLA_DOES: Final = "cleanup,invariant"


def manager_for(
    options: Options,
    *,
    pipeline: Pipeline | None = None,
    explain: bool = False,
    instruments: Sequence[Instrument] = (),
) -> PassManager:
    """The pass manager that the options ask for, or one for another pipeline; hints count on a mesh only."""
    pipeline = options.pipeline if pipeline is None else pipeline
    if options.spread is None:
        instruments = (*instruments, *droppers())
    else:
        pipeline = pipeline.for_mesh()
    return PassManager(
        pipeline,
        get_target(options.target),
        options.level,
        strict=options.is_strict,
        explain=explain,
        instruments=instruments,
    )


def trace_call(
    fun: Callable[..., Any], static: StaticArguments, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """The jaxpr of a call, and the tree of its results."""
    fixed = {key: value for key, value in kwargs.items() if key in static.names}
    free = {key: value for key, value in kwargs.items() if key not in static.names}
    callee = functools.partial(fun, **fixed) if fixed else fun
    numbers = tuple(i for i in range(len(args)) if i in static.positions)
    jaxpr, shapes = jax.make_jaxpr(callee, static_argnums=numbers, return_shape=True)(*args, **free)
    return jaxpr, jax.tree.structure(shapes)


def dynamic_leaves(static: StaticArguments, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arrays of a call, in the order of the jaxpr's inputs."""
    positional = [value for i, value in enumerate(args) if i not in static.positions]
    named = {key: value for key, value in kwargs.items() if key not in static.names}
    return jax.tree.leaves((positional, named))


def call_key(static: StaticArguments, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What tells one staging from another: trees, abstract values, static arguments."""
    fixed: list[Any] = [(i, value) for i, value in enumerate(args) if i in static.positions]
    fixed += [(k, v) for k, v in sorted(kwargs.items()) if k in static.names]
    leaves, tree = jax.tree.flatten(
        (
            [value for i, value in enumerate(args) if i not in static.positions],
            {k: v for k, v in kwargs.items() if k not in static.names},
        )
    )
    return (tuple(fixed), tree, tuple(map(kind_of, leaves)), _jax.x64_enabled())


def kind_of(leaf: Any) -> tuple[Any, Any, bool]:
    """The shape, dtype and weak type of an array, a number or a `jax.ShapeDtypeStruct`."""
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return aval.shape, aval.dtype, getattr(aval, "weak_type", False)


def stage(
    fun: Callable[..., Any],
    options: Options,
    static: StaticArguments,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[Any, Program]:
    """Optimise a call and evaluate it.

    Returns:
        The call's result under the running trace, and the program.

    Raises:
        EvaluationFailed: the rewritten program could not be evaluated.
        FloatingPointError: it gives a NaN or an infinity, and JAX was told to look for them.
        PassError: a pass failed and the options are strict.
    """
    start = time.perf_counter()
    jaxpr, out_tree = trace_call(fun, static, args, kwargs)
    trace_seconds = time.perf_counter() - start
    name = getattr(fun, "__name__", "f")
    inputs = name_inputs(fun, options.params, static, args, kwargs)
    graph, report = manager_for(options).run(jaxpr, name, inputs.params, inputs.paths)
    report.trace_seconds = trace_seconds
    try:
        with collection.paused():
            results = evaluate_as(jaxpr, graph, dynamic_leaves(static, args, kwargs))
    except FloatingPointError:  # of `jax_debug_nans`, which looks for it by running the function step by step
        raise
    except Exception as error:
        raise EvaluationFailed(f"{type(error).__name__}: {error}", bool(jaxpr.effects)) from error
    jaxpr = _jax.forget_tracers(jaxpr)
    forget_tracers(graph)
    return jax.tree.unflatten(out_tree, results), Program(jaxpr, graph, report, name, options)


def evaluate_as(jaxpr: Any, graph: Graph, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of a graph that was made of a jaxpr, with the types that they have in the jaxpr."""
    results = evaluate(graph, [_as_strong(array) for array in arrays])
    return [_as_traced(result, aval) for result, aval in zip(results, jaxpr.out_avals, strict=True)]


def _as_strong(leaf: Any) -> Any:
    """An input without its weak type; the passes drop the conversions that did this where the type matters.

    Without it the gradient by a Python number would be no weak number, and a tangent could be one.
    """
    aval = jax.typeof(leaf)
    return _jax.set_weak_type(leaf, False) if _jax.is_array_aval(aval) and aval.weak_type else leaf


def _as_traced(result: Any, aval: Any) -> Any:
    """A result with the type it had before: weak types are not kept by the passes."""
    found = jax.typeof(result)
    if not _jax.is_array_aval(aval) or _jax.is_extended(aval.dtype):
        return result
    if found.shape != aval.shape or found.dtype != aval.dtype:
        raise TypeError(f"a result became {found.str_short()}, it was {aval.str_short()}")
    return result if found.weak_type == aval.weak_type else _jax.set_weak_type(result, aval.weak_type)


def forget_tracers(graph: Graph) -> None:
    """Put shapes in place of constants that belong to an outer trace, so that it can end."""
    for inner in graph.graphs():
        for node in (*inner, inner.ret):
            for value in node.operands:
                if value.is_const and isinstance(value.const, _jax.Tracer):
                    value.const = jax.ShapeDtypeStruct(value.shape, value.dtype)
