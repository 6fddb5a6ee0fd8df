"""`jax.jit` over a mesh: one laid-out program for each set of shapes."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax

from lepton_jax._inputs import argument_names
from lepton_jax._options import Options, StaticArguments
from lepton_jax._sharded.calls import Call, flatten
from lepton_jax._sharded.direct import DirectCalls
from lepton_jax._sharded.program import Laid, lay_out
from lepton_jax._sharded.request import OpenMesh, Spread
from lepton_jax._stage import Program
from lepton_jax.parallel.meshes import AnyMesh
from lepton_jax.parallel.plan import Plan

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
        laid = self._of(call)
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
        return call.restore(self._of(call).on_mesh(call.leaves))

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
        """The program of a call, made if it is not there."""
        known = self._laid.get(call.key)
        if known is not None:
            return known
        laid = self._lay(call)
        with self._lock:
            self._laid[call.key] = laid
            if len(self._laid) > _MOST_PROGRAMS:
                self._laid.popitem(last=False)
        self._note(laid.program)
        return laid

    def _lay(self, call: Call) -> Laid:
        given = self._spread.mesh
        if self._mesh is None and not isinstance(given, OpenMesh):
            self._mesh = self._spread.get_mesh()
        mesh = given if self._mesh is None and isinstance(given, OpenMesh) else self._mesh
        assert mesh is not None
        laid = lay_out(call, self._options, self._spread, mesh, self._name)
        self._mesh = laid.decision.on  # one that was found is kept for all shapes
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
