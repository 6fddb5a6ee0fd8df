"""Times Lepton and the peers in turn, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks._common import Row
from benchmarks.quantise_cases.peers import problems

PEERS: Final = ("qwix", "onnxruntime", "openvino", "torch")

INSTALL: Final = "pip install 'lepton-jax[peers]'"

PAUSE: Final = 0.01
"""Seconds between two turns, in which the threads of the one before come to rest."""

SPINNING: Final = 0.05
"""The share of a core that a process may take while it waits."""

ROUNDS: Final = 11

LONG: Final = 0.2
"""Seconds of waiting from which on a process must have come to rest."""

RATIOS: Final = {
    "time of Lepton's dynamic": "Lepton int8, dynamic",
    "time of Lepton's static": "Lepton int8, static",
}


def has(case: str) -> bool:
    """Whether a case has models that the peers can run."""
    return bool(problems.names(case, quick=True))


class Peer:
    """A worker's end of the pipe.

    Raises:
        RuntimeError: from any request, if the process has ended.
    """

    def __init__(self, tool: str, python: str, log: Path) -> None:
        root = Path(__file__).resolve().parents[3]
        count = str(os.cpu_count())
        paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        self.tool, self.log, self.spun = tool, log, 0.0
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.quantise_cases.peers.worker", tool],
                cwd=root,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": count, "KMP_BLOCKTIME": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, *request: Any) -> Any:
        """The answer to a request, a method of the worker and its arguments."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            said = self.log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise RuntimeError(f"the process of {self.tool} has ended: {''.join(said)}") from error
        if request[0] == "time" and answer["waited"] > LONG:
            self.spun = max(self.spun, answer["busy"] / answer["waited"])
        return answer["answer"]

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


def measure(python: str, quick: bool, case: str) -> list[Row]:
    """A row for each problem of a case and each way to run it.

    The processes are started anew for each problem, so that none keeps what it held for the last one. The
    ratios are medians over rounds of the row's seconds divided by Lepton's in the same round: above one,
    Lepton is faster. The error is relative to the float32 result of JAX.

    Args:
        python: the interpreter that has the peers; Lepton runs in this one.
        quick: small sizes and two rounds.
    """
    found: list[Row] = []
    missing: set[str] = set()
    for name in problems.names(case, quick):
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            peers, lacking = start(python, folder)
            for peer in peers:
                stack.callback(peer.close)
            problems.problem(name, quick).save(folder)
            built = [(peer, row) for peer in peers for row in load(peer, folder)]
            found += compare(built, name, 2 if quick else ROUNDS)
        missing.update(lacking)
        for peer in peers:
            if peer.spun > SPINNING:
                print(f"{name}: {peer.tool} kept {peer.spun:.0%} of a core busy while others ran")
    if missing:
        print(f"not measured: {', '.join(sorted(missing))} not installed in {python} ({INSTALL})\n")
    return found


def start(python: str, folder: Path) -> tuple[list[Peer], list[str]]:
    """Lepton and the peers that are installed, and what those that are not would need."""
    there, missing = [Peer("lepton", sys.executable, folder / "lepton.log")], []
    for tool in PEERS:
        peer = Peer(tool, python, folder / f"{tool}.log")
        if lacking := peer.ask("missing"):
            missing += lacking
            peer.close()
        else:
            there.append(peer)
    return there, missing


def load(peer: Peer, folder: Path) -> list[Row]:
    """What a peer builds for a problem; one row if its process ends at it, for want of memory, say."""
    try:
        return list(peer.ask("load", str(folder)))
    except RuntimeError as error:
        return [{"variant": peer.tool, "failed": str(error)[:120]}]


def compare(built: Sequence[tuple[Peer, Row]], name: str, rounds: int) -> list[Row]:
    """Time what was built in turn; from round to round another one is first."""
    running = [(peer, row["variant"]) for peer, row in built if "failed" not in row]
    times: dict[str, list[float]] = {variant: [] for _, variant in running}
    for turn in range(rounds):
        first = turn % len(running)
        for peer, variant in [*running[first:], *running[:first]]:
            time.sleep(PAUSE)
            times[variant].append(peer.ask("time", variant))
    return [row_of(name, row, times) for _, row in built]


def row_of(name: str, row: Row, times: dict[str, list[float]]) -> Row:
    """A row of the table: medians, and what was said when the model was built."""
    seconds = times.get(row["variant"])
    found: Row = {"model": name, "as": row["variant"], "ms": "–"}
    if seconds:
        found["ms"] = statistics.median(seconds) * 1e3
    for column, lepton in RATIOS.items():
        pairs = zip(seconds or [], times.get(lepton, []), strict=False)
        ratios = [other / ours for other, ours in pairs]
        found[column] = statistics.median(ratios) if ratios else "–"
    found["error"] = row.get("error", row.get("failed"))
    return found
