"""The demo's text table: one row for each program, with its quality and its rules on the lines below."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jax.demo.programs import Row

HEADERS = (
    "program",
    "equations",
    "trace/pass/compile s",
    "run ms",
    "ratio (quartiles)",
    "largest diff",
    "quality",
)
NOTES = (
    "a -> b: with jax.jit, then with lepton.optimize. equations: nested ones counted. ratio: lepton's run",
    "time over jax.jit's, median of pairs run in turn; below 1, lepton is faster. largest diff: absolute,",
    "over all outputs. quality: on the test data; for a train step, after a whole training from the same",
    "start.",
)


def cells(row: Row) -> tuple[str, ...]:
    """The text of one row, in the order of `HEADERS`."""
    low, middle, high = row.timing.quartiles
    return (
        row.program,
        f"{row.equations_before} -> {row.equations_after}",
        f"{row.trace_seconds:.2f}/{row.pass_seconds:.2f}/{row.compile_seconds:.2f}",
        f"{1e3 * row.timing.plain_seconds:.3g} -> {1e3 * row.timing.optimised_seconds:.3g}",
        f"{middle:.3f} ({low:.3f}-{high:.3f})",
        f"{row.largest_difference:.1e}",
        outcome(row),
    )


def outcome(row: Row) -> str:
    """The metric before and after."""
    if row.metric.startswith("accuracy"):
        return f"accuracy {row.before.value:.2f} -> {row.after.value:.2f} %"
    return f"{row.metric.split()[0]} {row.before.value:.3f} -> {row.after.value:.3f}"


def rules(row: Row, most: int | None = None) -> str:
    """The rules that fired, most often first, at most `most` of them and the number of the others."""
    if not row.rules:
        return "none"
    shown = row.rules[:most]
    others = len(row.rules) - len(shown)
    return ", ".join(f"{name} {count}" for name, count in shown) + (f", and {others} more" if others else "")


def render(rows: Sequence[Row], most_rules: int = 4) -> str:
    """The whole table, with notes that explain its columns."""
    body = [cells(row)[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADERS[:-1], *body, strict=True)]
    lines = [_line(HEADERS[:-1], widths), "  ".join("-" * width for width in widths)]
    for row, texts in zip(rows, body, strict=True):
        lines.append(_line(texts, widths))
        lines.append(f"    {HEADERS[-1]}: {outcome(row)}")
        lines.append(f"    rules: {rules(row, most_rules)}")
        if row.skipped:
            lines.append(f"    skipped: {', '.join(row.skipped)}")
    return "\n".join((*lines, "", *NOTES))


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()
