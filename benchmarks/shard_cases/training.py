"""A transformer, trained by `examples/train_pod.py` on one device, on eight, by two processes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import time
from pathlib import Path
from typing import Any, Final

from benchmarks._common import Row
from benchmarks.shard_cases._text import text_for_eight
from lepton_jax.parallel.local import run_processes

SCRIPT: Final = Path(__file__).resolve().parents[2] / "examples" / "train_pod.py"

STEPS: Final = 60

WAYS: Final = {
    "dp": "data=8",
    "fsdp": "data=8",
    "tp": "data=2,model=4",
    "fsdp+tp": "data=2,model=4",
    "sp": "data=2,model=4",
    "auto": "data=2,model=4",
}
"""Shardings, each with a mesh of eight devices."""

_PROGRAM: Final = """
import contextlib, importlib.util, io, json
spec = importlib.util.spec_from_file_location("train_pod", {script!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with contextlib.redirect_stdout(io.StringIO()):
    losses = module.main({arguments!r})
print(json.dumps(losses))
"""


def measure(quick: bool) -> list[Row]:
    """Of each way: the mean loss of the last ten steps, and how far any step's loss is from one device's."""
    if (file := text_for_eight()) is None:
        return []
    steps = 3 if quick else STEPS
    width = 32 if quick else 128
    common = ["--text", str(file), "--steps", str(steps), "--width", str(width)]
    alone = _trained([*common, "--shard", "dp", "--mesh", "data=1"])
    rows = [_row("one device", "data=1", alone, alone)]
    for shard, mesh in ({"tp": "data=2,model=4"} if quick else WAYS).items():
        rows.append(_row(shard, mesh, _trained([*common, "--shard", shard, "--mesh", mesh]), alone))
    for shard, mesh in {} if quick else {"dp": "data=4", "fsdp": "data=4", "auto": "data=2,model=2"}.items():
        found = _in_two_processes([*common, "--shard", shard, "--mesh", mesh])
        rows.append(_row(f"{shard}, two processes", mesh, found, alone))
    return rows


def _trained(arguments: list[str]) -> tuple[list[float], float]:
    """The losses of a run in this process, and its seconds."""
    spec = importlib.util.spec_from_file_location("train_pod", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        losses: list[float] = module.main(arguments)
    return losses, time.perf_counter() - start


def _in_two_processes(arguments: list[str]) -> tuple[list[float], float]:
    """The losses of a run in two processes with two devices each."""
    program = _PROGRAM.format(script=str(SCRIPT), arguments=arguments)
    ended = run_processes(program, n=2, devices=2, timeout=600)
    for each in ended:
        if each.status:
            raise RuntimeError(f"a process ended with {each.status}: {each.err[-2000:]}")
    found: list[list[float]] = [json.loads(each.out.splitlines()[-1]) for each in ended]
    if found[0] != found[1]:
        raise RuntimeError(f"the processes do not agree on the losses: {found}")
    return found[0], max(each.seconds for each in ended)


def _row(name: str, mesh: str, found: tuple[list[float], float], alone: tuple[list[float], float]) -> Row:
    losses, seconds = found
    apart = max(abs(a - b) / b for a, b in zip(losses, alone[0], strict=True))
    last: Any = losses[-10:]
    return {
        "way": name,
        "mesh": mesh,
        "loss": sum(last) / len(last),
        "most apart from one device": apart,
        "seconds": seconds,
    }
