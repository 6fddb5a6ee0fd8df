"""What the arguments of a function are called, and which of them are parameters."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

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
    names = argument_names(fun, len(args))
    paths: list[str] = []
    for i, (name, value) in enumerate(zip(names, args, strict=True)):
        if i not in static.positions:
            paths += _paths(name, value)
    for name in sorted(set(kwargs) - static.names):
        paths += _paths(name, kwargs[name])
    wanted = [_argument(fun, each, names, kwargs) if isinstance(each, int) else each for each in patterns]
    return Inputs(tuple(paths), choose(wanted, paths, "params") if wanted else frozenset())


def _paths(name: str, tree: Any) -> list[str]:
    """The paths of an argument's leaves; a variable of an NNX module is called as its module calls it."""
    nnx = sys.modules.get("flax.nnx")
    found = leaf_paths(name, tree)
    if nnx is None:
        return found
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    counts = [len(jax.tree.leaves(node)) if isinstance(node, nnx.Variable) else 0 for node in nodes]
    alone = [count == 1 for count in counts for _ in range(max(count, 1))]
    return [path.rpartition("/")[0] if one else path for path, one in zip(found, alone, strict=True)]


def _argument(fun: Callable[..., Any], position: int, names: Sequence[str], kwargs: Mapping[str, Any]) -> str:
    """The name of the argument at a position of the signature, given by position or by keyword."""
    if -len(names) <= position < len(names):
        return names[position]
    name = argument_names(fun, position + 1)[-1] if position >= 0 else ""
    if name not in kwargs:
        raise ValueError(
            f"params: there is no argument {position}, the call has {len(names)} by position"
            + (f" and {', '.join(sorted(kwargs))} by keyword" if kwargs else "")
            + "; name the argument instead of counting, as in params='weights'"
        )
    return name
