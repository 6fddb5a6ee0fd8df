"""A decision carried out: constraints written into its program, and the program under `jax.jit`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lepton_jax._options import Options
from lepton_jax._sharded.decision import Decision
from lepton_jax._stage import EvaluationFailed, evaluate_as
from lepton_jax.ir import _jax, collection
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.inline import copy_graph
from lepton_jax.parallel._plan.identity import all_values
from lepton_jax.parallel.constraints import constrain
from lepton_jax.parallel.meshes import AnyMesh, automatic
from lepton_jax.rewrite import PassWarning


@dataclass(frozen=True)
class Runner:
    """A decision carried out.

    Attributes:
        graph: with constraints in it.
        constraints: how many.
        mesh: JAX's.
        inputs, outputs: their shardings.
        jitted: the program of the donated arrays and the others.
        make: the program for `jax.jit`; see `_runner`.
    """

    graph: Graph
    constraints: int
    mesh: AnyMesh
    inputs: list[NamedSharding]
    outputs: list[NamedSharding]
    jitted: Any
    make: Callable[..., Any]

    @classmethod
    def of(cls, decision: Decision, jaxpr: Any, options: Options, gone: Sequence[bool]) -> Runner:
        """Carry out a decision.

        Args:
            decision: how every array lies; its mesh is known.
            jaxpr: the program as it was traced, which runs where the rewritten one fails.
            options: of the user.
            gone: which inputs are donated.
        """
        mesh = decision.on
        assert mesh is not None
        running, constraints = _constrained(decision, mesh)
        inputs = [NamedSharding(mesh, layout.spec()) for layout in decision.inputs()]
        outputs = [NamedSharding(mesh, layout.spec()) for layout in decision.outputs()]
        make = functools.partial(_runner, running, jaxpr, inputs, outputs, options, mesh)
        kept = tuple([s for s, g in zip(inputs, gone, strict=True) if g is want] for want in (True, False))
        jitted = jax.jit(make(gone, False), in_shardings=kept, out_shardings=outputs, donate_argnums=0)
        return cls(running, constraints, mesh, inputs, outputs, jitted, make)

    @property
    def within(self) -> Any:
        """The program for calls under JAX's transformations."""
        return _within(self.make, self.inputs, self.outputs, self.mesh)


def _within(
    make: Callable[..., Any], inputs: Sequence[NamedSharding], outputs: Sequence[NamedSharding], mesh: AnyMesh
) -> Any:
    """The program for calls under JAX's transformations: it takes arrays from wherever they lie.

    Where JAX has layouts in its types, gradients need theirs, so arrays must lie as the program wants them.
    """
    run = make((False,) * len(inputs), True)
    if is_explicit(mesh):
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
                return evaluate_as(jaxpr, graph, arrays)
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
        if is_explicit(mesh):
            typed = [_typed(each) for each in outputs]
            spread: list[Any] = jax.sharding.auto_axes(flat, out_sharding=typed)(arrays)
            return spread
        if not is_within:
            return flat(arrays)
        return _told(flat(_told(arrays, inputs)), outputs)

    run.__name__ = run.__qualname__ = graph.name
    return run


def _typed(sharding: NamedSharding) -> NamedSharding:
    """What JAX has of a sharding in the type of an array: its explicit axes."""
    mesh = sharding.mesh
    explicit = {
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    }

    def kept(names: Any) -> Any:
        return tuple(
            each for each in ((names,) if isinstance(names, str) else names or ()) if each in explicit
        )

    return NamedSharding(mesh, PartitionSpec(*map(kept, sharding.spec)))


def _told(arrays: Sequence[Any], shardings: Sequence[NamedSharding]) -> list[Any]:
    return [jax.lax.with_sharding_constraint(x, s) for x, s in zip(arrays, shardings, strict=True)]


def _constrained(decision: Decision, mesh: AnyMesh) -> tuple[Graph, int]:
    """A copy of the program with constraints in it, and how many."""
    copy = copy_graph(decision.graph)
    pairs = zip(all_values(decision.graph), all_values(copy), strict=True)
    layouts = {there: decision.assignment[here] for here, there in pairs if here in decision.assignment}
    return copy, constrain(copy, layouts, automatic(mesh))


def is_explicit(mesh: AnyMesh) -> bool:
    """Whether JAX keeps layouts in the types of its arrays on a mesh."""
    return isinstance(mesh, Mesh) and any(kind is not AxisType.Auto for kind in mesh.axis_types)
