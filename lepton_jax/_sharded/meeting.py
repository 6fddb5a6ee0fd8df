"""Processes that run one program together: what they tell one another before its first run.

The processes of a mesh meet under a number, which each counts for itself: all call the same programs in the
same order. One thread of a process is in a meeting at a time, so a process that answers in one has left all
that it entered before, and what was said there can go.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
from jax.sharding import Mesh

from lepton_jax._sharded.request import OpenMesh
from lepton_jax.ir import _jax
from lepton_jax.parallel.meshes import AnyMesh
from lepton_jax.parallel.processes import ProcessError

_LOG: Final = logging.getLogger("lepton")
SECONDS: Final = 300.0
"""How long a process waits for the others to begin the same program."""
_SOON: Final = 15.0
"""After how long it says that it waits."""
_MOMENT: Final = 5.0
"""How long it waits without looking up, as at an interrupt from the keyboard."""
_LONGEST: Final = 4000
"""Characters of an error that the others are told."""

Waiting = Callable[[int], str]
"""Says in words that a process does not come."""


class Group:
    """The processes that have devices of a mesh, this one among them.

    Attributes:
        processes: their numbers, in order; the first one leads.
        here: which of them this is.
        lock: held in a meeting.
    """

    def __init__(self, processes: tuple[int, ...], store: Any) -> None:
        self.processes, self.store = processes, store
        self.here = jax.process_index()
        self.lock = threading.RLock()  # the function that is traced in one meeting may call another program
        self._numbers = itertools.count()
        self._key = f"lepton/programs/{hashlib.sha256(str(processes).encode()).hexdigest()[:8]}"
        self._over: list[str] = []

    @property
    def first(self) -> int:
        """The process that leads."""
        return self.processes[0]

    @property
    def leads(self) -> bool:
        """Whether this is the first."""
        return self.here == self.first

    @contextlib.contextmanager
    def meeting(self, what: str, waiting: Waiting, *owed: str) -> Iterator[Meeting]:
        """Meet the others. What goes wrong here before all is said, they are told.

        Args:
            what: is done here, as `lay 'f' out`, for the others if it fails.
            waiting: says that a process does not come.
            owed: what the first process says in it, in order.
        """
        with self.lock:
            key = f"{self._key}/{next(self._numbers)}"
            met = Meeting(self, key, waiting, list(owed) if self.leads else [])
            try:
                yield met
            except BaseException as error:
                named = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                met.fail(f"process {self.here} could not {what}: {named}"[:_LONGEST])
                raise
            finally:
                if self.leads:
                    self._over.append(key)

    def tidy(self) -> None:
        """Remove what was said in meetings that all have left: they have answered in a later one."""
        over, self._over = self._over, []
        for key in over:
            _jax.forget(self.store, key)


class Meeting:
    """One exchange of messages among the processes of a group.

    Args:
        group: of processes.
        key: where its messages stand.
        waiting: says that a process does not come.
        owed: what the others wait for; all but the first process owe an answer.
    """

    def __init__(self, group: Group, key: str, waiting: Waiting, owed: list[str]) -> None:
        self.group, self._key, self._waiting = group, key, waiting
        self._owed = owed if group.leads else [str(group.here)]

    def say(self, what: str, said: Any) -> None:
        """Tell the others, in JSON."""
        self._owed.remove(what)
        self._tell(what, {"said": said})

    def hear(self, what: str, process: int, seconds: float = SECONDS) -> Any:
        """What another process says.

        Raises:
            ValueError: it failed instead; the message is its own.
            ProcessError: it says nothing in time.
        """
        waited, key = 0.0, f"{self._key}/{what}"
        while (text := _jax.told(self.group.store, key, min(_MOMENT, seconds - waited))) is None:
            waited += _MOMENT
            if waited >= seconds:
                raise ProcessError(self._waiting(process))
            if waited == _SOON and seconds < float("inf"):
                said = self._waiting(process)
                _LOG.warning("for %g seconds %s; this one waits for %g more", waited, said, seconds - waited)
        heard = json.loads(zlib.decompress(text))
        if "failed" in heard:
            raise ValueError(heard["failed"])
        return heard["said"]

    def settle(self, wrong: str = "") -> None:
        """Wait for all; raise in all where anything is wrong in one.

        Args:
            wrong: what is wrong here, in words.

        Raises:
            ValueError: what is wrong, in all processes.
            ProcessError: a process does not come.
        """
        group = self.group
        if group.leads:
            found = [wrong, *(self._answer(process) for process in group.processes[1:])]
            wrong = "; ".join(dict.fromkeys(filter(None, found)))
            self.say("all", wrong)
            group.tidy()
        else:
            self.say(str(group.here), wrong)
            wrong = self.hear("all", group.first, float("inf"))  # it says this too when others do not come
        if wrong:
            raise ValueError(wrong)

    def _answer(self, process: int) -> str:
        """What is wrong in another process."""
        try:
            return str(self.hear(str(process), process))
        except ValueError as error:
            return str(error)

    def fail(self, text: str) -> None:
        """Tell those who wait for this process why they wait in vain."""
        for what in self._owed:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._tell(what, {"failed": text})

    def _tell(self, what: str, content: dict[str, Any]) -> None:
        _jax.tell(self.group.store, f"{self._key}/{what}", zlib.compress(json.dumps(content).encode()))


_groups: Final[dict[tuple[int, ...], Group]] = {}
_known: Final = threading.Lock()


def owners(mesh: AnyMesh | OpenMesh) -> tuple[int, ...]:
    """The processes that have devices of a mesh, in order; none where it is abstract."""
    if not isinstance(mesh, (Mesh, OpenMesh)):
        return ()
    devices = mesh.devices.flat if isinstance(mesh, Mesh) else mesh.devices
    return tuple(sorted({device.process_index for device in devices}))


def group_of(mesh: AnyMesh | OpenMesh | None) -> Group | None:
    """The processes of a mesh, where this is one of several.

    JAX may have been shut down and started again, with a new store: then all count anew.
    """
    store = _jax.store()
    if store is None or mesh is None or (isinstance(mesh, OpenMesh) and mesh.topology is not None):
        return None
    processes = owners(mesh)
    if len(processes) < 2 or jax.process_index() not in processes:
        return None
    with _known:
        found = _groups.get(processes)
        if found is None or found.store is not store:
            found = _groups[processes] = Group(processes, store)
    return found


def of_first(mesh: AnyMesh | None, name: str, said: Any) -> Any:
    """What the first process of a mesh says, in all of them; each says something.

    Args:
        name: of the program.
    """
    group = group_of(mesh)
    if group is None:
        return said
    late = f"does not check {name!r}, as process {group.here} does"
    with group.meeting(f"check {name!r}", lambda process: f"process {process} {late}", "first") as met:
        if not group.leads:
            return met.hear("first", group.first)
        met.say("first", said)
        return said
