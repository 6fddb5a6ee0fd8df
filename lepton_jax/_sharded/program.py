"""A call's program, spread over a mesh: traced, rewritten, laid out, and jitted."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from lepton_jax._options import Options
from lepton_jax._sharded.agreeing import agree
from lepton_jax._sharded.calls import Call
from lepton_jax._sharded.decision import Decision
from lepton_jax._sharded.donating import donated
from lepton_jax._sharded.judging import judged, platform_of
from lepton_jax._sharded.meeting import group_of, owners
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.placing import as_global, check_parts, misplaced, place, sent
from lepton_jax._sharded.question import Question
from lepton_jax._sharded.request import OpenMesh, Spread
from lepton_jax._sharded.rounds import decide_in_rounds
from lepton_jax._sharded.running import Runner
from lepton_jax._stage import Program, manager_for
from lepton_jax.ir import _jax
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.paths import choose
from lepton_jax.parallel.meshes import AnyMesh, automatic_axes


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
        parts: how many processes there are.
        donated: which of them are donated.
        tree: the tree of the results.
        out_avals: their abstract values.
        noted: what the call noted when it was traced, see `Call.finish`.
        placed: where each array was last found to lie right, see `place`.
        agreed: whether the processes that run it have compared it; empty until they have.
    """

    program: Program
    decision: Decision
    jitted: Any
    within: Any
    inputs: tuple[NamedSharding, ...]
    outputs: tuple[NamedSharding, ...]
    local: tuple[bool, ...]
    parts: int
    donated: tuple[bool, ...]
    tree: Any
    out_avals: Sequence[Any]
    noted: list[Any]
    placed: list[Any] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)

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
            ValueError: the mesh has no devices, or processes give other arrays or lay it out otherwise.
        """
        return self.parted(self._moved(leaves))

    def on_mesh(self, leaves: Sequence[Any]) -> list[Any]:
        """The arrays of a call on the mesh, host arrays too.

        Raises:
            ValueError: as `arrays`.
        """
        moved = self._moved(leaves)
        if all(sharding.is_fully_addressable for sharding in self.inputs[:1]):
            return jax.device_put(moved, list(self.inputs))  # type: ignore[no-any-return]
        return [sent(leaf, wanted) for leaf, wanted in zip(moved, self.inputs, strict=True)]

    def _moved(self, leaves: Sequence[Any]) -> list[Any]:
        """The arrays that lie elsewhere are moved, but for those that `jax.jit` takes as they are."""
        self.check_devices()
        if not self.agreed:
            self.agree(leaves)
        return place(leaves, self.inputs, self.local, self.parts, self.placed, self.decision.paths)

    def agree(self, leaves: Sequence[Any]) -> None:
        """Compare with the other processes, the first time that the program runs.

        Raises:
            ValueError: they give other arrays or lay it out otherwise, or its parts come in several orders.
            ProcessError: another process does not begin the program in time.
        """
        if (group := group_of(self.decision.on)) is not None:
            with group.lock:
                if self.agreed:
                    return
                agree(group, self.program.name, self.decision, leaves, self.local)
                check_parts(leaves, self.inputs, self.local, self.parts, self.decision.paths)
        self.agreed.append(True)

    def lie_right(self, leaves: Sequence[Any]) -> bool:
        """Whether the arrays of a call can be given to the program as they are."""
        return not any(self.local) and not misplaced(leaves, self.inputs, self.placed)

    def check_devices(self) -> None:
        """Raise where there are no devices.

        Raises:
            ValueError: the mesh is abstract.
        """
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


Decides = Callable[[Question, Callable[[], Decision]], Decision]
"""Takes a decision: what is asked, and what decides it here."""


def lay_out(
    call: Call,
    options: Options,
    spread: Spread,
    mesh: AnyMesh | OpenMesh,
    name: str,
    decides: Decides = lambda question, here: here(),
) -> Laid:
    """Trace a call, rewrite it, and lay it out on a mesh, or on the one that is found to be the best.

    Args:
        decides: asked how it lies, when it is traced; by default it is decided here.

    Raises:
        ValueError: what the user says of the mesh does not fit the program.
        PassError: a pass failed and the options are strict.
    """
    with traced_on(mesh):
        return _lay_out(call, options, spread, mesh, name, decides)


def _lay_out(
    call: Call, options: Options, spread: Spread, mesh: AnyMesh | OpenMesh, name: str, decides: Decides
) -> Laid:
    leaves = call.names()
    paths = tuple(leaf.path for leaf in leaves)
    parts = len(owners(mesh)) or jax.process_count()
    local = _chosen(spread.sharding.local, paths, "local")
    shapes = [as_global(leaf, own, parts) for leaf, own in zip(call.leaves, local, strict=True)]
    start = time.perf_counter()
    call.run.__name__ = name
    jaxpr, out = jax.make_jaxpr(call.run, return_shape=True)(*shapes)
    trace_seconds = time.perf_counter() - start
    params = _params(options, leaves, call)
    graph, report = manager_for(options).run(jaxpr, name, params, paths if options.params else ())
    inline_calls(graph)
    report.trace_seconds = trace_seconds
    carried = None
    if call.served is not None and not isinstance(mesh, OpenMesh):
        carried = call.served.carried(mesh)
    question = Question(graph, leaves, call.leaves, spread, mesh, params, carried)

    def here() -> Decision:
        found = decide_in_rounds(question)
        gone = donated(found, leaves, call.arguments, options, spread)
        return judged(found, spread, functools.partial(_lowered, jaxpr=jaxpr, options=options, gone=gone))

    decision = decides(question, here)
    gone = donated(decision, leaves, call.arguments, options, spread)
    runner = Runner.of(decision, jaxpr, options, gone)
    report.notes += [*decision.notes, f"shard: {runner.constraints} layouts written into the program"]
    return Laid(
        Program(_jax.forget_tracers(jaxpr), runner.graph, report, name, options),
        decision,
        runner.jitted,
        runner.within,
        tuple(runner.inputs),
        tuple(runner.outputs),
        local if parts > 1 else (False,) * len(local),
        parts,
        gone,
        jax.tree.structure(out),
        jax.tree.leaves(out),
        call.noted,
    )


def _lowered(decision: Decision, jaxpr: Any, options: Options, gone: Sequence[bool]) -> Any:
    """The program of a decision, lowered for the devices of its mesh."""
    runner = Runner.of(decision, jaxpr, options, gone)
    shapes: tuple[list[Any], list[Any]] = ([], [])
    for value, is_gone in zip(decision.graph.inputs, gone, strict=True):
        shapes[0 if is_gone else 1].append(_shape(value.aval))
    platform = platform_of(runner.mesh) or jax.default_backend()
    return runner.jitted.trace(*shapes).lower(lowering_platforms=(platform,))


def traced_on(mesh: AnyMesh | OpenMesh) -> contextlib.AbstractContextManager[Any]:
    """Where a program is traced: as it stands, unless JAX would keep layouts in the types of its arrays."""
    around = jax.sharding.get_abstract_mesh()
    if around.empty or all(kind is AxisType.Auto for kind in around.axis_types):
        return contextlib.nullcontext()
    known = around if isinstance(mesh, OpenMesh) else mesh.abstract_mesh
    return jax.sharding.use_abstract_mesh(automatic_axes(known))


def _params(options: Options, leaves: Sequence[Leaf], call: Call) -> frozenset[int]:
    """The positions of the arrays that `params=` chooses, or that were prepared."""
    if call.served is not None:
        return frozenset(range(call.served.count))
    if not options.params:
        return frozenset()
    arguments = list(dict.fromkeys((*call.arguments, *(leaf.argument for leaf in leaves))))
    wanted = [arguments[each] if isinstance(each, int) else each for each in options.params]
    return choose(wanted, [leaf.path for leaf in leaves], "params")


def _chosen(patterns: Sequence[str], paths: Sequence[str], what: str) -> tuple[bool, ...]:
    found = choose(patterns, paths, what) if patterns else frozenset()
    return tuple(i in found for i in range(len(paths)))


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))
