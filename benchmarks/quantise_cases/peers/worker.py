"""A process that holds one tool: it is told through pipes what to build and when to run.

`python -m benchmarks.quantise_cases.peers.worker TOOL` reads a line of JSON for each request and answers
with one. Between requests it waits for a line and takes no time from the others; each answer says how long
it waited and how much processor time it took meanwhile, so that threads that spin are seen.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, TextIO

from benchmarks.quantise_cases.peers._problem import Problem, Run, Variant, error, read

SETTLE: Final = 0.03
"""Seconds that a model runs untimed before a sample: what ran before has filled the caches."""

SAMPLE: Final = 0.05
"""Seconds that a sample lasts."""

EXACT: Final = 1e-4
"""The largest error of a model in floats, relative to the norm of the result."""


class Worker:
    """Answers requests; holds the models that are built."""

    def __init__(self, tool: str) -> None:
        self.module: Any = importlib.import_module(f"{__package__}.{tool}")
        self.problem: Problem | None = None
        self.runs: dict[str, Run] = {}

    def missing(self) -> list[str]:
        """The packages that the tool needs and that are not installed."""
        return [name for name in self.module.REQUIRES if importlib.util.find_spec(name) is None]

    def load(self, folder: str) -> list[dict[str, Any]]:
        """Build each variant for the problem in a folder, and say how far from float32 it is."""
        self.runs.clear()
        self.problem = read(Path(folder))
        return [self._build(self.problem, variant) for variant in self.module.variants(self.problem)]

    def _build(self, problem: Problem, variant: Variant) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            run = variant.build()
            wrong = error(problem.expected, variant.numbers(run()))
            if variant.is_float and not wrong <= EXACT:
                raise ValueError(f"the model in floats is not the same: relative error {wrong:.2g}")
        except Exception as problem_found:
            traceback.print_exc()
            said = (str(problem_found).strip().splitlines() or [""])[0]
            return {"variant": variant.name, "failed": f"{type(problem_found).__name__}: {said}"[:120]}
        self.runs[variant.name] = run
        return {"variant": variant.name, "error": wrong, "seconds to build": time.perf_counter() - start}

    def time(self, variant: str) -> float:
        """Seconds of one call of a variant."""
        run = self.runs[variant]
        until = time.perf_counter() + SETTLE
        while time.perf_counter() < until:
            run()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SAMPLE:
            run()
            count += 1
        return (time.perf_counter() - start) / count


def serve(worker: Worker, answers: TextIO) -> None:
    """Answer until there are no more requests."""
    wall, busy = time.perf_counter(), time.process_time()
    for line in sys.stdin:
        idle = {"waited": time.perf_counter() - wall, "busy": time.process_time() - busy}
        name, *arguments = json.loads(line)
        answer = getattr(worker, name)(*arguments)
        print(json.dumps({"answer": answer, **idle}), file=answers, flush=True)
        wall, busy = time.perf_counter(), time.process_time()


def main() -> None:
    """Keep the standard output for the answers: what libraries print goes to the errors."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Worker(sys.argv[1]), answers)


if __name__ == "__main__":
    main()
