"""A call's program, spread over a mesh: traced, rewritten, laid out, and jitted."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from lepton_jax._options import Options
from lepton_jax._sharded.calls import Call
from lepton_jax._sharded.deciding import Decision, decide
from lepton_jax._sharded.donating import donated
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.placing import as_global, place
from lepton_jax._sharded.request import Spread
from lepton_jax._stage import EvaluationFailed, Program, as_traced, manager_for
from lepton_jax.ir import _jax, collection
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.inline import copy_graph
from lepton_jax.ir.paths import choose
from lepton_jax.parallel._plan.identity import all_values
from lepton_jax.parallel.constraints import constrain
from lepton_jax.parallel.meshes import AnyMesh, automatic, automatic_axes
from lepton_jax.rewrite import PassWarning


@dataclass(frozen=True)
class Laid:
    """A program that was laid out at one set of shapes.

    Attributes:
        program: as traced, and as it runs: rewritten and with constraints.
        decision: how every array lies.
        jitted: the program under `jax.jit`, of the donated arrays and of the others.
        within: the same for a call under JAX's transformations, whose arrays cannot be moved before.
        inputs: the shardings of the arrays of the call.
        outputs: those of the results.
        local: which of them each process gives its own part of.
        donated: which of them are donated.
        tree: the tree of the results.
        out_avals: their abstract values.
        noted: what the call noted when it was traced, see `Call.finish`.
    """

    program: Program
    decision: Decision
    jitted: Any
    within: Any
    inputs: tuple[NamedSharding, ...]
    outputs: tuple[NamedSharding, ...]
    local: tuple[bool, ...]
    donated: tuple[bool, ...]
    tree: Any
    out_avals: Sequence[Any]
    noted: list[Any]
    placed: list[Any] = field(default_factory=list)

    @property
    def is_abstract(self) -> bool:
        """Whether there are no devices to run it on."""
        return any(isinstance(sharding.mesh, AbstractMesh) for sharding in self.inputs[:1])

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """The results of the program on the arrays of a call, as a tree."""
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self.results(self.within([], leaves))
        return self.results(self.jitted(*self.arrays(leaves)))

    def arrays(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The arrays of a call where they shall lie: those to donate, and the others.

        Raises:
            ValueError: the mesh has no devices.
        """
        self._check_devices()
        return self.parted(place(leaves, self.inputs, self.local, self.placed))

    def on_mesh(self, leaves: Sequence[Any]) -> list[Any]:
        """The arrays of a call on the mesh, host arrays too.

        Raises:
            ValueError: the mesh has no devices.
        """
        self._check_devices()
        return jax.device_put(place(leaves, self.inputs, self.local, self.placed), list(self.inputs))  # type: ignore[no-any-return]

    def _check_devices(self) -> None:
        if self.is_abstract:
            raise ValueError(
                "this program is planned for an abstract mesh, which has no devices: trace, lower and plan "
                "work; to run it give optimize a jax.sharding.Mesh"
            )

    def parted(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Those to donate, and the others."""
        given: tuple[list[Any], list[Any]] = ([], [])
        for leaf, gone in zip(leaves, self.donated, strict=True):
            given[0 if gone else 1].append(leaf)
        return given

    def shapes(self) -> tuple[list[Any], list[Any]]:
        """The shapes of the arrays of a call, those to donate and the others."""
        return self.parted([_shape(value.aval) for value in self.decision.graph.inputs])

    def results(self, flat: Sequence[Any]) -> Any:
        """The results as a tree of arrays."""
        return jax.tree.unflatten(self.tree, flat)


def lay_out(call: Call, options: Options, spread: Spread, mesh: AnyMesh, name: str) -> Laid:
    """Trace a call, rewrite it, and lay it out on a mesh.

    Raises:
        ValueError: what the user says of the mesh does not fit the program.
        PassError: a pass failed and the options are strict.
    """
    with _traced_on(mesh):
        return _lay_out(call, options, spread, mesh, name)


def _lay_out(call: Call, options: Options, spread: Spread, mesh: AnyMesh, name: str) -> Laid:
    leaves = call.names()
    paths = tuple(leaf.path for leaf in leaves)
    local = _chosen(spread.sharding.local, paths, "local")
    shapes = [as_global(leaf, own) for leaf, own in zip(call.leaves, local, strict=True)]
    start = time.perf_counter()
    call.run.__name__ = name
    jaxpr, out = jax.make_jaxpr(call.run, return_shape=True)(*shapes)
    trace_seconds = time.perf_counter() - start
    params = _params(options, leaves)
    graph, report = manager_for(options).run(jaxpr, name, params, paths if options.params else ())
    inline_calls(graph)
    report.trace_seconds = trace_seconds
    decision = decide(graph, leaves, call.leaves, spread, mesh, params)
    running, constraints = _constrained(decision, mesh)
    report.notes += [*decision.notes, f"shard: {constraints} layouts written into the program"]
    inputs = [NamedSharding(mesh, layout.spec()) for layout in decision.inputs()]
    outputs = [NamedSharding(mesh, layout.spec()) for layout in decision.outputs()]
    gone = donated(decision, leaves, options, spread)
    make = functools.partial(_runner, running, jaxpr, inputs, outputs, options, mesh)
    kept = tuple([s for s, g in zip(inputs, gone, strict=True) if g is want] for want in (True, False))
    return Laid(
        Program(_jax.forget_tracers(jaxpr), running, report, name, options),
        decision,
        jax.jit(make(gone, False), in_shardings=kept, out_shardings=outputs, donate_argnums=0),
        _within(make, inputs, outputs, mesh),
        tuple(inputs),
        tuple(outputs),
        local,
        gone,
        jax.tree.structure(out),
        jax.tree.leaves(out),
        call.noted,
    )


def _within(
    make: Callable[..., Any], inputs: Sequence[NamedSharding], outputs: Sequence[NamedSharding], mesh: AnyMesh
) -> Any:
    """The program for calls under JAX's transformations: it takes arrays from wherever they lie.

    Where JAX has layouts in its types, gradients need theirs, so arrays must lie as the program wants them.
    """
    run = make((False,) * len(inputs), True)
    if _is_explicit(mesh):
        return jax.jit(run, in_shardings=([], list(inputs)), out_shardings=list(outputs))
    return jax.jit(run)


def _runner(
    graph: Graph,
    jaxpr: Any,
    inputs: Sequence[NamedSharding],
    outputs: Sequence[NamedSharding],
    options: Options,
    mesh: AnyMesh,
    gone: Sequence[bool],
    is_within: bool,
) -> Callable[..., Any]:
    """The program as a function of donated and other arrays, for `jax.jit` to trace.

    Args:
        gone: which arrays are among the donated.
        is_within: whether the arrays come as they are, so that the program says itself how they lie.
    """

    def flat(arrays: Sequence[Any]) -> list[Any]:
        try:
            with collection.paused():
                found = evaluate(graph, arrays)
            return [as_traced(each, aval) for each, aval in zip(found, jaxpr.out_avals, strict=True)]
        except FloatingPointError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if options.is_strict or jaxpr.effects:
                raise EvaluationFailed(text, bool(jaxpr.effects)) from error
            warnings.warn(
                f"Lepton runs {graph.name} as it was traced: the rewritten program failed with {text}",
                PassWarning,
                stacklevel=2,
            )
            return _jax.eval_jaxpr(jaxpr, _jax.parts(jaxpr)[1], arrays)

    def run(donated: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        first, second = iter(donated), iter(others)
        arrays = [next(first if each else second) for each in gone]
        if _is_explicit(mesh):
            spread: list[Any] = jax.sharding.auto_axes(flat, out_sharding=list(outputs))(arrays)
            return spread
        if not is_within:
            return flat(arrays)
        return _told(flat(_told(arrays, inputs)), outputs)

    run.__name__ = run.__qualname__ = graph.name
    return run


def _told(arrays: Sequence[Any], shardings: Sequence[NamedSharding]) -> list[Any]:
    return [jax.lax.with_sharding_constraint(x, s) for x, s in zip(arrays, shardings, strict=True)]


def _constrained(decision: Decision, mesh: AnyMesh) -> tuple[Graph, int]:
    """A copy of the program with constraints in it, and how many."""
    copy = copy_graph(decision.graph)
    pairs = zip(all_values(decision.graph), all_values(copy), strict=True)
    layouts = {there: decision.assignment[here] for here, there in pairs if here in decision.assignment}
    return copy, constrain(copy, layouts, automatic(mesh))


def _is_explicit(mesh: AnyMesh) -> bool:
    return isinstance(mesh, Mesh) and any(kind is not AxisType.Auto for kind in mesh.axis_types)


def _traced_on(mesh: AnyMesh) -> contextlib.AbstractContextManager[Any]:
    """Where a program is traced: as it stands, unless JAX would keep layouts in the types of its arrays."""
    around = jax.sharding.get_abstract_mesh()
    if around.empty or all(kind is AxisType.Auto for kind in around.axis_types):
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(automatic_axes(mesh.abstract_mesh))


def _params(options: Options, leaves: Sequence[Leaf]) -> frozenset[int]:
    """The positions of the arrays that `params=` chooses."""
    if not options.params:
        return frozenset()
    arguments = list(dict.fromkeys(leaf.argument for leaf in leaves))
    wanted = [arguments[each] if isinstance(each, int) else each for each in options.params]
    return choose(wanted, [leaf.path for leaf in leaves], "params")


def _chosen(patterns: Sequence[str], paths: Sequence[str], what: str) -> tuple[bool, ...]:
    found = choose(patterns, paths, what) if patterns else frozenset()
    return tuple(i in found for i in range(len(paths)))


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))
