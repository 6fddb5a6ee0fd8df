"""Which rules fired, which nearly did, and why not."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lepton_jax._inputs import name_inputs
from lepton_jax._options import Options, StaticArguments
from lepton_jax._stage import Program, manager_for, trace_call
from lepton_jax.rewrite import Report


@dataclass(frozen=True)
class Explanation:
    """What `Optimized.explain` returns; print it.

    Attributes:
        report: the report of the run, with near misses.
    """

    report: Report

    @property
    def fired(self) -> list[tuple[str, int, float, str]]:
        """(rule, times, estimated seconds saved, user's file and line), most valuable first."""
        saved: defaultdict[tuple[str, str], float] = defaultdict(float)
        times: Counter[tuple[str, str]] = Counter()
        for found in self.report.applications:
            key = (found.rule, found.where)
            saved[key] += found.saving
            times[key] += 1
        rows = [(rule, times[rule, where], saved[rule, where], where) for rule, where in times]
        return sorted(rows, key=lambda row: (-row[2], -row[1], row[0], row[3]))

    @property
    def missed(self) -> list[tuple[str, str, int, str]]:
        """(rule, first condition that failed, times, user's file and line)."""
        times = Counter((miss.rule, miss.reason, miss.where) for miss in self.report.misses)
        return [(rule, reason, count, where) for (rule, reason, where), count in times.most_common()]

    def __str__(self) -> str:
        lines = [str(self.report), "", "fired (times, estimated saving, where):"]
        lines += [
            f"  {rule:<28} ×{count:<5} {_time(saving):>10}  {where}"
            for rule, count, saving, where in self.fired
        ]
        if not self.fired:
            lines.append("  nothing")
        lines += ["", "nearly fired (first condition that failed, where):"]
        lines += [
            f"  {rule:<28} ×{count:<5} {reason}  ({where})" for rule, reason, count, where in self.missed
        ]
        if not self.missed:
            lines.append("  nothing")
        return "\n".join(lines)


def explain(
    fun: Callable[..., Any],
    options: Options,
    static: StaticArguments,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Explanation:
    """Run the passes on a call, noting near misses. See `Optimized.explain`."""
    report = Report()

    @functools.wraps(fun)
    def traced(*args: Any, **kwargs: Any) -> int:
        nonlocal report
        jaxpr, _ = trace_call(fun, static, args, kwargs)
        inputs = name_inputs(fun, options.params, static, args, kwargs)
        manager = manager_for(options, explain=True)
        graph, report = manager.run(jaxpr, name, inputs.params, inputs.paths)
        report.predicted = Program(jaxpr, graph, report, name, options).predicted()
        return 0

    statics = {k: v for k, v in options.jit_arguments.items() if k.startswith("static")}
    jax.jit(traced, **statics).trace(*args, **kwargs)
    return Explanation(report)


def _time(seconds: float) -> str:
    """A duration with the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
