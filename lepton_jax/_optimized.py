"""What `lepton.optimize` returns: a callable beside `jax.jit`."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

import jax

from lepton_jax import _nnx
from lepton_jax._checked import CheckedCalls
from lepton_jax._explain import Explanation, explain
from lepton_jax._options import Options, StaticArguments
from lepton_jax._prepare import Preparer
from lepton_jax._prepared import Prepared
from lepton_jax._stage import EvaluationFailed, Program, call_key, stage
from lepton_jax._traced import Traced
from lepton_jax.rewrite import PassWarning, Report

if TYPE_CHECKING:
    from lepton_jax.parallel.plan import Plan

P = ParamSpec("P")
R = TypeVar("R")

_MOST_PROGRAMS: Final = 64


class _Again(Exception):
    """This trace is abandoned: the next one of the same call goes another way."""

    def __str__(self) -> str:
        return "Lepton could not trace this call as the ones before; call the function again"


Stage = Callable[..., tuple[Any, Program]]


class _Modules(_Again):
    """The arguments hold NNX modules: trace again, with their state passed in and out."""


def _detect_modules(
    fun: Callable[..., Any], options: Options, static: StaticArguments, args: Any, kwargs: Any
) -> tuple[Any, Program]:
    """`stage`, unless the arguments hold NNX modules."""
    if _nnx.holds_modules((args, kwargs)):
        raise _Modules
    return stage(fun, options, static, args, kwargs)


class Optimized(Generic[P, R]):
    """What `optimize` returns: a callable with the signature of the function it wraps.

    It follows `jax.stages`: `f.trace(*args).lower().compile()`, `f.lower(*args)`,
    `f.eval_shape(*args)`. `f.report` is the report of the latest trace.
    """

    __name__: str

    def __init__(self, fun: Callable[P, R], options: Options) -> None:
        functools.update_wrapper(self, fun)
        self.__wrapped__ = fun
        self.options = options
        self._static = StaticArguments.of(fun, options)
        self._programs: OrderedDict[Any, Program] = OrderedDict()
        self._plain: set[Any] = set()
        self._lock = threading.Lock()
        self._latest: Program | None = None
        self.preparer = self._new_preparer()

        self._jit: Any = self._over_mesh() if options.spread is not None else self._plain_jit()
        self._call: Callable[..., Any] = self._jit
        if options.spread is None and (options.verify or options.measure):
            self._call = CheckedCalls(fun, self._jit, self.trace, options, self._static)

    def _plain_jit(self) -> Any:
        return jax.jit(self._stager(_detect_modules), **self.options.jit_arguments)

    def _over_mesh(self) -> Any:
        """In place of `jax.jit`: each program is spread over the mesh that the options name."""
        from lepton_jax._sharded.run import MeshJit

        assert self.options.spread is not None
        jax.jit(self.__wrapped__, **self.options.jit_arguments)  # refuses arguments that the function has not
        return MeshJit(self.__wrapped__, self.options, self._static, self.options.spread, self._note)

    def _new_preparer(self) -> Preparer:
        if self.options.spread is None:
            return Preparer(self.__wrapped__, self.options, self._static)
        from lepton_jax._sharded.serving import MeshPreparer

        return MeshPreparer(self.__wrapped__, self.options, self._static, self.options.spread)

    def _note(self, program: Program) -> None:
        self._latest = program

    def _stager(self, run: Stage) -> Callable[..., Any]:
        """A function for `jax.jit` to trace: it optimises the call and evaluates it."""

        @functools.wraps(self.__wrapped__)
        def staged(*args: Any, **kwargs: Any) -> Any:
            return self._staged(run, args, kwargs)

        return staged

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the optimised function."""
        try:
            result = self._call(*args, **kwargs)
        except _Again:
            return self(*args, **kwargs)
        self._call_directly()
        return result  # type: ignore[no-any-return]

    def _call_directly(self) -> None:
        """From now on a call is a call of jit's own function, unless a trace may still be abandoned.

        Python looks a `__call__` up on the type, so this object gets a type of its own.
        """
        program = self._latest
        if self._call is self._jit and program is not None and not program.jaxpr.effects:
            own = {"__call__": staticmethod(self._jit), "__doc__": self.__doc__, "__module__": __name__}
            self.__class__ = type(Optimized.__name__, (Optimized,), own)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A method, when the function stands in a class."""
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<lepton.optimize of {getattr(self, '__name__', self.__wrapped__)}>"

    def _staged(self, run: Stage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = self._key(args, kwargs)
        if key in self._plain:
            return self.__wrapped__(*args, **kwargs)
        try:
            results, program = run(self.__wrapped__, self.options, self._static, args, kwargs)
        except _Modules:
            self._pass_modules()
            raise
        except EvaluationFailed as failure:
            if self.options.is_strict:
                raise
            warnings.warn(
                f"Lepton runs {self!r} as plain jax.jit: the rewritten program failed with {failure}",
                PassWarning,
                stacklevel=2,
            )
            self._plain.add(key)
            if failure.has_effects:  # what was evaluated until then must not happen
                raise _Again from failure
            return self.__wrapped__(*args, **kwargs)
        if self.options.params:
            self.preparer.note_call(args, kwargs)
        with self._lock:
            self._latest = self._programs[key] = program
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        return results

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call_key(self._static, args, kwargs)

    # Stages, as jax.jit has them

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """Trace at the shapes of the arguments (arrays or `jax.ShapeDtypeStruct`s)."""
        inner = self._stages("trace", args, kwargs)
        if self.options.spread is not None:
            return Traced(inner, inner.program)
        program = self._programs.get(self._key(args, kwargs))
        if program is None:  # traced by jit before, and forgotten here since
            fresh = Optimized(self.__wrapped__, self.options)
            return fresh.trace(*args, **kwargs)
        return Traced(inner, program)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Lower at the shapes of the arguments: a `jax.stages.Lowered`."""
        return self._stages("lower", args, kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the results, without running anything."""
        return self._stages("eval_shape", args, kwargs)

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """How the program is spread over the mesh at these shapes: layouts, collectives, times, memory.

        Args:
            args: arrays or `jax.ShapeDtypeStruct`s, or prepared parameters and the other arguments. Nothing
                is run.
            kwargs: as `args`.

        Raises:
            ValueError: the function was optimised without a mesh, or its sharding does not fit the program.
        """
        return self._on_mesh(args).plan(*args, **kwargs)  # type: ignore[no-any-return]

    def place(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The arguments with their arrays where the program wants them on the mesh.

        A call does this itself; it is for what shall lie so before, such as a state to restore a checkpoint
        into. Arrays that lie right already stay, the parts that processes give are joined.

        Args:
            args: arrays. NNX modules are updated.
            kwargs: arguments by keyword, which are not returned.

        Returns:
            `args`, those that hold arrays anew.

        Raises:
            ValueError: as `plan`; or the mesh has no devices.
        """
        return self._on_mesh(args).place(*args, **kwargs)  # type: ignore[no-any-return]

    def _on_mesh(self, args: tuple[Any, ...]) -> Any:
        if self.options.spread is None:
            raise ValueError(f"{self!r} has no mesh: lepton.optimize(f, mesh='data=8', shard='dp')")
        return self.jit_of(args[0]) if args and isinstance(args[0], Prepared) else self._jit

    def _stages(self, method: str, args: Any, kwargs: Any) -> Any:
        """Call a method of `self._jit`, again where the trace was abandoned for another way."""
        try:
            return getattr(self._jit, method)(*args, **kwargs)
        except _Again:
            return self._stages(method, args, kwargs)

    def _pass_modules(self) -> None:
        """From now on pass the state of NNX modules in and out."""
        self.__class__ = Optimized
        self._jit = self._call = _nnx.ModuleJit(
            self._stager(_nnx.stage_modules), self._stager(stage), self.options.jit_arguments
        )

    def clear_cache(self) -> None:
        """Forget all traces and compiled programs."""
        self.preparer = self._new_preparer()
        self._jit.clear_cache()
        self._programs.clear()
        self._plain.clear()
        if isinstance(self._call, CheckedCalls):
            self._call.clear_cache()

    # Binding time

    def prepare(self, *args: Any, **kwargs: Any) -> Prepared:
        """Run once what depends on the parameters alone (`params=` says which they are).

        Args:
            args: the parameters, when the function was called or traced before; or a whole call, in which
                everything but the parameters may be `jax.ShapeDtypeStruct`s.
            kwargs: as `args`.

        Returns:
            A `Prepared`: a pytree of the arrays that `apply` needs, such as quantised weights. On a mesh they
                lie where `apply` wants them; there shapes of parameters give shapes with their shardings.

        Raises:
            PrepareError: no parameters are named, they are a part of an argument, or the shapes of the
                other arguments are not known.

        Example:
            >>> import jax.numpy as jnp
            >>> import lepton_jax as lepton
            >>> f = lepton.optimize(lambda w, x: x @ (w * 2.0), params="w")
            >>> prepared = f.prepare(jnp.ones((2, 2)), jnp.ones((1, 2)))
            >>> prepared["w"].tolist(), f.apply(prepared, jnp.ones((1, 2))).tolist()
            ([[2.0, 2.0], [2.0, 2.0]], [[4.0, 4.0]])
        """
        return self.preparer.prepare(args, kwargs)

    def apply(self, prepared: Prepared, *args: Any, **kwargs: Any) -> R:
        """Run the function on prepared parameters and its other arguments.

        Raises:
            PrepareError: the parameters were prepared for a program that keeps them in another form.
        """
        return self.jit_of(prepared)(prepared, *args, **kwargs)  # type: ignore[no-any-return]

    def jit_of(self, prepared: Prepared) -> Any:
        """`apply` as JAX jitted it, with `lower`, `trace` and `eval_shape`.

        Raises:
            PrepareError: these are not prepared parameters.
        """
        return self.preparer.jitted(prepared)

    # Looking in

    @property
    def report(self) -> Report:
        """The report of the latest trace.

        Raises:
            ValueError: the function has not been traced yet.
        """
        latest = self._latest or self.preparer.latest
        if latest is None:
            raise ValueError(f"{self!r} has no report yet: call it or trace it first")
        return latest.report

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Which rules fire at these shapes, with the estimated saving, which nearly do, and why not."""
        name = getattr(self, "__name__", "f")
        return explain(self.__wrapped__, self.options, self._static, name, args, kwargs)
