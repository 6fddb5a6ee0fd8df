"""Runs a pipeline on a program, watches it, and survives passes that fail."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lepton_jax.ir import collection
from lepton_jax.ir.cost import Rates
from lepton_jax.ir.facts import renew
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite.base import Pass
from lepton_jax.rewrite.context import Level, PassContext, Watch
from lepton_jax.rewrite.errors import PassError, UsageError
from lepton_jax.rewrite.instruments import Instrument
from lepton_jax.rewrite.pipeline import Fixpoint, Pipeline, Step
from lepton_jax.rewrite.report import PassRecord, Report

_NOTHING: Final[Mapping[tuple[str, str], tuple[Any, ...]]] = {}


class PassWarning(UserWarning):
    """A pass failed and was skipped; the program runs without it."""


class _Failed(Exception):
    """A pass raised: which, and what."""

    def __init__(self, step: Pass, error: Exception) -> None:
        super().__init__(str(step))
        self.step = step
        self.error = error


@dataclass
class PassManager:
    """Runs a pipeline.

    Attributes:
        pipeline: what to run.
        rates: the target.
        level: the loosest semantics level.
        strict: raise when a pass fails, instead of skipping it with a warning.
        instruments: observers.
        gate: see `PassContext.gate`.
        explain: collect near misses.
    """

    pipeline: Pipeline
    rates: Rates
    level: Level = "reassociate"
    strict: bool = False
    instruments: Sequence[Instrument] = ()
    gate: Callable[[int, str, str], bool] | None = None
    explain: bool = False

    def run(
        self,
        closed: Any,
        name: str = "f",
        params: frozenset[int] = frozenset(),
        paths: tuple[str, ...] = (),
        *,
        watches: list[Watch] | None = None,
        calibration: Mapping[tuple[str, str], tuple[Any, ...]] = _NOTHING,
        seen: list[Any] | None = None,
        is_bound: bool = False,
    ) -> tuple[Graph, Report]:
        """Import a closed jaxpr and rewrite it.

        Args:
            params: which of its inputs are parameters, by position.
            paths: what its inputs are called.
            watches: given for calibration; receives what the last outputs of the graph are.
            calibration: what was seen there, see `PassContext.calibration`.
            seen: receives the arrays of `calibration` that the last inputs of the graph stand for.
            is_bound: see `PassContext.is_bound`.

        Returns:
            The rewritten graph and the report.

        Raises:
            PassError: a pass failed, and `strict` is set.
            UsageError: what a pass was told does not fit the program.
        """
        pipeline = self.pipeline
        skipped: list[str] = []
        while True:
            ctx = PassContext(self.rates, self.level, self.gate, self.explain, params=params, paths=paths)
            ctx.watches, ctx.calibration, ctx.is_bound = watches, calibration, is_bound
            try:
                with collection.paused():
                    graph, report = self._run(closed, name, pipeline, ctx)
            except _Failed as failure:
                reproducer = _write_reproducer(closed, name, pipeline, failure, self.level)
                text = f"pass {failure.step} failed: {type(failure.error).__name__}: {failure.error}"
                if self.strict:
                    raise PassError(f"{text}. Reproducer: {reproducer}") from failure.error
                warnings.warn(f"Lepton skipped {text}. Reproducer: {reproducer}", PassWarning, stacklevel=2)
                skipped.append(f"{text} (reproducer: {reproducer})")
                pipeline = pipeline.without(failure.step.name)
                if watches is not None:
                    watches.clear()
                continue
            if seen is not None:
                seen += ctx.seen
            report.skipped += skipped
            return graph, report

    def _run(self, closed: Any, name: str, pipeline: Pipeline, ctx: PassContext) -> tuple[Graph, Report]:
        start = time.perf_counter()
        graph = from_jaxpr(closed, name)
        report = Report(pipeline=str(pipeline), target=self.rates.name, equations_before=graph.num_nodes())
        ctx.is_static = graph.is_static
        ctx.version = graph.total_version()
        for instrument in self.instruments:
            instrument.before_pipeline(graph)
        self._steps(pipeline.steps, graph, ctx, report)
        report.applications, report.misses, report.notes = ctx.applications, ctx.misses, ctx.notes
        report.sites, report.turned = ctx.sites, ctx.turned
        report.equations_after = graph.num_nodes()
        report.pass_seconds = time.perf_counter() - start
        return graph, report

    def _steps(self, steps: Sequence[Step], graph: Graph, ctx: PassContext, report: Report) -> None:
        for step in steps:
            if isinstance(step, Fixpoint):
                self._fixpoint(step, graph, ctx, report)
            else:
                self._pass(step, graph, ctx, report)

    def _fixpoint(self, step: Fixpoint, graph: Graph, ctx: PassContext, report: Report) -> None:
        for _ in range(step.rounds):
            before = ctx.version
            self._steps(step.steps, graph, ctx, report)
            if ctx.version == before:
                return

    def _pass(self, step: Pass, graph: Graph, ctx: PassContext, report: Report) -> None:
        start = time.perf_counter()
        before = ctx.version
        if step.idempotent and ctx.settled.get(step) == before:
            return
        ctx.current_pass = step.name
        ctx.counts.clear()
        try:
            for instrument in self.instruments:
                instrument.before_pass(step, graph)
            step.run(graph, ctx)
            ctx.version = ctx.settled[step] = graph.total_version()
            changed = ctx.version != before
            if changed:
                ctx.analyses.invalidate()
                renew(graph)
                ctx.version = graph.total_version()
            for instrument in self.instruments:
                instrument.after_pass(step, graph, changed)
        except UsageError:
            raise
        except Exception as error:
            raise _Failed(step, error) from error
        seconds = time.perf_counter() - start
        report.passes.append(PassRecord(str(step), seconds, dict(ctx.counts)))


def _write_reproducer(
    closed: Any, name: str, pipeline: Pipeline, failure: _Failed, level: Level
) -> Path | str:
    """Write the program and the pipeline to a file that shows the failure when run."""
    from lepton_jax.rewrite.reproducer import write_reproducer

    try:
        return write_reproducer(closed, name, str(pipeline), level, failure.error)
    except Exception as error:  # the failure at hand matters more than the file
        return f"none ({type(error).__name__}: {error})"
