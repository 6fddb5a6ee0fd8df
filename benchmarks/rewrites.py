"""What the rewrites are worth: naive program, Lepton's and the best form by hand, timed in turn.

    python benchmarks/rewrites.py [--only TEXT] [--rounds N] [--json FILE] [--markdown FILE]

For each case, three compiled programs run in turn in one process: `jax.jit` of the program as
written, `lepton.optimize` of it, and the form that a specialist would write. A sample is as many calls
as take 10 ms. A large program slows what runs in the 20 ms after it, so each program runs for so long
untimed before its sample, and from round to round the three take turns in all of their six orders. The
table gives the time of the first, the median over the rounds of naive/Lepton and naive/optimum with the
spread between the quartiles, and the rules that fired. A case that comes out below 0.95 is timed again, three
times and then nine times as long. Where a case misses an aim although XLA has compiled the two programs to
the same instructions, what was timed is chance; the table says "same program" and counts it as met. Programs
whose times are within a tenth of one another are compared as well: one of the correlations of predicted with
measured savings counts the same program as saving nothing. Aims: Lepton within 1.15 of the optimum where the
optimum is 1.1 or more times faster than the program as written, and nowhere below 0.95 of `jax.jit`. On a GPU
the same script takes the larger arguments of the cases.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import pkgutil
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("LEPTON_STRICT", "1")

import jax
import jax.numpy as jnp
import numpy as np

import lepton_jax as lepton
from benchmarks import rewrite_cases
from benchmarks._correlation import CORRELATIONS, correlations
from benchmarks.rewrite_cases._case import Case
from lepton_jax.targets import processor

PAYS, NEAR, NEVER = 1.1, 1.15, 0.95
"""From where on a case pays; how near the optimum Lepton is to come; what it must never fall below."""

ALIKE = 0.1
"""Within this of one another the times of two programs may be chance."""

SAMPLE, SETTLE = 0.01, 0.02
"""Seconds that a sample lasts, and that a program runs untimed before it."""


def cases() -> list[tuple[str, Case]]:
    """All cases with the names of their families."""
    families = sorted(m.name for m in pkgutil.iter_modules(rewrite_cases.__path__) if m.name[0] != "_")
    modules = {f: importlib.import_module(f"{rewrite_cases.__name__}.{f}") for f in families}
    return [(family, case) for family, module in modules.items() for case in module.CASES]


def timer(fun: Callable[..., Any], args: Sequence[Any]) -> Callable[[], float]:
    """Measures the seconds of one call, over as many calls as take 10 ms, after 20 ms untimed."""
    jax.block_until_ready(fun(*args))

    def run(count: int, settle: float) -> float:
        until = time.perf_counter() + settle
        while time.perf_counter() < until:
            jax.block_until_ready(fun(*args))
        start = time.perf_counter()
        for _ in range(count):
            result = fun(*args)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / count

    once = min(run(1, SETTLE / 4) for _ in range(3))
    count = max(1, min(2000, int(SAMPLE / max(once, 1e-7))))
    return lambda: run(count, SETTLE)


def in_turn(timers: Sequence[Callable[[], float]], rounds: int) -> Any:
    """A row of seconds for each round; from row to row the timers run in another order."""
    times = np.empty((rounds, len(timers)))
    orders = itertools.cycle(itertools.permutations(range(len(timers))))
    for row, order in zip(range(rounds), orders, strict=False):
        for which in order:
            times[row, which] = timers[which]()
    return times


def instructions(program: Any, args: Sequence[Any]) -> str:
    """What XLA compiles a program to, without the names that it gives and where they come from."""
    text = program.lower(*args).compile().as_text()
    text = re.split(r"^(?=%|ENTRY)", text, maxsplit=1, flags=re.MULTILINE)[-1]
    text = re.sub(r", metadata=\{[^}]*\}|[\w.\-]+: ", "", text)  # and the names of parameters
    names: dict[str, str] = {}
    return re.sub(r"%[\w.\-]+", lambda found: names.setdefault(found[0], f"%{len(names)}"), text)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Times a case."""
    gpu = jax.default_backend() == "gpu"
    args = jax.device_put((case.gpu_args if gpu and case.gpu_args is not None else case.args)())
    optimum = case.gpu if gpu and case.gpu is not None else case.optimum
    optimised = lepton.optimize(case.naive, case.passes)
    programs: list[Callable[..., Any]] = [jax.jit(case.naive), optimised, jax.jit(optimum)]
    results = [program(*args) for program in programs]
    worst = max(difference(results[0], other) for other in results[1:])
    timers = [timer(program, args) for program in programs]
    times = in_turn(timers, rounds)
    for longer in (3, 9):
        if np.median(times[:, 0] / times[:, 1]) < NEVER:  # chance, or real?
            times = in_turn(timers, longer * rounds)
    traced = optimised.trace(*args)
    predicted = traced.predicted()
    ratio = np.median(times[:, 0] / times[:, 1])
    compared = {
        "naive": ratio < NEVER or abs(ratio - 1) <= ALIKE,
        "optimum": np.median(times[:, 1] / times[:, 2]) > NEAR,
    }
    others = {"naive": programs[0], "optimum": programs[2]}
    own = instructions(optimised, args) if any(compared.values()) else ""
    same = [which for which, is_so in compared.items() if is_so and own == instructions(others[which], args)]
    return {
        "name": case.name,
        "naive_seconds": float(np.median(times[:, 0])),
        "lepton": spread(times[:, 0] / times[:, 1]),
        "optimum": spread(times[:, 0] / times[:, 2]),
        "to_gain": case.optimum is not case.naive,
        "behind": float(np.median(times[:, 1] / times[:, 2])),
        "same_program": same,
        "predicted_saving_seconds": predicted[0] - predicted[1],
        "measured_saving_seconds": float(np.median(times[:, 0] - times[:, 1])),
        "difference": worst,
        "tolerance": case.tolerance,
        "rules": dict(traced.report.rules),
    }


