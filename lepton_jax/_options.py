"""How a user wants a function optimised."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lepton_jax.rewrite import Level, Pipeline
from lepton_jax.rewrite.context import LEVELS
from lepton_jax.targets import get_target

if TYPE_CHECKING:
    from lepton_jax._sharded.request import Spread

Names = str | Sequence[str] | None
Numbers = int | Sequence[int] | None
Patterns = str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class Options:
    """The arguments of `optimize`, checked and in hashable form."""

    pipeline: Pipeline
    level: Level
    target: str | None
    static_argnums: tuple[int, ...]
    static_argnames: tuple[str, ...]
    donate_argnums: tuple[int, ...]
    donate_argnames: tuple[str, ...]
    verify: bool
    strict: bool | None
    measure: bool
    params: tuple[str | int, ...] = ()
    spread: Spread | None = None

    @property
    def is_strict(self) -> bool:
        """Whether failing passes raise: as asked for, else as the environment says."""
        return os.environ.get("LEPTON_STRICT", "0") not in ("", "0") if self.strict is None else self.strict

    @property
    def jit_arguments(self) -> dict[str, Any]:
        """What `jax.jit` is told."""
        given = {
            "static_argnums": self.static_argnums,
            "static_argnames": self.static_argnames,
            "donate_argnums": self.donate_argnums,
            "donate_argnames": self.donate_argnames,
        }
        return {key: value for key, value in given.items() if value}


def make_options(
    passes: str | Pipeline,
    level: str,
    target: str | None,
    static_argnums: Numbers,
    static_argnames: Names,
    donate_argnums: Numbers,
    donate_argnames: Names,
    verify: bool,
    strict: bool | None,
    measure: bool,
    params: Patterns = None,
    spread: Spread | None = None,
) -> Options:
    """Check the arguments of `optimize`.

    Raises:
        ValueError: an unknown level or target, or a wrong pipeline; the message lists what there is.
        TypeError: `passes` is neither text nor a pipeline, or `params` no names.
    """
    if not _are_names(params):
        said = f"a {type(params).__name__}"
        raise TypeError(
            f"params says which arguments are parameters, by name, position or path; it is {said}"
        )
    if not isinstance(passes, (str, Pipeline)):
        raise TypeError(f"passes is a pipeline's text or a Pipeline, not {type(passes).__name__}")
    if level not in LEVELS:
        raise ValueError(f"there is no level {level!r}; the levels are: {', '.join(LEVELS)}")
    if target is not None:
        get_target(target)
    return Options(
        pipeline=Pipeline.parse(passes) if isinstance(passes, str) else passes,
        level=level,
        target=target,
        static_argnums=_tuple(static_argnums),
        static_argnames=_tuple(static_argnames),
        donate_argnums=_tuple(donate_argnums),
        donate_argnames=_tuple(donate_argnames),
        verify=verify,
        strict=strict,
        measure=measure,
        params=_tuple(params),
        spread=spread,
    )


def spread_of(
    mesh: Any,
    shard: Any,
    donate: str | None,
    memory: int | str | None,
    donate_argnums: Numbers,
    donate_argnames: Names,
    microbatches: int | str | None = None,
) -> Spread | None:
    """What is said about a mesh, checked; None where nothing is.

    Raises: as `lepton_jax._sharded.request.make_spread`.
    """
    if mesh is None and shard is None and donate is None and memory is None:
        return None
    from lepton_jax._sharded.request import make_spread

    named = donate_argnums is not None or donate_argnames is not None
    return make_spread(mesh, shard, donate, memory, named, microbatches)


def in_parts(passes: str | Pipeline, microbatches: int | str | None, mesh: Any) -> str | Pipeline:
    """The passes, and without a mesh the one that cuts the batch into parts; on a mesh layouts come first.

    Raises:
        ValueError: the number of parts is none, or there is no mesh to find it for.
    """
    if microbatches is None or mesh is not None or not isinstance(passes, (str, Pipeline)):
        return passes
    if isinstance(microbatches, bool) or not isinstance(microbatches, int) or microbatches < 1:
        raise ValueError(
            f"microbatches is a number of parts, and on a mesh also 'auto': not {microbatches!r}"
        )
    last = Pipeline.parse(f"microbatch{{count={microbatches}}}")
    before = Pipeline.parse(passes) if isinstance(passes, str) else passes
    return Pipeline((*before.steps, *last.steps))


def _are_names(given: Any) -> bool:
    if given is None or isinstance(given, (str, int)):
        return True
    several = isinstance(given, Collection) and not isinstance(given, Mapping)
    return several and all(isinstance(each, (str, int)) for each in given)


def _tuple(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, (int, str)) else tuple(given)


@dataclass(frozen=True)
class StaticArguments:
    """Which arguments of a function are static, by position and by name, as `jax.jit` finds them."""

    positions: frozenset[int]
    names: frozenset[str]

    @classmethod
    def of(cls, fun: Callable[..., Any], options: Options) -> StaticArguments:
        """The static arguments of `fun`; where only numbers or only names are given, they stand for both."""
        numbers, names = set(options.static_argnums), set(options.static_argnames)
        try:
            parameters = list(inspect.signature(fun).parameters.values())
        except (ValueError, TypeError):
            return cls(frozenset(numbers), frozenset(names))
        by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        numbers = {n % len(by_place) if n < 0 and by_place else n for n in numbers}
        if not names:
            names = {
                p.name for i, p in enumerate(by_place) if i in numbers and p.kind is not p.POSITIONAL_ONLY
            }
        elif not numbers:
            numbers = {i for i, p in enumerate(by_place) if p.name in names}
        return cls(frozenset(numbers), frozenset(names))
