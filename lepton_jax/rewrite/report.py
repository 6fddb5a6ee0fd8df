"""What a run of a pipeline did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lepton_jax.rewrite.context import Application, Miss, Site


@dataclass
class PassRecord:
    """One run of one pass.

    Attributes:
        name: the pass as pipeline text.
        seconds: how long it took.
        applied: how often each of its rules fired.
    """

    name: str
    seconds: float
    applied: dict[str, int]

    @property
    def changed(self) -> bool:
        """Whether it changed anything."""
        return bool(self.applied)


@dataclass
class Report:
    """What Lepton did to a function at one set of shapes.

    Attributes:
        pipeline: its text.
        target: the machine it was optimised for.
        equations_before: how many equations the program had, regions included.
        equations_after: how many it has now.
        passes: every run of every pass, in order.
        applications: every change, in order (the first ten thousand).
        misses: what nearly fired; only `explain` collects it.
        skipped: passes that failed or could not apply, with the reason.
        notes: what else the user should know.
        sites: what compression passes did to weights, and what they left alone.
        turned: see `PassContext.turned`.
        trace_seconds: the time JAX took to trace the function.
        pass_seconds: the time the passes took, import included.
        predicted: estimated seconds of the program as XLA runs it by itself, and as rewritten; only
            `explain`, `verify` and `measure` ask for it.
    """

    pipeline: str = ""
    target: str = ""
    equations_before: int = 0
    equations_after: int = 0
    passes: list[PassRecord] = field(default_factory=list)
    applications: list[Application] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    turned: str = ""
    trace_seconds: float = 0.0
    pass_seconds: float = 0.0
    predicted: tuple[float, float] | None = None

    @property
    def rules(self) -> dict[str, int]:
        """How often each rule fired, most often first."""
        total: Counter[str] = Counter()
        for record in self.passes:
            total.update(record.applied)
        return dict(total.most_common())

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return any(record.changed for record in self.passes)

    def __str__(self) -> str:
        lines = [
            f"{self.equations_before} equations became {self.equations_after} "
            f"(trace {self.trace_seconds * 1e3:.0f} ms, passes {self.pass_seconds * 1e3:.0f} ms, "
            f"target {self.target})",
            f"pipeline: {self.pipeline or 'none'}",
        ]
        by_pass: dict[str, tuple[float, Counter[str]]] = {}
        for record in self.passes:
            seconds, rules = by_pass.get(record.name, (0.0, Counter()))
            by_pass[record.name] = (seconds + record.seconds, rules + Counter(record.applied))
        for name, (seconds, rules) in by_pass.items():
            fired = ", ".join(f"{rule} ×{count}" for rule, count in rules.most_common())
            lines.append(f"  {name:<18} {seconds * 1e3:7.1f} ms  {fired or '-'}")
        if self.predicted is not None:
            before, after = (f"{seconds * 1e3:.3g} ms" for seconds in self.predicted)
            lines.append(f"predicted: {after} instead of {before}")
        lines += [f"  {_place(site)}: {site.done or 'left'}{_because(site)}" for site in self.sites]
        lines += [f"skipped: {text}" for text in self.skipped]
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines)


def _place(site: Site) -> str:
    return f"{site.name} ({site.op})" if site.op else site.name


def _because(site: Site) -> str:
    return f": {site.reason}" if site.reason else ""
