"""`lepton.optimize`: a drop-in beside `jax.jit`."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, overload

from lepton_jax._optimized import Optimized as Optimized
from lepton_jax._options import Names, Numbers, Options, Patterns, in_parts, make_options, spread_of
from lepton_jax._traced import Traced as Traced
from lepton_jax.rewrite import Pipeline

P = ParamSpec("P")
R = TypeVar("R")

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
    microbatches: int | str | None = ...,
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
    microbatches: int | str | None = ...,
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
    microbatches: int | str | None = None,
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
        memory: for `shard="auto"` and `microbatches="auto"`, what each device has for the program: bytes, or
            as `"14GB"`.
        microbatches: compute the batch in so many parts, one after the other, so that only one part's
            activations are in memory (the pass `microbatch`, see docs/microbatches.md). On a mesh `"auto"`
            takes as many as the memory demands; None does so where `shard="auto"` and `memory` are given.

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
    options = make_options(
        in_parts(passes, microbatches, mesh),
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
        spread_of(mesh, shard, donate, memory, donate_argnums, donate_argnames, microbatches),
    )
    if fun is None:
        return lambda function: _optimized(function, options)
    return _optimized(fun, options)
