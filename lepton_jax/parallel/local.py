"""Real processes on this machine, joined by `jax.distributed` over loopback: to try what crosses processes.

Processes start, run the same program, and end within a time-out, whatever happens.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_JOIN = """\
import os as _os
from lepton_jax.parallel import processes as _processes
_here = [int(_os.environ[name]) for name in ("PROCESSES", "PROCESS")]
_processes.start(_os.environ["COORDINATOR"], *_here, timeout=30)
"""

_DEVICES: Final = "--xla_force_host_platform_device_count"
"""Of flags that are given twice, the last counts."""


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        status: its exit status; negative: the signal that ended it.
        out: what it printed.
        err: what it said besides.
        seconds: how long it ran.
    """

    status: int
    out: str
    err: str
    seconds: float


def free_port() -> int:
    """A port that is free now, and the next one too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def run_processes(
    program: str | Path,
    n: int = 2,
    devices: int = 2,
    timeout: float = 60.0,
    *,
    join: bool = True,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> list[Ended]:
    """Run a program in `n` processes with so many CPU devices each; all have ended when it returns.

    Args:
        program: its text, or the path of a script.
        n: how many processes.
        devices: of each process.
        timeout: seconds after which processes that still run are killed.
        join: whether `processes.start` is called for the text of a program. Otherwise, and for scripts, the
            environment says COORDINATOR, PROCESSES and PROCESS.
        args: of a script; `{coordinator}`, `{processes}` and `{process}` stand for this.
        env: more of the environment.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    root = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="lepton-processes-") as folder:
        script = program if isinstance(program, Path) else Path(folder) / "program.py"
        if isinstance(program, str):
            script.write_text((_JOIN if join else "") + textwrap.dedent(program))
        running: list[subprocess.Popen[bytes]] = []
        start = time.monotonic()
        try:
            for process in range(n):
                said = {"coordinator": coordinator, "processes": str(n), "process": str(process)}
                given = {
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}={devices}",
                    "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", "")))),
                    **{name.upper(): value for name, value in said.items()},
                    **(env or {}),
                }
                with (
                    open(Path(folder) / f"{process}.out", "wb") as out,
                    open(Path(folder) / f"{process}.err", "wb") as err,
                ):
                    line = [sys.executable, str(script), *(arg.format(**said) for arg in args)]
                    running.append(subprocess.Popen(line, stdout=out, stderr=err, env=given))
            seconds = [_waited(each, start, timeout) for each in running]
        finally:
            for each in running:
                each.kill()
                each.wait()
        return [
            Ended(
                each.returncode,
                (Path(folder) / f"{i}.out").read_text(errors="replace"),
                (Path(folder) / f"{i}.err").read_text(errors="replace"),
                seconds[i],
            )
            for i, each in enumerate(running)
        ]


def _waited(process: subprocess.Popen[bytes], start: float, timeout: float) -> float:
    try:
        process.wait(max(0.1, start + timeout - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return time.monotonic() - start
