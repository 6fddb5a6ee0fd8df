"""`jax.jit` over a mesh: one laid-out program for each set of shapes."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax

from lepton_jax._inputs import argument_names
from lepton_jax._options import Options, StaticArguments
from lepton_jax._sharded.calls import Call, flatten
from lepton_jax._sharded.direct import DirectCalls
from lepton_jax._sharded.meeting import group_of
from lepton_jax._sharded.program import Laid, lay_out
from lepton_jax._sharded.request import OpenMesh, Spread
from lepton_jax._sharded.sharing import Shared, is_searched, share
from lepton_jax._stage import Program
from lepton_jax.parallel.meshes import AnyMesh
from lepton_jax.parallel.plan import Plan

_LOG: Final = logging.getLogger("lepton")
_MOST_PROGRAMS: Final = 64


class MeshJit:
    """What `jax.jit` is to a function, with every program spread over a mesh.

    Args:
        fun: the function.
        options: how to optimise it.
        static: its static arguments.
        spread: how to spread it.
        note: told of each program that is made.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        options: Options,
        static: StaticArguments,
        spread: Spread,
        note: Callable[[Program], None],
    ) -> None:
        self._fun, self._options, self._static, self._spread = fun, options, static, spread
        self._note = note
        self._laid: OrderedDict[Any, Laid] = OrderedDict()
        self._lock = threading.Lock()
        self._mesh: AnyMesh | None = None
        self._choices: dict[Any, Callable[[Sequence[Any]], Any]] = {}
        self._direct = None if static.positions or static.names else DirectCalls()
        self._names = functools.cache(functools.partial(argument_names, fun))
        self._name = getattr(fun, "__name__", "f")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        if self._direct is not None and (known := self._direct(args, kwargs)) is not None:
            return known[0]
        call = self._flat(args, kwargs)
        laid = self._of_all(call)
        run = self._chosen(call, laid) if self._options.verify or self._options.measure else laid
        results = run(call.leaves)
        if self._direct is not None and run is laid and not call.has_modules:
            self._direct.note(args, kwargs, laid)
        return call.finish(results, laid.noted)

    def _chosen(self, call: Call, laid: Laid) -> Callable[[Sequence[Any]], Any]:
        """What runs for a call: the first one of its shapes decides."""
        found = self._choices.get(call.key)
        if found is not None:
            return found
        if any(isinstance(leaf, jax.core.Tracer) for leaf in call.leaves):
            return laid
        from lepton_jax._sharded.checking import choose_laid

        group = group_of(laid.decision.on)
        with contextlib.nullcontext() if group is None else group.lock:
            if (found := self._choices.get(call.key)) is not None:
                return found
            choice = choose_laid(call, laid, self._options)
            laid.program.report.notes += choice.notes
            self._choices[call.key] = choice.fun
            return choice.fun

    def trace(self, *args: Any, **kwargs: Any) -> MeshTraced:
        """As `jax.jit(fun).trace`."""
        laid = self._of(self._flat(args, kwargs))
        return MeshTraced(laid.jitted.trace(*laid.shapes()), laid, self._flat)

    def lower(self, *args: Any, **kwargs: Any) -> MeshLowered:
        """As `jax.jit(fun).lower`."""
        return self.trace(*args, **kwargs).lower()

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the results, and how they lie."""
        return self.trace(*args, **kwargs).out_info

    def place(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The arguments given by position, with their arrays where the program wants them."""
        call = self._flat(args, kwargs)
        return call.restore(self._of_all(call).on_mesh(call.leaves))

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """How the program is spread at these shapes."""
        laid = self._of(self._flat(args, kwargs))
        return laid.decision.plan([i for i, gone in enumerate(laid.donated) if gone])

    def clear_cache(self) -> None:
        """Forget all programs."""
        self._laid.clear()
        self._choices.clear()
        if self._direct is not None:
            self._direct.clear()

    def _flat(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        return flatten(self._fun, self._static, self._names(len(args)), args, kwargs)

    def _of(self, call: Call) -> Laid:
        """The program of a call, made if it is not there; no other process is asked."""
        known = self._laid.get(call.key)
        return self._keep(call, self._lay(call)) if known is None else known

    def _of_all(self, call: Call, is_run: bool = True) -> Laid:
        """The program of a call that all processes of the mesh make now, which have compared it.

        Args:
            is_run: whether the arrays of the call are there, to be compared too.
        """
        known = self._laid.get(call.key)
        if known is not None and known.agreed:
            return known
        group = group_of(self._given())
        if group is not None and any(isinstance(leaf, jax.core.Tracer) for leaf in call.leaves):
            if known is None and is_searched(self._spread):
                _LOG.warning(
                    "process %d decides alone how %r lies, which is traced: others may find other layouts; "
                    "call place first, with arrays as these",
                    *(group.here, self._name),
                )
            group = None
        if group is None:
            return self._of(call)
        with group.lock:
            known = self._laid.get(call.key)
            if known is not None and known.agreed:
                return known
            if is_searched(self._spread):
                laid = share(group, self._name, call, known, lambda shared: self._lay(call, shared))
                laid = laid if laid is known else self._keep(call, laid)
            else:
                laid = self._of(call)
            if is_run:
                laid.agree(call.leaves)
            return laid

    def _keep(self, call: Call, laid: Laid) -> Laid:
        with self._lock:
            self._laid[call.key] = laid
            if len(self._laid) > _MOST_PROGRAMS:
                kept = list(self._laid.items())[:-1]  # those that ran go in the same order in all processes
                del self._laid[next((key for key, each in kept if not each.agreed), kept[0][0])]
        self._note(laid.program)
        return laid

    def _given(self) -> AnyMesh | OpenMesh:
        """The mesh, or the devices of which one is made."""
        if isinstance(self._spread.mesh, OpenMesh):
            return self._spread.mesh
        if self._mesh is None:
            self._mesh = self._spread.get_mesh()
        return self._mesh

    def _lay(self, call: Call, shared: Shared | None = None) -> Laid:
        mesh = self._given()
        if self._mesh is not None and (shared is None or shared.group.leads):
            mesh = self._mesh  # one that was found is kept for all shapes
        decides = {} if shared is None else {"decides": shared}
        laid = lay_out(call, self._options, self._spread, mesh, self._name, **decides)
        self._mesh = laid.decision.on
        return laid


class _Stage:
    """A stage of JAX's, whose programs take and give flat lists, for the user's call."""

    def __init__(self, inner: Any, laid: Laid, flat: Callable[..., Call]) -> None:
        self._inner = inner
        self._laid = laid
        self._flat = flat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def program(self) -> Program:
        """The program, as traced and as rewritten."""
        return self._laid.program

    @property
    def out_tree(self) -> Any:
        """The tree of the results."""
        return self._laid.tree

    @property
    def out_info(self) -> Any:
        """The shapes and dtypes of the results, and how they lie."""
        shapes = [
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
            for aval, sharding in zip(self._laid.out_avals, self._laid.outputs, strict=True)
        ]
        return jax.tree.unflatten(self._laid.tree, shapes)


class MeshTraced(_Stage):
    """As `jax.stages.Traced`."""

    def lower(self, **options: Any) -> MeshLowered:
        """As `jax.stages.Traced.lower`; for an abstract mesh by default on the platform that JAX runs on."""
        if self._laid.is_abstract:
            options.setdefault("lowering_platforms", (jax.default_backend(),))
        return MeshLowered(self._inner.lower(**options), self._laid, self._flat)


class MeshLowered(_Stage):
    """As `jax.stages.Lowered`."""

    def compile(self, *args: Any, **options: Any) -> MeshCompiled:
        """As `jax.stages.Lowered.compile`."""
        return MeshCompiled(self._inner.compile(*args, **options), self._laid, self._flat)


class MeshCompiled(_Stage):
    """As `jax.stages.Compiled`; it is called as the function is, static arguments included."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            TypeError: it was compiled for other shapes.
        """
        call = self._flat(args, kwargs)
        results = self._laid.results(self._inner(*self._laid.arrays(call.leaves)))
        return call.finish(results, self._laid.noted)
