"""Processes that run one program together: whether they give arrays of the same shapes and lay it out alike.

Where one gives fewer examples, or lays a program out otherwise, devices would add up different things, and
nobody would notice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np

from lepton_jax._sharded.decision import Decision
from lepton_jax._sharded.meeting import Group, Waiting
from lepton_jax._stage import kind_of
from lepton_jax.ir import _jax
from lepton_jax.parallel._plan.identity import Program, all_values

_MOST_SHOWN: Final = 4


def agree(
    group: Group,
    name: str,
    decision: Decision,
    leaves: Sequence[Any],
    local: Sequence[bool],
) -> None:
    """Raise, in all processes of a mesh, where they do not run the same program on it.

    The first of them tells the others what it has, they compare, and it tells all what they found.

    Args:
        group: the processes of the mesh.
        name: of the program, for messages.
        decision: how it lies.
        leaves: the arrays that this process gives.
        local: of which each process gives its own part.

    Raises:
        ValueError: arrays have other shapes or dtypes in another process, arrays of one process or of the
            host have other values, or another process has another program or lays it out otherwise.
        ProcessError: another process does not begin the program in time.
    """
    parts = {path for path, own in zip(decision.paths, local, strict=True) if own}
    _compare(group, name, decision.paths, leaves, parts, lambda: _laid(decision))


def agree_on_values(group: Group, name: str, paths: Sequence[str], leaves: Sequence[Any]) -> None:
    """Raise, in all processes of a mesh, where they give other arrays to a function.

    Args:
        group: the processes of the mesh.
        name: of the function, for messages.
        paths: what the arrays are called.
        leaves: the arrays that this process gives.

    Raises:
        ValueError: arrays have other shapes or dtypes in another process, or other values.
        ProcessError: another process does not come in time.
    """
    _compare(group, name, paths, leaves, (), dict)


def _compare(
    group: Group,
    name: str,
    paths: Sequence[str],
    leaves: Sequence[Any],
    parts: Collection[str],
    more: Callable[[], dict[str, Any]],
) -> None:
    """Compare what the processes give, but for values of parts, and what more they say."""
    arrays = kinds(paths, leaves)
    with group.meeting(f"run {name!r}", late(name, arrays, group.here), "first", "all") as met:
        here = [(path, leaf) for path, leaf in zip(paths, leaves, strict=True) if _is_here(leaf)]
        values = {path: _digest(leaf) for path, leaf in here if path not in parts}
        mine = {"name": name, "arrays": arrays, "values": values, **more()}
        wrong = ""
        if group.leads:
            met.say("first", mine)
        else:
            wrong = "; ".join(differences(met.hear("first", group.first), mine, group.first, group.here))
        met.settle(wrong)


def late(name: str, arrays: Mapping[str, str], here: int) -> Waiting:
    """Says that another process does not call a program with arrays of these kinds."""
    given = ", ".join(f"{path} {kind}" for path, kind in list(arrays.items())[-_MOST_SHOWN:])
    return lambda process: (
        f"process {process} does not begin {name!r} as process {here} calls it, with {given}: all "
        "processes call the same programs in the same order, with parts of the same shapes"
    )


def kinds(paths: Sequence[str], leaves: Sequence[Any]) -> dict[str, str]:
    """The dtypes and shapes of arrays, by what these are called."""
    found = {}
    for path, leaf in zip(paths, leaves, strict=True):
        shape, dtype, _ = kind_of(leaf)
        found[path] = f"{dtype}[{','.join(map(str, shape))}]"
    return found


def _laid(decision: Decision) -> dict[str, Any]:
    """How a program lies, to be compared."""
    layouts = [str(decision.assignment.get(value)) for value in all_values(decision.graph)]
    return {
        "program": Program.of(decision.graph, decision.paths).hash,
        "mesh": str(decision.mesh),
        "layouts": {path: str(each) for path, each in zip(decision.paths, decision.inputs(), strict=True)},
        "all": hashlib.sha256("\n".join(layouts).encode()).hexdigest(),
    }


def _is_here(leaf: Any) -> bool:
    """Whether an array lies whole in this process."""
    return not isinstance(leaf, jax.ShapeDtypeStruct) and getattr(leaf, "is_fully_addressable", True)


def _digest(leaf: Any) -> str:
    """Of the values of an array."""
    keys = isinstance(leaf, jax.Array) and _jax.is_extended(leaf.dtype)
    values = np.ascontiguousarray(jax.random.key_data(leaf) if keys else leaf)
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def differences(theirs: dict[str, Any], mine: dict[str, Any], first: int, here: int) -> list[str]:
    """What is different here, in words; nothing if all is the same."""
    if theirs["name"] != mine["name"]:
        return [
            f"process {first} calls {theirs['name']!r} where process {here} calls {mine['name']!r}: all "
            "processes call the same programs in the same order"
        ]
    unlike = _unlike(theirs["arrays"], mine["arrays"])
    if unlike:
        shown = ", ".join(
            f"{path} is {theirs['arrays'].get(path, 'not there')} in process {first} and "
            f"{mine['arrays'].get(path, 'not there')} in process {here}"
            for path in unlike[:_MOST_SHOWN]
        )
        return [
            f"{shown}: all processes give arrays of the same shapes and dtypes; pad or leave out examples"
        ]
    if theirs.keys() != mine.keys():
        return [
            f"one of the processes {first} and {here} searches for layouts of {mine['name']!r}, the other is "
            "told them: shard=, mesh= and microbatches= are the same in all"
        ]
    if mine.get("program") != theirs.get("program"):
        return [
            f"{mine['name']!r} has other operations in process {first} than in process {here}: the function, "
            "the passes and what `lepton calibrate` has measured are the same in all"
        ]
    if any(mine.get(each) != theirs.get(each) for each in ("mesh", "layouts", "all")):
        where = [
            f"{path} as {theirs['layouts'][path]} and {mine['layouts'][path]}"
            for path in _unlike(theirs["layouts"], mine["layouts"])[:_MOST_SHOWN]
        ]
        return [
            f"processes {first} and {here} lay {mine['name']!r} out otherwise"
            + (f": {', '.join(where)}" if where else "")
            + "; shard= is the same in all; before `lower`, `place` has one decide for all"
        ]
    known, values = theirs.get("values", {}), mine.get("values", {})
    unlike = [path for path, value in values.items() if known.get(path, value) != value]
    if not unlike:
        return []
    part = f"; where each has its own part of dimension 0, say lepton.Sharding(..., local={unlike[0]!r})"
    return [
        f"{', '.join(unlike[:_MOST_SHOWN])} has other values in process {here} than in process {first}: an "
        "array of the host or of one process is the whole array, the same in each"
        + (part if "layouts" in mine else "")
    ]


def _unlike(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    paths: Iterable[str] = dict.fromkeys((*theirs, *mine))
    return [path for path in paths if theirs.get(path) != mine.get(path)]
