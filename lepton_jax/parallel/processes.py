"""Programs of several processes: how they find one another, and how they end together.

`jax.distributed` connects the processes. Beside it each process holds one plain connection to process 0,
which is
open as long as the process lives: the system closes it when a process dies, however it dies, and within
moments all others know who it was. A process that waits for a dead peer in a collective cannot be woken by
an exception, so it ends, with a message.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import jax

_LOG: Final = logging.getLogger("lepton")
_PEER_DIED: Final = 70
"""The exit status of a process that ends because another did (EX_SOFTWARE)."""

_MOMENT: Final = 1.0
"""Seconds in which a process that failed learns whether another one died before."""

_KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""The kernels' own signs of life: a machine that is gone closes no connection. In seconds, and how many."""


class ProcessError(RuntimeError):
    """The processes of a program do not come together."""


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = 60.0,
    heartbeat: float = 30.0,
    watch: bool = True,
    on_death: Callable[[str], None] | None = None,
) -> None:
    """Join this process to the others of the program; call it before anything else of JAX.

    As `jax.distributed.initialize`, with gloo on CPUs, time-outs of a minute, messages that say who is
    missing,
    and a watch: when a process dies, the others log who it was and end with status 70, rather than wait in a
    collective.

    Args:
        coordinator: host and port of process 0, as `10.0.0.1:8476`; the watch takes the port after it. None:
            JAX finds it (SLURM, Open MPI, Cloud TPU, Kubernetes), and the watch is left to JAX's heartbeat.
        processes: how many there are.
        process: which one this is, from 0.
        timeout: seconds to wait for the others.
        heartbeat: seconds without a sign of life after which JAX takes a process for dead.
        watch: whether to watch the others.
        on_death: called with the message, in another thread, instead of ending this process.

    Raises:
        ValueError: numbers that make no sense, or some of the three missing.
        ProcessError: process 0 cannot be reached, processes are missing after `timeout` seconds, two say that
            they are the same one, or they do not agree on how many they are.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if coordinator is None and processes is None and process is None:
        jax.distributed.initialize(
            initialization_timeout=int(timeout), heartbeat_timeout_seconds=int(heartbeat)
        )
        return
    host, port, processes, process = _checked(coordinator, processes, process)
    seen = _Watch(host, port + 1, processes, process, timeout, on_death or _end) if watch else None
    if not watch and process:
        _connect(host, port, timeout).close()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=max(1, int(timeout)),
            heartbeat_timeout_seconds=max(1, int(heartbeat)),
        )
    except RuntimeError as error:
        raise ProcessError(
            f"process {process} of {processes} could not join {coordinator}: {error}"
        ) from error
    if seen is not None:
        seen.at_exit()


def _checked(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int, int]:
    if coordinator is None or processes is None or process is None:
        raise ValueError("say coordinator, processes and process, or none of them")
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise ValueError(f"a coordinator is a host and a port as '10.0.0.1:8476', not {coordinator!r}")
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(f"of {processes} processes each is 0 to {processes - 1}, not {process}")
    return host, int(port), processes, process


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    """A connection to process 0, which may start later than this one.

    Raises:
        ProcessError: nobody answers in time.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, min(5.0, end - time.monotonic())))
        except OSError as error:
            if time.monotonic() >= end:
                raise ProcessError(
                    f"process 0 does not answer at {host}:{port} within {timeout:g} s ({error}): is it "
                    "running, and is this its address?"
                ) from error
            time.sleep(min(0.1, timeout / 10))


def _end(message: str) -> None:
    """Say it and end: the main thread may be in a collective that never returns."""
    _LOG.critical("%s", message)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(_PEER_DIED)


def _server(host: str, port: int, backlog: int) -> socket.socket:
    """Listen at the address; at all of the machine's where it is not one of these (behind a service)."""
    try:
        return socket.create_server((host, port), backlog=backlog)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return socket.create_server(("", port), backlog=backlog)


class _Line:
    """A connection that carries a JSON object a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket = connection
        self._rest = b""
        self._lock = threading.Lock()

    def send(self, **said: Any) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(said).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """What the other end says next; None if it is gone, or says nothing in time."""
        try:
            self._socket.settimeout(timeout)
            while b"\n" not in self._rest:
                more = self._socket.recv(4096)
                if not more or len(self._rest) > 1 << 16:
                    return None
                self._rest += more
            line, _, self._rest = self._rest.partition(b"\n")
            said = json.loads(line)
        except (OSError, ValueError):
            return None
        return said if isinstance(said, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class _Watch:
    """One end of the connections between process 0 and the others, from the first word to the last."""

    def __init__(
        self, host: str, port: int, count: int, process: int, timeout: float, on_death: Callable[[str], None]
    ) -> None:
        self._count = count
        self._process = process
        self._on_death = on_death
        self._lines: dict[int, _Line] = {}
        self._names: dict[int, str] = {}
        self._over = threading.Event()
        self._error = ""
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
        hook = sys.excepthook

        def noted(kind: Any, error: Any, trace: Any) -> None:
            self._error = f"{kind.__name__}: {error}"[:1000]
            hook(kind, error, trace)

        sys.excepthook = noted
        atexit.register(self._leave)

    # Coming together

    def _gather(self, host: str, port: int, timeout: float) -> None:
        """Process 0: wait for all others, tell each whether they may go on."""
        end = time.monotonic() + timeout
        try:
            server = _server(host, port, self._count)
        except OSError as error:
            raise ProcessError(f"process 0 cannot listen at {host}:{port}: {error}") from error
        wrong = ""
        with server:
            while len(self._lines) < self._count - 1 and not wrong:
                server.settimeout(max(0.05, end - time.monotonic()))
                try:
                    connection, _ = server.accept()
                except OSError:
                    missing = [i for i in range(1, self._count) if i not in self._lines]
                    wrong = f"of {self._count} processes {_listed(missing)} did not come within {timeout:g} s"
                    break
                wrong = self._greeted(_Line(connection))
        for line in self._lines.values():
            line.send(kind="wrong" if wrong else "welcome", message=wrong)
            if wrong:
                line.close()
        if wrong:
            raise ProcessError(wrong)

    def _greeted(self, line: _Line) -> str:
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
        line = _Line(_connect(host, port, timeout))
        name = f"{socket.gethostname()}, pid {os.getpid()}"
        line.send(kind="hello", process=self._process, of=self._count, name=name)
        said = line.receive(timeout + 5.0)
        if said is None or said.get("kind") != "welcome":
            line.close()
            why = said.get("message") if said else "process 0 ended, or is of another program"
            raise ProcessError(str(why))
        self._lines[0], self._names[0] = line, host

    # Living and ending together

    def _listen(self, peer: int, line: _Line) -> None:
        said = line.receive()
        line.close()
        kind = said.get("kind") if said else None
        if kind == "bye":
            self._lines.pop(peer, None)
        elif said and kind == "death":
            self._dead(str(said["message"]))
        else:
            how = f"ended with {said['error']}" if said and kind == "failed" else "died"
            self._dead(f"process {peer} of {self._count} ({self._names[peer]}) {how}")

    def _dead(self, message: str) -> None:
        """Tell the others, and end."""
        if self._over.is_set():
            return
        self._over.set()
        for line in list(self._lines.values()):
            line.send(kind="death", message=message)
        self._on_death(f"{message}; process {self._process} ends too")

    def _leave(self) -> None:
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
            os._exit(1)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:16])) + (f" and {len(numbers) - 16} more" if len(numbers) > 16 else "")
