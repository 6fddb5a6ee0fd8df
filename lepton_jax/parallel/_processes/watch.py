"""The watch: each process keeps a connection to process 0 as long as it lives; process 0 tells all who died.

The system closes the connection when a process dies, however it dies. One that ends by an exception or by
`sys.exit` of a failure says so first. `raise SystemExit(1)` cannot be told from a program that came to its
end: of such the others hear when they run on for long.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from lepton_jax.parallel._processes.line import Line, ProcessError, connect, server

_LOG: Final = logging.getLogger("lepton")
_MOMENT: Final = 1.0
"""Seconds in which a process that failed learns whether another one died before."""
_LEAVING: Final = 10.0
"""Seconds from `sys.exit` to the end of a process; one that lives on for longer has caught it."""


class Watch:
    """One end of the connections between process 0 and the others, from the first word to the last."""

    def __init__(
        self, host: str, port: int, count: int, process: int, timeout: float, on_death: Callable[[str], None]
    ) -> None:
        self._count = count
        self._process = process
        self._on_death = on_death
        self._lines: dict[int, Line] = {}
        self._names: dict[int, str] = {}
        self._over = threading.Event()
        self._patience = timeout
        self._error = ""
        self._status = 1
        self._until = math.inf
        if count == 1:
            return
        if process == 0:
            self._gather(host, port, timeout)
        else:
            self._join(host, port, timeout)
        for peer, line in list(self._lines.items()):
            threading.Thread(target=self._listen, args=(peer, line), daemon=True).start()

    def at_exit(self) -> None:
        """Let the others know how this process ends; called last, since JAX's own exit waits for all."""
        hook, leave = sys.excepthook, sys.exit

        def noted(kind: Any, error: Any, trace: Any) -> None:
            self._error = ": ".join(filter(None, (kind.__name__, str(error))))[:1000]
            self._status, self._until = 1, math.inf
            hook(kind, error, trace)

        def leaving(status: Any = None) -> NoReturn:
            if status not in (None, 0) and threading.current_thread() is threading.main_thread():
                self._error, self._until = f"sys.exit({status!r})"[:1000], time.monotonic() + _LEAVING
                self._status = status if isinstance(status, int) else 1
            leave(status)

        sys.excepthook = noted
        sys.exit = leaving
        atexit.register(self._leave)

    # Coming together

    def _gather(self, host: str, port: int, timeout: float) -> None:
        """Process 0: wait for all others, tell each whether they may go on."""
        end = time.monotonic() + timeout
        try:
            listening = server(host, port, self._count)
        except OSError as error:
            raise ProcessError(f"process 0 cannot listen at {host}:{port}: {error}") from error
        wrong = ""
        with listening:
            while len(self._lines) < self._count - 1 and not wrong:
                listening.settimeout(max(0.05, end - time.monotonic()))
                try:
                    connection, _ = listening.accept()
                except OSError:
                    missing = [i for i in range(1, self._count) if i not in self._lines]
                    wrong = f"of {self._count} processes {_listed(missing)} did not come within {timeout:g} s"
                    break
                wrong = self._greeted(Line(connection))
        for line in self._lines.values():
            line.send(kind="wrong" if wrong else "welcome", message=wrong)
            if wrong:
                line.close()
        if wrong:
            raise ProcessError(wrong)

    def _greeted(self, line: Line) -> str:
        """Take in one more process; what is wrong with it, or nothing."""
        said = line.receive(5.0) or {}
        process, of, name = said.get("process"), said.get("of"), str(said.get("name"))
        if said.get("kind") != "hello" or not isinstance(process, int):
            line.close()  # somebody else's
            return ""
        wrong = ""
        if of != self._count:
            wrong = (
                f"process {process} ({name}) was started as one of {of} processes, "
                f"process 0 as one of {self._count}"
            )
        elif process in self._lines or not 0 < process < self._count:
            wrong = (
                f"two processes say that they are process {process}: {self._names.get(process)} and {name}"
            )
        if wrong:
            line.send(kind="wrong", message=wrong)
            line.close()
            return wrong
        self._lines[process], self._names[process] = line, name
        return ""

    def _join(self, host: str, port: int, timeout: float) -> None:
        line = Line(connect(host, port, timeout))
        name = f"{socket.gethostname()}, pid {os.getpid()}"
        line.send(kind="hello", process=self._process, of=self._count, name=name)
        said = line.receive(timeout + 5.0)
        if said is None or said.get("kind") != "welcome":
            line.close()
            why = said.get("message") if said else "process 0 ended, or is of another program"
            raise ProcessError(str(why))
        self._lines[0], self._names[0] = line, host

    # Living and ending together

    def _listen(self, peer: int, line: Line) -> None:
        said = line.receive()
        line.close()
        kind = said.get("kind") if said else None
        if kind == "bye":
            self._lines.pop(peer, None)
            self._remark(peer)
        elif said and kind == "death":
            self._dead(str(said["message"]))
        else:
            how = f"ended with {said['error']}" if said and kind == "failed" else "died"
            self._dead(f"process {peer} of {self._count} ({self._names[peer]}) {how}")

    def _remark(self, peer: int) -> None:
        """Of a process that came to its end: say so if this one does not for long."""
        if not self._over.wait(self._patience):
            _LOG.warning(
                "process %d of %d (%s) came to its end %g s ago, and process %d runs on: if it waits for "
                "that one in a collective, it waits in vain, and JAX ends both 300 s after the first ended",
                *(peer, self._count, self._names[peer], self._patience, self._process),
            )

    def _dead(self, message: str) -> None:
        """Tell the others, and end."""
        if self._over.is_set():
            return
        self._over.set()
        for line in list(self._lines.values()):
            line.send(kind="death", message=message)
        self._on_death(f"{message}; process {self._process} ends too")

    def _leave(self) -> None:
        if time.monotonic() > self._until:
            self._error = ""
        if self._error and self._over.wait(_MOMENT):  # a collective failed since a peer died:
            time.sleep(_MOMENT)  # the thread that saw it says so and ends this process
        self._over.set()
        for line in list(self._lines.values()):
            if self._error:
                line.send(kind="failed", error=self._error)
            else:
                line.send(kind="bye")
            line.close()
        if self._error:  # the others end; JAX would wait for them
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(self._status)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:16])) + (f" and {len(numbers) - 16} more" if len(numbers) > 16 else "")
