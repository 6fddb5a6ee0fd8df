"""Where an array stands among a function's arguments, and patterns that choose some of them.

A path is the argument's name and the way through its tree, as `params/dense/kernel` or `xs/0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import jax


def leaf_paths(name: str, tree: Any) -> list[str]:
    """The paths of the leaves of one argument, in the order of `jax.tree.leaves`.

    Example:
        >>> leaf_paths("params", {"dense": {"bias": 1, "kernel": 2}})
        ['params/dense/bias', 'params/dense/kernel']
    """
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}".rstrip("/") for path, _ in found
    ]


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern chooses a path, or a tree that it stands in.

    `*` and `?` stand for any letters of one name, `...` for any number of names.

    Example:
        >>> matches("params/*/kernel", "params/dense/kernel"), matches("params", "params/dense/kernel")
        (True, True)
        >>> matches(".../kernel", "params/a/b/kernel"), matches("params/*/kernel", "params/a/b/kernel")
        (True, False)
    """
    return _compiled(pattern).match(path) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = []
    for name in pattern.strip("/").split("/"):
        if name == "...":
            parts.append("(?:[^/]+/)*")
        else:
            letters = re.escape(name).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            parts.append(letters + "(?:/|$)")
    return re.compile("".join(parts))


def choose(patterns: Sequence[str], paths: Sequence[str], what: str) -> frozenset[int]:
    """The positions of the paths that any of the patterns chooses.

    Args:
        what: what the patterns are for, for the message.

    Raises:
        ValueError: a pattern chooses nothing; the message lists what there is.
    """
    found: set[int] = set()
    for pattern in patterns:
        chosen = {i for i, path in enumerate(paths) if matches(pattern, path)}
        if not chosen:
            raise ValueError(f"{what}: {pattern!r} matches none of the arrays {_listed(paths)}")
        found |= chosen
    return frozenset(found)


def _listed(paths: Iterable[str], most: int = 12) -> str:
    shown = list(paths)
    rest = f", and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest if shown else "(there are none)"
