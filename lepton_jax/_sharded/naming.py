"""What the arrays of a call are called, and what Flax has written on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Note:
    """What Flax says about an array: the names of its dimensions, and rules for them.

    Attributes:
        names: as Flax has them: a logical name, several, a mesh axis, or None, of each dimension.
        rules: pairs of logical names and axes, those of the array before those of the context.
    """

    names: tuple[Any, ...]
    rules: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Leaf:
    """One array of a call.

    Attributes:
        path: the argument's name and the way through its tree, as `params/dense/kernel`; Flax's boxes and
            variables do not show.
        argument: the argument's name.
        note: what Flax says about it, if anything.
    """

    path: str
    argument: str
    note: Note | None = None


def name_leaves(argument: str, tree: Any) -> list[Leaf]:
    """The arrays of an argument, in the order of `jax.tree.leaves`."""
    found: list[Leaf] = []
    for way, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]:
        path = "/".join(filter(None, (argument, jax.tree_util.keystr(way, simple=True, separator="/"))))
        if not _is_box(node):
            found.append(Leaf(path, argument))
            continue
        inner = jax.tree_util.tree_flatten_with_path(node)[0]
        note = _note(node)
        if len(inner) == 1:
            found.append(Leaf(path, argument, note))
        else:
            ways = (jax.tree_util.keystr(each, simple=True, separator="/") for each, _ in inner)
            found += [Leaf(f"{path}/{each}", argument) for each in ways]
    return found


def _is_box(node: Any) -> bool:
    """Whether something is a variable of NNX or a box of Linen, with metadata around an array."""
    nnx, meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    if nnx is not None and isinstance(node, nnx.Variable):
        return True
    return meta is not None and isinstance(node, meta.AxisMetadata)


def _note(box: Any) -> Note | None:
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(box, nnx.Variable):
        metadata = box.get_metadata()
        return _with_rules(metadata.get("out_sharding"), metadata.get("sharding_rules"))
    return _with_rules(getattr(box, "names", None), getattr(box, "rules", None))


def _with_rules(names: Sequence[Any] | None, rules: Sequence[tuple[str, Any]] | None) -> Note | None:
    if not names:
        return None
    from flax.core.spmd import get_logical_axis_rules

    return Note(tuple(names), (*(rules or ()), *get_logical_axis_rules()))
