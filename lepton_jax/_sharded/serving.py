"""Prepared parameters on a mesh: `prepare` lays them out, `apply` runs on them where they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from lepton_jax._bound import Bound
from lepton_jax._inputs import argument_names
from lepton_jax._options import Options, StaticArguments
from lepton_jax._prepare import Preparer, late_arguments
from lepton_jax._prepared import Form, Prepared, PrepareError
from lepton_jax._sharded.agreeing import agree_on_values
from lepton_jax._sharded.calls import Call, flatten
from lepton_jax._sharded.carrying import Served, carry
from lepton_jax._sharded.meeting import group_of
from lepton_jax._sharded.naming import Leaf
from lepton_jax._sharded.placing import sent
from lepton_jax._sharded.program import Laid, traced_on
from lepton_jax._sharded.question import Carried
from lepton_jax._sharded.request import OpenMesh, Spread
from lepton_jax._sharded.run import MeshJit
from lepton_jax._sharded.sharing import Shared
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.inline import copy_graph
from lepton_jax.ir.paths import matches
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import AnyMesh, automatic
from lepton_jax.parallel.propagation import propagate
from lepton_jax.rewrite import Pipeline

Whole = tuple[Sequence[Any], Mapping[str, Any]]


class MeshPreparer(Preparer):
    """`prepare` and `apply` of one function whose programs are spread over a mesh.

    The program that takes the prepared parameters is laid out first; they are computed where it wants them.
    Shapes in place of parameters give shapes, with their shardings, so that a plan needs no arrays.

    Args:
        fun: the function.
        options: what to do with it.
        static: its static arguments.
        spread: how it is spread.
    """

    def __init__(
        self, fun: Callable[..., Any], options: Options, static: StaticArguments, spread: Spread
    ) -> None:
        super().__init__(fun, options, static)
        self._spread = spread

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any], form: Form | None = None) -> Bound:
        """As `Preparer.bound`."""
        mesh = self._spread.mesh
        with traced_on(mesh if isinstance(mesh, OpenMesh) else self._spread.get_mesh()):
            return super().bound(args, kwargs, form)

    def _holds_arrays(self, given: Sequence[Any]) -> bool:
        shapes = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in given]
        if all(shapes):
            return False
        if any(shapes):
            raise PrepareError("prepare is given some parameters and the shapes of others")
        return True

    def _run_prepare(
        self, bound: Bound, given: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Prepared:
        avals = [value.aval for value in bound.parts.prepare.outputs]
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in avals]
        prepared = Prepared(shapes, bound.form)
        late, named = late_arguments(bound.form, args, kwargs)
        are_shapes = bool(given) and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in given)
        laid = self.jitted(prepared).laid(prepared, late, named, (args, kwargs), is_run=not are_shapes)
        wanted = laid.inputs[: len(shapes)]
        if are_shapes:
            placed = [
                jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w)
                for s, w in zip(shapes, wanted, strict=True)
            ]
            return prepared.with_arrays(placed)
        laid.check_devices()
        found = [*given, *bound.seen]
        if (group := group_of(laid.decision.on)) is not None:
            paths = [bound.paths[i] for i in sorted(bound.params)]
            paths += [f"calibration/{i}" for i in range(len(bound.seen))]
            agree_on_values(group, f"prepare of {laid.program.name}", paths, found)
        return prepared.with_arrays(_on_mesh(bound, found, laid, wanted))

    def _new_jit(self, places: Sequence[int]) -> Any:
        return MeshApply(self, places, self._fun, self._options, self._static, self._spread)


def _on_mesh(bound: Bound, given: Sequence[Any], laid: Laid, wanted: Sequence[NamedSharding]) -> list[Any]:
    """Run `prepare` on a mesh: parameters that do not lie on it are brought where it needs their parts."""
    graph = copy_graph(bound.parts.prepare)
    inline_calls(graph)
    mesh = automatic(wanted[0].mesh)
    layouts = {
        value: Layout.from_spec(sharding.spec, value.ndim)
        for value, sharding in zip(graph.outputs, wanted, strict=True)
        if not value.is_const
    }
    found = propagate(graph, layouts, laid.decision.mesh)
    placed = [
        leaf if _lies_on(leaf, mesh) else sent(leaf, NamedSharding(mesh, found[value].spec()))
        for leaf, value in zip(given, graph.inputs, strict=True)
    ]

    def prepare(*params: Any) -> list[Any]:
        return evaluate(bound.parts.prepare, params)

    out = [NamedSharding(mesh, sharding.spec) for sharding in wanted]
    arrays = jax.jit(prepare, out_shardings=out)(*placed)
    return list(arrays) if mesh == wanted[0].mesh else list(jax.device_put(arrays, list(wanted)))


def _lies_on(leaf: Any, mesh: AnyMesh) -> bool:
    """Whether an array lies on all devices of a mesh already."""
    if not isinstance(leaf, jax.Array):
        return False
    here = leaf.sharding
    if isinstance(here, NamedSharding) and not isinstance(mesh, AbstractMesh):
        return isinstance(here.mesh, Mesh) and here.mesh == mesh
    return isinstance(here, NamedSharding)


class MeshApply(MeshJit):
    """`apply` over a mesh, as a function of prepared parameters and the other arguments.

    Prepared parameters of one form lie alike at all shapes of the others: as the first program wants them.

    Args:
        preparer: of the function.
        places: where its parameters stand among its arguments.
        fun: the function.
        options: how to optimise it.
        static: its static arguments.
        spread: how it is spread.
    """

    def __init__(
        self,
        preparer: MeshPreparer,
        places: Sequence[int],
        fun: Callable[..., Any],
        options: Options,
        static: StaticArguments,
        spread: Spread,
    ) -> None:
        moved = frozenset(i - sum(p < i for p in places) + 1 for i in static.positions)
        options = replace(options, pipeline=Pipeline(()), params=(), verify=False, measure=False)
        here = StaticArguments(moved, static.names)
        super().__init__(preparer.run, options, here, spread, lambda program: None)
        self._name = getattr(fun, "__name__", "f")
        self._preparer, self._places = preparer, places
        self._whole, self._whole_static = fun, static
        self._lying: dict[Form, tuple[Layout, ...]] = {}

    def laid(
        self, prepared: Prepared, late: Sequence[Any], named: Mapping[str, Any], whole: Whole, is_run: bool
    ) -> Laid:
        """The program of a call, laid out.

        Args:
            prepared: shapes.
            late: the other arguments.
            named: those given by name.
            whole: the arguments of the function itself.
            is_run: whether parameters are prepared for it now, in all processes of the mesh.
        """
        call = self._flat((prepared, *late), named, whole)
        return self._of_all(call, is_run=False) if is_run else self._of(call)

    def _flat(self, args: Sequence[Any], kwargs: Mapping[str, Any], whole: Whole | None = None) -> Call:
        prepared = args[0]
        if not isinstance(prepared, Prepared):
            raise PrepareError(f"apply takes what prepare returned, not {type(prepared).__name__}")
        names = self._names_of(len(args))
        late = ["prepared", *(name for i, name in enumerate(names) if i not in self._places)]
        call = flatten(self._fun, self._static, late, args, kwargs, as_trees=True)
        form = prepared.form

        def whole_call() -> Whole:
            return self._preparer.completed(prepared, args[1:], kwargs) if whole is None else whole

        def bound() -> Bound:
            return self._preparer.bound(*whole_call(), form)

        def carried(mesh: AnyMesh) -> Carried:
            return self._carried(bound(), whole_call(), mesh)

        def leaves() -> list[Leaf]:
            return [*(Leaf(name, "prepared") for name in form.names), *call.names()[len(form.names) :]]

        served = Served(form, len(form.names), bound, carried)
        return replace(call, names=leaves, arguments=tuple(names), served=served)

    def _names_of(self, count: int) -> list[str]:
        return argument_names(self._whole, count - 1 + len(self._places))

    def _carried(self, bound: Bound, whole: Whole, mesh: AnyMesh) -> Carried:
        names = argument_names(self._whole, len(whole[0]))
        call = flatten(self._whole, self._whole_static, names, *whole, as_trees=True)
        found = carry(bound, call.names(), call.leaves, self._spread, mesh)
        known = self._lying.get(bound.form)
        return found if known is None else replace(found, layouts=dict(enumerate(known)))

    def _lay(self, call: Call, shared: Shared | None = None) -> Laid:
        served = call.served
        assert served is not None
        local = self._spread.sharding.local
        if any(matches(pattern, name) for pattern in local for name in served.form.names):
            raise PrepareError("local: each process prepares whole parameters; leave them out of it")
        laid = super()._lay(call, shared)
        lying = tuple(laid.decision.inputs()[: served.count])
        if shared is not None or served.form not in self._lying:
            self._lying[served.form] = lying
        served.bound().program.report.notes += laid.program.report.notes
        return laid
