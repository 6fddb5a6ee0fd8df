"""`lepton.optimize`: a drop-in beside `jax.jit`."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

import jax

from lepton_jax import _nnx
from lepton_jax._explain import Explanation
from lepton_jax._inputs import name_inputs
from lepton_jax._measure import Choice, choose
from lepton_jax._options import Names, Numbers, Options, Patterns, StaticArguments, make_options
from lepton_jax._prepare import Preparer
from lepton_jax._prepared import Prepared
from lepton_jax._stage import EvaluationFailed, Program, call_key, manager_for, stage, trace_call
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import PassWarning, Pipeline, Report

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


if TYPE_CHECKING:
    _Stage = jax.stages.Traced
else:
    _Stage = object


class Traced(_Stage):
    """A function traced at one set of shapes, as `jax.stages.Traced`, with what Lepton did to it.

    Attributes:
        graph: the program after the passes.
        report: what the passes did.
    """

    def __init__(self, inner: Any, program: Program) -> None:
        self._inner = inner
        self._program = program
        self.graph: Graph = program.graph
        self.report: Report = program.report

    @property
    def graph_before(self) -> Graph:
        """The program before the passes."""
        return self._program.graph_before

    def predicted(self) -> tuple[float, float]:
        """Estimated seconds on the target: of the program as XLA runs it by itself, and as rewritten."""
        return self._program.predicted()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


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
        self._choices: dict[Any, Choice] = {}
        self._lock = threading.Lock()
        self._latest: Program | None = None
        self.preparer = Preparer(fun, options, self._static)

        self._jit: Any = self._over_mesh() if options.spread is not None else self._plain_jit()
        self._call: Callable[..., Any] = self._checked if options.verify or options.measure else self._jit

    def _plain_jit(self) -> Any:
        return jax.jit(self._stager(_detect_modules), **self.options.jit_arguments)

    def _over_mesh(self) -> Any:
        """In place of `jax.jit`: each program is spread over the mesh that the options name."""
        from lepton_jax._sharded.run import MeshJit

        assert self.options.spread is not None
        return MeshJit(self.__wrapped__, self.options, self._static, self.options.spread, self._note)

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
            args: arrays or `jax.ShapeDtypeStruct`s. Nothing is run.
            kwargs: as `args`.

        Raises:
            ValueError: the function was optimised without a mesh, or its sharding does not fit the program.
        """
        return self._on_mesh().plan(*args, **kwargs)  # type: ignore[no-any-return]

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
        return self._on_mesh().place(*args, **kwargs)  # type: ignore[no-any-return]

    def _on_mesh(self) -> Any:
        if self.options.spread is None:
            raise ValueError(f"{self!r} has no mesh: lepton.optimize(f, mesh='data=8', shard='dp')")
        return self._jit

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
        self.preparer = Preparer(self.__wrapped__, self.options, self._static)
        self._jit.clear_cache()
        self._programs.clear()
        self._plain.clear()
        self._choices.clear()

    # Binding time

    def prepare(self, *args: Any, **kwargs: Any) -> Prepared:
        """Run once what depends on the parameters alone (`params=` says which they are).

        Args:
            args: the parameters, when the function was called or traced before; or a whole call, in which
                everything but the parameters may be `jax.ShapeDtypeStruct`s.
            kwargs: as `args`.

        Returns:
            A `Prepared`: a pytree of the arrays that `apply` needs, such as quantised weights.

        Raises:
            PrepareError: no parameters are named, they are a part of an argument, or the shapes of the
                other arguments are not known.

        Example:
            >>> import jax.numpy as jnp
            >>> f = optimize(lambda w, x: x @ (w * 2.0), params="w")
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

        report = Report()

        @functools.wraps(self.__wrapped__)
        def traced(*args: Any, **kwargs: Any) -> int:
            nonlocal report
            jaxpr, _ = trace_call(self.__wrapped__, self._static, args, kwargs)
            name = getattr(self, "__name__", "f")
            inputs = name_inputs(self.__wrapped__, self.options.params, self._static, args, kwargs)
            manager = manager_for(self.options, explain=True)
            graph, report = manager.run(jaxpr, name, inputs.params, inputs.paths)
            report.predicted = Program(jaxpr, graph, report, name, self.options).predicted()
            return 0

        statics = {k: v for k, v in self.options.jit_arguments.items() if k.startswith("static")}
        jax.jit(traced, **statics).trace(*args, **kwargs)
        return Explanation(report)

    # Checked calls: verify=True, measure=True

    def _checked(self, *args: Any, **kwargs: Any) -> Any:
        if _nnx.holds_modules((args, kwargs)):
            raise TypeError(
                "verify and measure run a function more than once, which would change the NNX modules given "
                "to it more than once: use nnx.split and nnx.merge, or leave them out"
            )
        key = self._key(args, kwargs)
        choice = self._choices.get(key)
        if choice is None:
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
                return self._jit(*args, **kwargs)
            choice = self._choices[key] = choose(self.__wrapped__, self._jit, self.options, args, kwargs)
            traced = self.trace(*args, **kwargs)
            traced.report.notes += choice.notes
            traced.report.predicted = traced.predicted()
        return choice.fun(*args, **kwargs)


_HERE: Final = "__lepton_optimized__"


def _optimized(fun: Callable[P, R], options: Options) -> Optimized[P, R]:
    """The optimised form of a function, the same one for the same function and options.

    It is kept on the function itself, so that both live and die together.
    """
    if not callable(fun):
        raise TypeError(f"lepton.optimize expects a function, not {type(fun).__name__}")
    if not isinstance(fun, types.FunctionType):
        return Optimized(fun, options)
    known: dict[Options, Optimized[P, R]] = fun.__dict__.get(_HERE, {})
    made = known.get(options)
    if made is None or made.__wrapped__ is not fun:  # functools.wraps copies attributes to other functions
        made = Optimized(fun, options)
        fun.__dict__[_HERE] = {**known, options: made}
    return made


@overload
def optimize(
    fun: Callable[P, R],
    passes: str | Pipeline = ...,
    *,
    level: str = ...,
    target: str | None = ...,
    static_argnums: Numbers = ...,
    static_argnames: Names = ...,
    donate_argnums: Numbers = ...,
    donate_argnames: Names = ...,
    verify: bool = ...,
    strict: bool | None = ...,
    measure: bool = ...,
    params: Patterns = ...,
    mesh: Any = ...,
    shard: Any = ...,
    donate: str | None = ...,
    memory: int | str | None = ...,
) -> Optimized[P, R]: ...


@overload
def optimize(
    fun: str | Pipeline | None = ...,
    passes: str | Pipeline = ...,
    *,
    level: str = ...,
    target: str | None = ...,
    static_argnums: Numbers = ...,
    static_argnames: Names = ...,
    donate_argnums: Numbers = ...,
    donate_argnames: Names = ...,
    verify: bool = ...,
    strict: bool | None = ...,
    measure: bool = ...,
    params: Patterns = ...,
    mesh: Any = ...,
    shard: Any = ...,
    donate: str | None = ...,
    memory: int | str | None = ...,
) -> Callable[[Callable[P, R]], Optimized[P, R]]: ...


def optimize(
    fun: Any = None,
    passes: str | Pipeline = "default",
    *,
    level: str = "reassociate",
    target: str | None = None,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
    donate_argnums: Numbers = None,
    donate_argnames: Names = None,
    verify: bool = False,
    strict: bool | None = None,
    measure: bool = False,
    params: Patterns = None,
    mesh: Any = None,
    shard: Any = None,
    donate: str | None = None,
    memory: int | str | None = None,
) -> Any:
    """Optimise a JAX function: the same function, rewritten before XLA compiles it.

    Works as a decorator with or without arguments, and as a call. The result has the
    same signature, pytrees, dtypes and weak types, and every JAX transformation works
    under and over it, as for `jax.jit`.

    Args:
        fun: the function; or the passes, when used as `@optimize("default,-cse")`.
        passes: a pipeline's text or a `Pipeline`. Presets: `none`, `cleanup`, `default`, `max`,
            and `deploy` for programs whose parameters are prepared.
        level: how far results may differ. `exact`: the same arithmetic in the same order.
            `reassociate`: equal over the reals, rounding may differ, finite stays finite.
            `approximate`: passes may trade accuracy for speed, and measure it.
        target: what to optimise for: `cpu`, `gpu` or `tpu`; default: JAX's default backend.
        static_argnums: as in `jax.jit`.
        static_argnames: as in `jax.jit`.
        donate_argnums: as in `jax.jit`.
        donate_argnames: as in `jax.jit`.
        verify: check the optimised function against the plain one on the arguments of
            the first call of each shape, and run the plain one if they differ.
        strict: raise when a pass fails, instead of skipping it with a warning; default:
            the environment variable LEPTON_STRICT.
        measure: on the first call of each shape time the optimised and the plain program in turn on its
            arguments, and keep the faster. The decision is kept on disk, for this program, these shapes, this
            device and these versions (`LEPTON_CACHE` says where; default: the user's cache folder).
        params: which arguments are parameters: names, positions, or patterns of paths as
            `"params/.../kernel"` (`*` stands for any letters of one name, `...` for any number of names).
            Passes find weights by it, and `prepare` and `apply` cut the program there.
        mesh: spread the program over a mesh: a `jax.sharding.Mesh`, sizes as `"data=2,model=4"`, or an
            `AbstractMesh` to plan without devices.
        shard: how, see docs/sharding.md: a dictionary of patterns of paths (as for `params`) and
            `PartitionSpec`s; `"dp"`, `"fsdp"`, `"tp"`, `"fsdp+tp"`, `"sp"`, `"ep"` or `"auto"`; a pair of one
            of these and a dictionary; a saved plan; or a `lepton.Sharding`. None: what metadata, hints and
            the places of the arrays say.
        donate: `"auto"` donates, on a mesh, what comes back as its next value, such as a training state.
        memory: for `shard="auto"`, what each device has for the program: bytes, or as `"14GB"`.

    Returns:
        An `Optimized`, or a decorator that makes one.

    Raises:
        PipelineError: the pipeline names an unknown pass or option; the message lists what there is.
        ValueError: an unknown level or target, or arguments about a mesh that do not go together.
        TypeError: `fun` is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> @optimize
        ... def f(x):
        ...     return jnp.transpose(jnp.transpose(x)) * 1.0
        >>> float(f(jnp.ones((2, 3))).sum())
        6.0
        >>> f.report.equations_after
        0
    """
    if isinstance(fun, (str, Pipeline)):
        if passes != "default":
            raise TypeError("passes given twice: once in first place, once by name")
        fun, passes = None, fun
    spread = None
    if not (mesh is None and shard is None and donate is None and memory is None):
        from lepton_jax._sharded.request import make_spread

        names_donated = donate_argnums is not None or donate_argnames is not None
        spread = make_spread(mesh, shard, donate, memory, names_donated)
    options = make_options(
        passes,
        level,
        target,
        static_argnums,
        static_argnames,
        donate_argnums,
        donate_argnames,
        verify,
        strict,
        measure,
        params,
        spread,
    )
    if fun is None:
        return lambda function: _optimized(function, options)
    return _optimized(fun, options)
