"""What structured pruning did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.dimensions import Kind

_WHAT: Final = ("flops", "parameters", "time")


@dataclass(frozen=True)
class GroupReport:
    """What became of a group of units that are cut together.

    Attributes:
        name: of the group: the path and the dimension of a parameter, as `params/dense/kernel[1]`.
        kind: `channels`, `layers` of a scan, or `blocks`: a residual block.
        before: how many units there were.
        after: how many stay.
        pinned: why none of its units can go; None if they can.
        parameters: elements of the arrays that the group has slices in, before and after, all cuts counted.
        saved: the shares of `flops`, `parameters` and predicted `time` that this group's cut alone saves.
        importance: of a residual block or of each layer, by what `depth_importance` says.
    """

    name: str
    kind: Kind | str
    before: int
    after: int
    pinned: str | None = None
    parameters: tuple[int, int] = (0, 0)
    saved: Mapping[str, float] | None = None
    importance: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self.kind == "blocks":
            done = "dropped" if self.after == 0 else "stays"
            return f"{self.name}: residual block, {done}" + _numbers(self.importance)
        unit = "layers" if self.kind == "layers" else "units"
        if self.pinned is not None:
            return f"{self.name}: {self.before} {unit}, cannot be cut: {self.pinned}"
        text = f"{self.name}: {self.before} {unit}" + (
            f" → {self.after}" if self.after != self.before else " stay"
        )
        text += _numbers(self.importance)
        if not self.saved:
            return text
        return f"{text}; alone it saves " + ", ".join(f"{self.saved[what]:.1%} of {what}" for what in _WHAT)


@dataclass(frozen=True)
class StructuredReport:
    """What structured pruning did; print it.

    Attributes:
        groups: each group of units, and each residual block where `depth` was asked for.
        before: `flops`, `parameters` and the `time` in seconds predicted for the target.
        after: the same, of the smaller program.
        target: the machine that the time is predicted for.
        missed: what of the budget could not be met, and by how much; None if all was.
    """

    groups: tuple[GroupReport, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    target: str
    missed: str | None = None

    def share(self, what: str) -> float:
        """What is left of `flops`, `parameters` or `time`, 0 to 1."""
        return self.after[what] / self.before[what] if self.before[what] else 1.0

    def __str__(self) -> str:
        lines = [f"{what}: {_amount(self, what)}, {self.share(what):.1%} left" for what in _WHAT]
        lines += [] if self.missed is None else [self.missed]
        lines += [str(group) for group in self.groups if group.pinned is None]
        pinned: dict[str, list[str]] = {}
        for group in self.groups:
            if group.pinned is not None:
                pinned.setdefault(group.pinned, []).append(group.name)
        lines += [f"cannot be cut: {_some(names)}: {why}" for why, names in pinned.items()]
        return "\n".join(lines)


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _amount(report: StructuredReport, what: str) -> str:
    left, right = report.before[what], report.after[what]
    if what == "time":
        return f"{left * 1e6:.3g} → {right * 1e6:.3g} µs predicted on {report.target}"
    return f"{left:.4g} → {right:.4g}"


def _numbers(importance: tuple[float, ...]) -> str:
    return f" (importance {', '.join(f'{each:.3g}' for each in importance)})" if importance else ""
