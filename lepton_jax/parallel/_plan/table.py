"""A plan as text: the table for a reader, and the form for a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from lepton_jax.parallel._plan.arrays import Planned
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.words import bytes_text, columns, seconds_text

_TITLES = {
    "param": "parameters",
    "state": "state",
    "batch": "batch",
    "other": "other inputs",
    "activation": "largest activations",
}
_TIMES = {
    "compute": "computing",
    "communication": "sending",
    "exposed": "sending that computing does not hide",
    "traffic": "reading and writing memory",
    "seconds": "in all",
}


class Shown(Protocol):
    """What of a `Plan` is shown; see its attributes."""

    @property
    def way(self) -> str: ...
    @property
    def axes(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def chip(self) -> str: ...
    @property
    def arrays(self) -> tuple[Planned, ...]: ...
    @property
    def collectives(self) -> tuple[Collective, ...]: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...
    @property
    def memory(self) -> Mapping[str, int]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


def plan_text(plan: Shown) -> str:
    """What the user reads."""
    mesh = MeshSpec.of(dict(plan.axes), plan.chip)
    lines = [f"plan {plan.way!r} on {mesh} ({mesh.devices} {plan.chip} devices)"]
    for kind, title in _TITLES.items():
        members = [each for each in plan.arrays if each.kind == kind]
        if members:
            whole, local = (
                sum(getattr(each, size) * each.count for each in members) for size in ("bytes", "local")
            )
            total = "" if kind == "activation" else f": {bytes_text(whole)}, {bytes_text(local)} on a device"
            lines += [
                "",
                f"{title}{total}",
                *_indented(columns([_row(each) for each in members], right=(3, 4))),
            ]
    lines += _collectives(plan.collectives, mesh)
    if plan.seconds:
        rows = [(_TIMES[key], seconds_text(plan.seconds[key])) for key in _TIMES if key in plan.seconds]
        lines += ["", "predicted time of a run", *_indented(columns(rows, right=(1,)))]
    if plan.memory:
        rows = [(key, bytes_text(amount)) for key, amount in plan.memory.items()]
        rows.append(("there are", bytes_text(mesh.chip.memory)))
        lines += ["", "predicted memory of a device", *_indented(columns(rows, right=(1,)))]
    if plan.notes:
        lines += ["", "notes", *_indented(plan.notes)]
    return "\n".join(lines)


def golden_text(plan: Shown) -> str:
    """What a test compares: inputs, activations and collectives, without what is predicted."""
    axes = ",".join(f"{name}={size}" for name, size in plan.axes)
    lines = [f"plan {plan.way} on {axes} of {plan.chip}"]
    lines += [
        f"{each.kind} {each.name} {each.dtype}[{','.join(map(str, each.shape))}] {each.layout}"
        + (f" x{each.count}" if each.count > 1 else "")
        for each in plan.arrays
    ]
    lines += sorted(
        f"{each.kind} over {'+'.join(each.axes)} of {each.bytes} bytes x{each.times}"
        for each in plan.collectives
    )
    lines += [f"note {note}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def _row(each: Planned) -> tuple[str, ...]:
    shape = f"{each.dtype}[{','.join(map(str, each.shape))}]"
    often = f"x{each.count}" if each.count > 1 else ""
    return each.name, shape, str(each.layout), bytes_text(each.bytes), bytes_text(each.local), often


def _collectives(collectives: Sequence[Collective], mesh: MeshSpec) -> list[str]:
    """Those of one kind, axes, size and place in one line."""
    if not collectives:
        return []
    times: dict[tuple[str, tuple[str, ...], int, str], int] = {}
    for each in collectives:
        key = (each.kind, each.axes, each.bytes, each.what)
        times[key] = times.get(key, 0) + each.times
    rows = []
    for (kind, axes, size, what), often in times.items():
        one = Collective(kind, axes, size)  # type: ignore[arg-type]
        sent = one.sent(mesh) * often
        took = one.seconds(mesh) * often
        rows.append(
            (kind, "+".join(axes), f"{often} x", bytes_text(size), bytes_text(sent), seconds_text(took), what)
        )
    sent = sum(each.sent(mesh) * each.times for each in collectives)
    head = [("", "over", "times", "each", "sent", "takes", "what")]
    title = f"collectives: {sum(each.times for each in collectives)}, {bytes_text(sent)} sent by a device"
    return ["", title, *_indented(columns([*head, *rows], right=(2, 3, 4, 5)))]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