def spread(ratios: Any) -> list[float]:
    """Median and quartiles."""
    return [float(np.quantile(ratios, q)) for q in (0.5, 0.25, 0.75)]


def difference(expected: Any, got: Any) -> float:
    """The largest difference between two results, in terms of the largest number in the expected one."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        left, right = numbers(a), numbers(b)
        differ = (left != right) & ~(np.isnan(left) & np.isnan(right))
        if np.any(differ):
            scale = float(np.max(np.abs(left[np.isfinite(left)]), initial=0.0)) or 1.0
            worst = float(np.maximum(worst, np.max(np.abs(left[differ] - right[differ])) / scale))
    return worst


def numbers(x: Any) -> Any:
    """An array of any dtype as complex numbers; PRNG keys as their data."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).astype(np.complex128)


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    (mid, low, high), best = row["lepton"], row["optimum"][0]
    pays = row["to_gain"] and best >= PAYS
    marks = ["behind the optimum"] if pays and not is_near(row) else []
    marks += ["SLOWER"] if is_slower(row) else []
    marks += ["same program"] if row["same_program"] else []
    marks += ["DIFFERENT"] if not row["difference"] <= row["tolerance"] else []
    fired = ", ".join(f"{n}×{c}" if c > 1 else n for n, c in row["rules"].items())
    print(
        f"{row['name'][:52]:<52}{row['naive_seconds'] * 1e3:>9.3f}{mid:>8.2f} ({low:.2f}–{high:.2f})"
        f"{best:>9.2f}  {'; '.join(marks) or 'ok':<20}{fired}",
        flush=True,
    )


def is_near(row: dict[str, Any]) -> bool:
    """Whether Lepton's program is near the optimum, or the same to XLA."""
    return bool(row["behind"] <= NEAR or "optimum" in row["same_program"])


