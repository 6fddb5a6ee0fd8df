"""The demo's page: one HTML file with its style and its plots inside, no script and nothing to load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lepton_jax.demo.compressed import CompressedRow
from lepton_jax.demo.plots import Series, bar_chart, interval_chart, line_chart
from lepton_jax.demo.programs import Row
from lepton_jax.demo.table import (
    COMPRESSED_HEADERS,
    COMPRESSED_NOTES,
    HEADERS,
    NOTES,
    cells,
    compressed_cells,
    rules,
)

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --ink: #1c1c1a; --soft: #5f5e5a;
  --grid: #dddcd7; --jit: #9a988f; --lepton: #1f6fd1; --trace: #7b61c9; --pass: #d9601a; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161615; --card: #20201e; --ink: #ededea; --soft: #aaa9a2; --grid: #3a3a37;
    --jit: #85837b; --lepton: #5ea2f2; --trace: #a993ec; --pass: #ee8a4c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 32px 0 10px; }
p { margin: 0 0 10px; max-width: 75ch; } .soft { color: var(--soft); font-size: 0.9rem; }
.notes { margin-top: 10px; }
.card, figure { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; }
.card { padding: 4px 12px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 8px 10px 8px 0; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td, th { white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 14px; } figcaption { font-weight: 600; font-size: 0.95rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg text.label { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.grid { stroke: var(--grid); stroke-width: 1; } .one { stroke: var(--soft); stroke-dasharray: 4 3; }
.spread { stroke: var(--lepton); stroke-width: 6; stroke-opacity: 0.4; stroke-linecap: round; }
.line { fill: none; stroke-linejoin: round; }
.line.jit { stroke: var(--jit); stroke-width: 5; stroke-opacity: 0.7; }
.line.lepton { stroke: var(--lepton); stroke-width: 1.5; }
rect.jit, circle.jit { fill: var(--jit); } rect.lepton, circle.lepton { fill: var(--lepton); }
rect.trace { fill: var(--trace); } rect.pass { fill: var(--pass); }
.legend { margin: 0 0 6px; color: var(--soft); font-size: 0.82rem; } .legend span { margin-right: 14px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; }
i.jit { background: var(--jit); } i.lepton { background: var(--lepton); }
i.trace { background: var(--trace); } i.pass { background: var(--pass); }
details { padding: 8px 0; border-bottom: 1px solid var(--grid); } details:last-child { border-bottom: 0; }
summary { cursor: pointer; } .rules { columns: 3; margin: 8px 0; padding-left: 20px; font-size: 0.88rem; }
@media (max-width: 760px) {
  .plots { grid-template-columns: minmax(0, 1fr); } .rules { columns: 1; }
  thead { display: none; } table, tbody, tr, th, td { display: block; }
  tr { padding: 8px 0; border-bottom: 1px solid var(--grid); } tr:last-child { border-bottom: 0; }
  tbody th { border: 0; padding: 2px 0; font-size: 1rem; }
  td { border: 0; padding: 2px 0; white-space: normal; }
  td { display: flex; justify-content: space-between; gap: 12px; }
  td::before { content: attr(data-label); color: var(--soft); } }
@media (max-width: 480px) { svg text { font-size: 15px; } }
"""


def render_page(
    rows: Sequence[Row], compressed: Sequence[CompressedRow], machine: str, seconds: float
) -> str:
    """The whole page for `rows` and `compressed`, measured on `machine` in a run of `seconds`."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Lepton demo</title><style>{STYLE}</style></head><body><main>"
        "<h1>Lepton demo</h1>"
        "<p>Two small models trained on real data. The inference function and the whole train step of both, "
        "run with <code>jax.jit</code> and with <code>lepton.optimize</code>; and the models compressed.</p>"
        f'<p class="soft">{escape(machine)}; the demo took {seconds:.0f} s.</p>'
        f'<h2>Programs</h2><div class="card">{_table(HEADERS, map(cells, rows))}</div>'
        f'<p class="soft notes">{_arrow(" ".join(NOTES))}</p>'
        '<h2>Compressed</h2><div class="card">'
        f"{_table(COMPRESSED_HEADERS, map(compressed_cells, compressed))}</div>"
        f'<p class="soft notes">{_arrow(" ".join(COMPRESSED_NOTES))}</p>'
        f'<h2>Plots</h2><div class="plots">{"".join(_plots(rows))}</div>'
        f'<h2>Rules that fired</h2><div class="card">{"".join(map(_rules, rows))}</div>'
        "</main></body></html>\n"
    )


def _table(headers: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_arrow(header)}</th>' for header in headers)
    rows = "".join(_table_row(headers, texts) for texts in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _table_row(headers: Sequence[str], texts: Sequence[str]) -> str:
    columns = "".join(
        f'<td data-label="{escape(header)}"><span>{_arrow(text)}</span></td>'
        for header, text in zip(headers[1:], texts[1:], strict=True)
    )
    return f'<tr><th scope="row">{escape(texts[0])}</th>{columns}</tr>'


def _arrow(text: str) -> str:
    return escape(text.replace("->", "\N{RIGHTWARDS ARROW}"))


def _plots(rows: Sequence[Row]) -> list[str]:
    names = [row.program for row in rows]
    plots = [
        interval_chart(
            "Run time over that of jax.jit: median and quartiles of pairs, below 1 is faster",
            names,
            [row.timing.quartiles for row in rows],
        ),
        bar_chart(
            "Equations before and after",
            names,
            [
                [Series("before", tuple(float(row.equations_before) for row in rows), "jit")],
                [Series("after", tuple(float(row.equations_after) for row in rows), "lepton")],
            ],
        ),
        bar_chart(
            "Seconds to trace, optimise and compile: jax.jit above, lepton below",
            names,
            [
                [
                    Series("trace", tuple(row.plain_trace_seconds for row in rows), "trace"),
                    Series("compile", tuple(row.plain_compile_seconds for row in rows), "jit"),
                ],
                [
                    Series("trace", tuple(row.trace_seconds for row in rows), "trace"),
                    Series("passes", tuple(row.pass_seconds for row in rows), "pass"),
                    Series("compile", tuple(row.compile_seconds for row in rows), "jit"),
                ],
            ],
            " s",
        ),
    ]
    for row in rows:
        if row.before.losses and row.after.losses:
            lines = (
                Series("jax.jit", row.before.losses, "jit"),
                Series("lepton", row.after.losses, "lepton"),
            )
            plots.append(line_chart(f"{row.program}: loss in training", lines, "steps"))
    return plots


def _rules(row: Row) -> str:
    fired = "".join(f"<li>{escape(name)}: {count}</li>" for name, count in row.rules) or "<li>none</li>"
    skipped = f'<p class="soft">Skipped: {escape(", ".join(row.skipped))}</p>' if row.skipped else ""
    total = sum(count for _, count in row.rules)
    counted = f"{_count(total, 'application')} of {_count(len(row.rules), 'rule')}"
    return (
        f"<details><summary>{escape(row.program)}: {counted} "
        f'<span class="soft">({escape(rules(row, 4))})</span></summary>'
        f'<ul class="rules">{fired}</ul>{skipped}</details>'
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
