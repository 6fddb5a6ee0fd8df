"""What the arguments of a function are called, and which of them are parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jax._options import StaticArguments
from lepton_jax.ir.paths import choose, leaf_paths


@dataclass(frozen=True)
class Inputs:
    """The arrays of a call, in the order of the jaxpr's inputs.

    Attributes:
        paths: of each, the argument's name and the way through its tree, as `params/dense/kernel`.
        params: the positions of those that are parameters.
    """

    paths: tuple[str, ...] = ()
    params: frozenset[int] = frozenset()


def argument_names(fun: Callable[..., Any], count: int) -> list[str]:
    """The names of the first `count` arguments given by position."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (ValueError, TypeError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "args")
    return names + [f"{rest}/{i}" for i in range(count - len(names))]


def name_inputs(
    fun: Callable[..., Any],
    patterns: Sequence[str | int],
    static: StaticArguments,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Inputs:
    """The names of a call's arrays, and which of them the patterns choose as parameters.

    Args:
        patterns: paths as in `lepton_jax.ir.paths`, or positions of arguments.

    Raises:
        ValueError: a pattern chooses nothing, or there is no argument at a position.
    """
    if not patterns:
        return Inputs()
    names = argument_names(fun, len(args))
    paths: list[str] = []
    for i, (name, value) in enumerate(zip(names, args, strict=True)):
        if i not in static.positions:
            paths += leaf_paths(name, value)
    for name in sorted(set(kwargs) - static.names):
        paths += leaf_paths(name, kwargs[name])
    wanted = [_argument(each, names) if isinstance(each, int) else each for each in patterns]
    return Inputs(tuple(paths), choose(wanted, paths, "params"))


def _argument(position: int, names: Sequence[str]) -> str:
    if not -len(names) <= position < len(names):
        raise ValueError(f"params: there is no argument {position}, the call has {len(names)} by position")
    return names[position]
