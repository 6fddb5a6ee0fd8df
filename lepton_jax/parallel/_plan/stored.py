"""What of a plan is written to a file, and read from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel._plan.identity import all_values
from lepton_jax.parallel.layouts import Layout


def numbers(prediction: Any, names: Sequence[str], kind: type) -> dict[str, Any]:
    """What there is of these attributes, as numbers."""
    found = {name: getattr(prediction, name, None) for name in names}
    return {name: kind(value) for name, value in found.items() if value is not None}


def stored(graph: Graph, assignment: Mapping[Value, Layout]) -> tuple[tuple[Layout, ...], tuple[int, ...]]:
    """The distinct layouts of a program's values, and of each value which it has."""
    known: dict[Layout, int] = {}
    which = []
    for value in all_values(graph):
        layout = assignment.get(value, Layout.whole(value.ndim))
        which.append(known.setdefault(layout, len(known)))
    return tuple(known), tuple(which)


def packed(numbers: Sequence[int]) -> list[list[int]]:
    """Runs of one number: `[number, how often]`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][0] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs


def restored_layout(kept: Mapping[str, Any]) -> Layout:
    """A layout that was read from a file."""
    return Layout(tuple(tuple(each) for each in kept["dims"]), tuple(kept["partial"]))
