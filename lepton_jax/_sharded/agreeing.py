"""Processes that run one program together: whether they give arrays of the same shapes and lay it out alike.

Each process decides for itself how a program lies. Where one decides otherwise, because it gives fewer
examples or its solver had less time, devices would add up different things, and nobody would notice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lepton_jax._sharded.decision import Decision
from lepton_jax._stage import kind_of
from lepton_jax.ir import _jax
from lepton_jax.parallel._plan.identity import all_values
from lepton_jax.parallel.processes import ProcessError

_LOG: Final = logging.getLogger("lepton")
SECONDS: Final = 300.0
"""How long a process waits for the others to begin the same program."""
_SOON: Final = 15.0
"""After how long it says that it waits."""
_MOST_SHOWN: Final = 4

_programs: defaultdict[tuple[int, ...], Iterator[int]] = defaultdict(itertools.count)
"""For each group of processes the number of the next program that they begin."""
_lock: Final = threading.Lock()


def agree(
    name: str,
    decision: Decision,
    leaves: Sequence[Any],
    shardings: Sequence[NamedSharding],
    local: Sequence[bool],
    seconds: float = SECONDS,
) -> None:
    """Raise, in all processes of a mesh, where they do not run the same program on it.

    The first of them tells the others what it has, they compare, and it tells all what they found.

    Args:
        name: of the program, for messages.
        decision: how it lies.
        leaves: the arrays that this process gives.
        shardings: where they are wanted.
        local: of which each process gives its own part.
        seconds: how long to wait for the others.

    Raises:
        ValueError: arrays have other shapes or dtypes in another process, host arrays that all devices hold
            have other values, or another process lays the program out otherwise.
        ProcessError: another process does not begin the program in time.
    """
    store = _jax.store()
    processes = _processes(decision.on)
    if store is None or len(processes) < 2:
        return
    with _lock:
        number = next(_programs[processes])
    group = hashlib.sha256(str(processes).encode()).hexdigest()[:8]
    key = f"lepton/programs/{group}/{number}"
    first, here = processes[0], jax.process_index()
    mine = _said(name, decision, leaves, shardings, local)

    def heard(what: str, process: int) -> str:
        given = ", ".join(f"{path} {kind}" for path, kind in list(mine["arrays"].items())[-_MOST_SHOWN:])
        waiting = (
            f"process {process} does not begin {name!r} as process {here} calls it, with {given}: all "
            "processes call the same programs in the same order, with parts of the same shapes"
        )
        soon = min(_SOON, seconds)
        text = _jax.told(store, f"{key}/{what}", soon)
        if text is None:
            _LOG.warning("for %g seconds %s; this one waits for %g more", soon, waiting, seconds - soon)
            text = _jax.told(store, f"{key}/{what}", seconds - soon)
        if text is None:
            raise ProcessError(waiting)
        return text

    if here != first:
        theirs = json.loads(heard("first", first))
        store.key_value_set(f"{key}/{here}", "; ".join(_differences(theirs, mine, first, here)))
        verdict = heard("all", first)
    else:
        store.key_value_set(f"{key}/first", json.dumps(mine))
        verdict = "; ".join(filter(None, (heard(str(each), each) for each in processes[1:])))
        store.key_value_set(f"{key}/all", verdict)
    if verdict:
        raise ValueError(verdict)


def _processes(mesh: Any) -> tuple[int, ...]:
    """The processes that have devices of a mesh."""
    if not isinstance(mesh, Mesh):
        return ()
    return tuple(sorted({device.process_index for device in mesh.devices.flat}))


def _said(
    name: str,
    decision: Decision,
    leaves: Sequence[Any],
    shardings: Sequence[NamedSharding],
    local: Sequence[bool],
) -> dict[str, Any]:
    """What a process has, to be compared."""
    whole = [
        (path, hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()[:16])
        for path, leaf, wanted, own in zip(decision.paths, leaves, shardings, local, strict=True)
        if isinstance(leaf, np.ndarray) and wanted.is_fully_replicated and not own
    ]
    layouts = [str(decision.assignment.get(value)) for value in all_values(decision.graph)]
    return {
        "name": name,
        "arrays": {path: _kind(leaf) for path, leaf in zip(decision.paths, leaves, strict=True)},
        "values": dict(whole),
        "mesh": str(decision.mesh),
        "layouts": {path: str(each) for path, each in zip(decision.paths, decision.inputs(), strict=True)},
        "all": hashlib.sha256("\n".join(layouts).encode()).hexdigest(),
    }


def _kind(leaf: Any) -> str:
    shape, dtype, _ = kind_of(leaf)
    return f"{dtype}[{','.join(map(str, shape))}]"


def _differences(theirs: dict[str, Any], mine: dict[str, Any], first: int, here: int) -> list[str]:
    """What is different here, in words; nothing if all is the same."""
    if theirs["name"] != mine["name"]:
        return [
            f"process {first} calls {theirs['name']!r} where process {here} calls {mine['name']!r}: all "
            "processes call the same programs in the same order"
        ]
    kinds = _unlike(theirs["arrays"], mine["arrays"])
    if kinds:
        shown = ", ".join(
            f"{path} is {theirs['arrays'].get(path, 'not there')} in process {first} and "
            f"{mine['arrays'].get(path, 'not there')} in process {here}"
            for path in kinds[:_MOST_SHOWN]
        )
        return [
            f"{shown}: all processes give arrays of the same shapes and dtypes; pad or leave out examples"
        ]
    if any(theirs[each] != mine[each] for each in ("mesh", "layouts", "all")):
        where = [
            f"{path} as {theirs['layouts'][path]} and {mine['layouts'][path]}"
            for path in _unlike(theirs["layouts"], mine["layouts"])[:_MOST_SHOWN]
        ]
        return [
            f"processes {first} and {here} lay {mine['name']!r} out otherwise"
            + (f": {', '.join(where)}" if where else "")
            + "; save a plan and give it to all, shard=Plan.load(path)"
        ]
    here_too = {path: theirs["values"].get(path, value) for path, value in mine["values"].items()}
    values = _unlike(here_too, mine["values"])
    if values:
        return [
            f"{', '.join(values[:_MOST_SHOWN])} has other values in process {here} than in process {first}: "
            "a host array is the whole array, the same in each process; where each has its own part of "
            f"dimension 0, say lepton.Sharding(..., local={values[0]!r})"
        ]
    return []


def _unlike(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    paths: Iterable[str] = dict.fromkeys((*theirs, *mine))
    return [path for path in paths if theirs.get(path) != mine.get(path)]
