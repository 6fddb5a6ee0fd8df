"""Connections between processes that carry a JSON object a line."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
import time
from typing import Any, Final

_KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""The kernels' own signs of life: a machine that is gone closes no connection. In seconds, and how many."""


class ProcessError(RuntimeError):
    """The processes of a program do not come together."""


def connect(host: str, port: int, timeout: float) -> socket.socket:
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


def server(host: str, port: int, backlog: int) -> socket.socket:
    """Listen at the address; at all of the machine's where it is not one of these (behind a service)."""
    try:
        return socket.create_server((host, port), backlog=backlog)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return socket.create_server(("", port), backlog=backlog)


class Line:
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
