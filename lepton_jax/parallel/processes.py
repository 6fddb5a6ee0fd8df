"""Programs of several processes: how they find one another, and how they end together.

`jax.distributed` connects the processes. Beside it each process holds one plain connection to process 0,
which is open as long as the process lives: within moments of a death all others know who it was. A process
that waits for a dead peer in a collective cannot be woken by an exception, so it ends, with a message.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Final

import jax

from lepton_jax.parallel._processes.line import ProcessError as ProcessError
from lepton_jax.parallel._processes.line import connect
from lepton_jax.parallel._processes.watch import Watch

_LOG: Final = logging.getLogger("lepton")
_PEER_DIED: Final = 70
"""The exit status of a process that ends because another did (EX_SOFTWARE)."""


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
    missing, and a watch: when a process dies, the others log who it was and end with status 70, rather than
    wait in a collective.

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
    seen = Watch(host, port + 1, processes, process, timeout, on_death or _end) if watch else None
    if not watch and process:
        connect(host, port, timeout).close()
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


def _end(message: str) -> None:
    """Say it and end: the main thread may be in a collective that never returns."""
    _LOG.critical("%s", message)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(_PEER_DIED)