def is_slower(row: dict[str, Any]) -> bool:
    """Whether Lepton's program is slower than the one as written, and not the same to XLA."""
    return bool(row["lepton"][0] < NEVER and "naive" not in row["same_program"])


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures that the aims are about."""
    paying = [row for row in rows if row["to_gain"] and row["optimum"][0] >= PAYS]
    near = [row for row in paying if is_near(row)]
    found = {
        "cases": len(rows),
        "paying": len(paying),
        "near": len(near) / max(len(paying), 1),
        "near_as_timed": sum(row["behind"] <= NEAR for row in paying) / max(len(paying), 1),
        "slower": sum(map(is_slower, rows)),
        "slower_as_timed": sum(row["lepton"][0] < NEVER for row in rows),
        "geometric_mean": math.exp(statistics.fmean(math.log(row["lepton"][0]) for row in rows)),
    }
    return {**found, **correlations(rows)}


def page(rows: Sequence[dict[str, Any]], found: dict[str, float], rounds: int) -> str:
    """The table as a page of the documentation."""
    kind = processor.model() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    device = f"{jax.default_backend()} ({kind}, {os.cpu_count()} cores)"
    facts = {
        f"cases in which the form by hand is {PAYS} or more": f"{found['paying']} of {found['cases']}",
        f"of these, Lepton is within {NEAR} of it, or is the same program to XLA": f"{found['near']:.0%}",
        "the same by the clock alone": f"{found['near_as_timed']:.0%}",
        f"cases in which Lepton is below {NEVER} and not the same program": found["slower"],
        "the same by the clock alone ": found["slower_as_timed"],
        "geometric mean over all cases": f"{found['geometric_mean']:.2f}",
    }
    for key, where in CORRELATIONS.items():
        if key in found:
            facts[f"rank correlation of predicted and measured saving, {where}"] = f"{found[key]:.2f}"
    lines = [
        "# Measured",
        "",
        f"Written by `python benchmarks/rewrites.py --rounds {rounds} --markdown docs/measured.md`,",
        f"jax {jax.__version__},",
        f"{device}. How many times as fast as `jax.jit` of the program as written",
        "`lepton.optimize` is, and the form that a specialist would write by hand: medians of runs in turn,",
        "with the quartiles.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in facts.items()),
    ]
    last = ""
    for row in rows:
        if row["family"] != last:
            last = row["family"]
            lines += [
                "",
                f"## {last}",
                "",
                "| case | `jax.jit`, ms | Lepton | by hand |",
                "|---|---|---|---|",
            ]
        mid, low, high = row["lepton"]
        best = f"{row['optimum'][0]:.2f}" if row["to_gain"] else "–"
        name = row["name"].replace("|", "\\|")
        lines.append(
            f"| {name} | {row['naive_seconds'] * 1e3:.3f} | {mid:.2f} ({low:.2f}–{high:.2f}) | {best} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="families or cases with this text in their names")
    parser.add_argument("--rounds", type=int, default=25, help="how often each program is timed")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--markdown", type=Path, help="write docs/measured.md anew, or another page like it")
    options = parser.parse_args()
    chosen = [(f, c) for f, c in cases() if options.only in f or options.only in c.name]
    if not chosen:
        parser.error(f"no family and no case has {options.only!r} in its name")
    print(f"jax {jax.__version__}, {jax.default_backend()} ({jax.devices()[0].device_kind})\n")
    print(f"{'case':<52}{'jit ms':>9}{'lepton':>8}{'':14}{'optimum':>9}")
    rows, last = [], ""
    for family, case in chosen:
        if family != last:
            print(f"-- {family}")
        last = family
        rows.append({"family": family, **measure(case, options.rounds)})
        show(rows[-1])
        jax.clear_caches()
    found = summary(rows)
    print(f"\n{found['cases']} cases; the optimum pays in {found['paying']}")
    print(
        f"of these, Lepton is within {NEAR} of it: {found['near']:.0%} (aim: 90 %), "
        f"by the clock alone {found['near_as_timed']:.0%}"
    )
    print(
        f"below {NEVER} of jit: {found['slower']} (aim: 0), by the clock alone {found['slower_as_timed']}; "
        f"geometric mean {found['geometric_mean']:.2f}"
    )
    for key, where in CORRELATIONS.items():
        if key in found:
            print(f"rank correlation of predicted and measured saving, {where}: {found[key]:.2f} (aim: 0.8)")
    if options.markdown is not None:
        options.markdown.write_text(page(rows, found, options.rounds), encoding="utf-8")
    if options.json is not None:
        options.json.write_text(json.dumps({"cases": rows, "summary": found}, indent=1))


if __name__ == "__main__":
    main()
