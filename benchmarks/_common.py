"""What the cases share: timing in turn, errors, tables, and the folder of data."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np

SAMPLE: Final = 0.02
"""Seconds that a sample lasts."""

Row = dict[str, Any]


def in_turn(plain: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """The median of plain/ours over pairs of runs, and the median seconds of ours."""
    times = turns([plain, ours], rounds)
    ratios = [pair[0] / pair[1] for pair in times]
    return statistics.median(ratios), statistics.median(pair[1] for pair in times)


def turns(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of one call of each run, in each round; from round to round another one is first."""
    for run in runs:
        jax.block_until_ready(run())
    rows = []
    for turn in range(rounds):
        row = [0.0] * len(runs)
        for step in range(len(runs)):
            which = (turn + step) % len(runs)
            row[which] = seconds(runs[which])
        rows.append(row)
    return rows


def seconds(run: Callable[[], Any]) -> float:
    """Seconds of one call, over as many as take 20 ms, after one untimed."""
    jax.block_until_ready(run())
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SAMPLE:
        jax.block_until_ready(run())
        count += 1
    return (time.perf_counter() - start) / count


def relative(expected: Any, result: Any) -> float:
    """The norm of the error as a part of that of the result, over all arrays of two trees together."""
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True)
    flat = [(np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()) for a, b in pairs]
    right, wrong = (np.concatenate(side) for side in zip(*flat, strict=True))
    return float(np.linalg.norm(wrong - right) / np.linalg.norm(right))


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def batches(passes: str, *batch: Any) -> list[tuple[Any, ...]] | None:
    """One batch to calibrate with, where the passes want one."""
    return [batch] if any(word in passes for word in ("static", "gptq", "awq", "smooth")) else None


def data(*names: str) -> list[Path] | None:
    """Files in the folder that LEPTON_DATA names; None, and a line that says which, if one is missing."""
    folder = Path(os.environ.get("LEPTON_DATA", ""))
    files = [folder / name for name in names]
    if missing := [str(file) for file in files if not file.is_file()]:
        print(f"not measured: there is no {' and no '.join(missing)} (LEPTON_DATA names the folder)")
        return None
    return files


def table(rows: Iterable[Row]) -> str:
    """Rows as tables in Markdown; a new one wherever the names of the columns change."""
    tables = []
    for names, group in groupby(rows, key=tuple):
        lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
        lines += ["| " + " | ".join(_text(value) for value in row.values()) + " |" for row in group]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
