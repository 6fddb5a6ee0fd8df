"""Small SVG charts as strings: no script, no outside resource, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 460.0
LEFT = 46.0
RIGHT = WIDTH - 12.0
LINE_HEIGHT = 220.0


@dataclass(frozen=True)
class Series:
    """A named line or bar part; `style` is a CSS class of the page."""

    label: str
    values: tuple[float, ...]
    style: str


def line_chart(title: str, series: Sequence[Series], x_label: str) -> str:
    """Lines over 1, 2, 3, ...; the vertical axis is logarithmic where positive values span a factor of 20."""
    finite = [value for line in series for value in line.values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    logarithmic = low > 0 and high > 20 * low
    marks = log_ticks(low, high) if logarithmic else ticks(low, high)
    bottom, top = marks[0], marks[-1]

    def height(value: float) -> float:
        if logarithmic:
            share = math.log(value / bottom) / math.log(top / bottom)
        else:
            share = (value - bottom) / (top - bottom)
        return LINE_HEIGHT - 34.0 - share * (LINE_HEIGHT - 50.0)

    count = max((len(line.values) for line in series), default=1)
    parts = [_rule(LEFT, height(mark), RIGHT, height(mark), "grid") for mark in marks]
    parts += [_text(LEFT - 6, height(mark) + 4, short(mark), "end") for mark in marks]
    for line in series:
        points = " ".join(
            f"{_along(index, 0, max(1, count - 1)):.1f},{height(value):.1f}"
            for index, value in enumerate(line.values)
            if math.isfinite(value)
        )
        parts.append(f'<polyline class="line {line.style}" points="{points}"/>')
    parts.append(_text(LEFT, LINE_HEIGHT - 14, "1", "start"))
    parts.append(_text(RIGHT, LINE_HEIGHT - 14, f"{count} {x_label}", "end"))
    return _figure(title, LINE_HEIGHT, parts, series)


def interval_chart(title: str, labels: Sequence[str], intervals: Sequence[tuple[float, float, float]]) -> str:
    """One row for each (low, middle, high), a bar from low to high with a dot; a line marks 1."""
    marks = ticks(min(1.0, *(low for low, _, _ in intervals)), max(1.0, *(high for _, _, high in intervals)))
    bottom, top = marks[0], marks[-1]
    height = 44.0 * len(labels) + 26.0
    parts: list[str] = []
    for mark in marks:
        x = _along(mark, bottom, top)
        parts.append(_rule(x, 4, x, height - 22, "grid"))
        parts.append(_text(x, height - 6, short(mark), "middle"))
    one = _along(1.0, bottom, top)
    parts.append(_rule(one, 4, one, height - 22, "one"))
    for row, (label, (low, middle, high)) in enumerate(zip(labels, intervals, strict=True)):
        y = 44.0 * row + 32.0
        parts.append(_text(LEFT, y - 14, f"{label}: {middle:.3f}", "start", "label"))
        parts.append(_rule(_along(low, bottom, top), y, _along(high, bottom, top), y, "spread"))
        parts.append(f'<circle class="lepton" cx="{_along(middle, bottom, top):.1f}" cy="{y:.1f}" r="5"/>')
    return _figure(title, height, parts, ())


def bar_chart(title: str, labels: Sequence[str], bars: Sequence[Sequence[Series]], unit: str = "") -> str:
    """Groups of horizontal bars; each bar stacks the values of one `Series` list entry.

    Args:
        title: what the chart shows.
        labels: one for each group.
        bars: the bars, top to bottom within a group; each is a stack of series with one value for each group.
        unit: written after the total of a bar.
    """
    totals = [[sum(part.values[group] for part in stack) for stack in bars] for group in range(len(labels))]
    largest = max((total for group in totals for total in group), default=0.0) or 1.0
    step = 18.0 + 16.0 * len(bars) + 8.0
    parts: list[str] = []
    for group, label in enumerate(labels):
        y = step * group + 14.0
        parts.append(_text(0, y, label, "start", "label"))
        for number, stack in enumerate(bars):
            top, x = y + 5.0 + 16.0 * number, 0.0
            for part in stack:
                width = part.values[group] / largest * (WIDTH - 76.0)
                parts.append(
                    f'<rect class="{part.style}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="13"/>'
                )
                x += width
            parts.append(_text(x + 5, top + 11, f"{short(totals[group][number])}{unit}", "start"))
    fullest_first = sorted(bars, key=len, reverse=True)
    keys = {part.style: part for stack in fullest_first for part in stack}
    return _figure(title, step * len(labels), parts, list(keys.values()))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about as many as asked; at least two."""
    if not high > low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from at or below `low` to at or above `high`, both positive; at least two."""
    first = math.floor(math.log10(low))
    last = max(first + 1, math.ceil(math.log10(high)))
    return [10.0**power for power in range(first, last + 1)]


def short(value: float) -> str:
    """A number in at most a few characters: 1234, 12.5, 0.031, 1e-05."""
    return str(round(value)) if abs(value) >= 100 else f"{value:.3g}"


def _along(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _figure(title: str, height: float, parts: Sequence[str], legend: Sequence[Series]) -> str:
    keys = "".join(f'<span><i class="{key.style}"></i>{escape(key.label)}</span>' for key in legend)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><p class="legend">{keys}</p>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
