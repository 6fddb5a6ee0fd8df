"""The demo's text tables: programs with their quality and rules on the lines below; compressed models."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jax.demo.compressed import CompressedRow
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
COMPRESSED_HEADERS = (
    "compressed model",
    "kB",
    "file kB",
    "quality",
    "run ms",
    "ratio (quartiles)",
    "made in s",
)
COMPRESSED_NOTES = (
    "a -> b: float32 with jax.jit, then the compressed model. kB: of weights in memory; file kB: of the",
    ".lepton file, program and all. W8A8: weights and activations of 8 bits; W4, W2: weights alone. trained,",
    "taught: for a fifth of the steps, on the task or by the whole model's answers. Zeros save bytes in the",
    "file, not time.",
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
    return quality(row.metric, row.before.value, row.after.value)


def quality(metric: str, before: float, after: float) -> str:
    """Two values of a metric, with its unit."""
    if metric.startswith("accuracy"):
        return f"accuracy {before:.2f} -> {after:.2f} %"
    return f"{metric.split()[0]} {before:.3f} -> {after:.3f}"


def compressed_cells(row: CompressedRow) -> tuple[str, ...]:
    """The text of one compressed model, in the order of `COMPRESSED_HEADERS`."""
    low, middle, high = row.timing.quartiles
    return (
        row.program,
        f"{row.bytes_before / 1e3:.0f} -> {row.bytes_after / 1e3:.0f}",
        f"{row.file_bytes / 1e3:.0f}",
        quality(row.metric, row.value_before, row.value_after),
        f"{1e3 * row.timing.plain_seconds:.3g} -> {1e3 * row.timing.optimised_seconds:.3g}",
        f"{middle:.3f} ({low:.3f}-{high:.3f})",
        f"{row.seconds:.1f}",
    )


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
    widths, lines = _head(HEADERS[:-1], body)
    for row, texts in zip(rows, body, strict=True):
        lines.append(_line(texts, widths))
        lines.append(f"    {HEADERS[-1]}: {outcome(row)}")
        lines.append(f"    rules: {rules(row, most_rules)}")
        if row.skipped:
            lines.append(f"    skipped: {', '.join(row.skipped)}")
    return "\n".join((*lines, "", *NOTES))


def render_compressed(rows: Sequence[CompressedRow]) -> str:
    """The table of compressed models, with notes."""
    body = [compressed_cells(row) for row in rows]
    widths, lines = _head(COMPRESSED_HEADERS, body)
    return "\n".join((*lines, *(_line(texts, widths) for texts in body), "", *COMPRESSED_NOTES))


def _head(headers: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
    """The widths of the columns, and the first two lines."""
    widths = [max(map(len, column)) for column in zip(headers, *body, strict=True)]
    return widths, [_line(headers, widths), "  ".join("-" * width for width in widths)]


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()
