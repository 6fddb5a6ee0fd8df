"""`lepton demo`: trains two small models, optimises what they run, compresses them, shows what changed."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax

from lepton_jax.demo.compressed import KINDS, CompressedRow, compressed_rows
from lepton_jax.demo.data import load_digits, load_text
from lepton_jax.demo.page import render_page
from lepton_jax.demo.programs import BUILDERS, Row, build_baseline, measure_program
from lepton_jax.demo.table import render, render_compressed
from lepton_jax.demo.train import digits_task, text_task

__all__ = ["CompressedRow", "DemoResult", "Row", "run"]


@dataclass(frozen=True)
class DemoResult:
    """What `run` found.

    Attributes:
        rows: one for each program.
        compressed: one for each trained model and method.
        machine: what it ran on, in words.
        seconds: wall time of the whole run.
        table: the printed tables.
    """

    rows: tuple[Row, ...]
    compressed: tuple[CompressedRow, ...]
    machine: str
    seconds: float
    table: str


def run(out: str | None = None, fast: bool = False) -> DemoResult:
    """Trains, optimises, measures; prints progress to stderr and the table to stdout.

    Args:
        out: path of a self-contained HTML page to write as well.
        fast: small models, a handful of training steps and few timings, for tests.

    Raises:
        ModuleNotFoundError: if scikit-learn is missing, naming the extra to install.
        FileNotFoundError: if the folder of `out` does not exist.
    """
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise FileNotFoundError(f"no such folder for the page: {Path(out).resolve().parent}")
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {text}", file=sys.stderr, flush=True)

    seconds, pairs = (0.2, 5) if fast else (4.0, 15)
    rows: list[Row] = []
    compressed: list[CompressedRow] = []
    say("reading the digits and the text, initialising the models")
    for task in (digits_task(load_digits(), fast=fast), text_task(load_text(), fast=fast)):
        baseline = build_baseline(task, say)
        for build in BUILDERS:
            rows.append(measure_program(build(baseline, say), say, seconds=seconds, pairs=pairs))
        kinds = KINDS[task.name]
        if fast:
            kinds = kinds[:4] if task.name == "LeptonNet" else kinds[:2]
        compressed += compressed_rows(baseline, kinds, say, seconds=seconds / 16, pairs=5)
    table = f"{render(rows)}\n\n{render_compressed(compressed)}"
    result = DemoResult(
        tuple(rows), tuple(compressed), describe_machine(), time.perf_counter() - start, table
    )
    print(f"\n{result.table}\n\n{result.machine}; the demo took {result.seconds:.0f} s")
    if out is not None:
        Path(out).write_text(
            render_page(result.rows, result.compressed, result.machine, result.seconds), encoding="utf-8"
        )
        print(f"page written to {out}")
    return result


def describe_machine() -> str:
    """Python, JAX and the default device, in words."""
    device = jax.devices()[0]
    return (
        f"Python {platform.python_version()}, JAX {jax.__version__}, {device.device_kind} "
        f"({device.platform}), {os.cpu_count()} CPU cores"
    )
