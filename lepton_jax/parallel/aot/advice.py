"""From "out of memory" to what to do: how much is missing, which arrays are large, what would make it fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lepton_jax.parallel.aot.shardy import Buffer
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.words import bytes_text

_BINARY: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?"
_NEEDED: Final = (
    # libtpu today, and as it was: XLA:TPU's report with a list of allocations
    re.compile(rf"total memory required for [^(]*\({_SIZE}\) exceeds available \w+ \({_SIZE}\)"),
    re.compile(rf"[Uu]sed {_SIZE} of {_SIZE} hbm"),
)
_WANTED: Final = re.compile(
    rf"(?:[Oo]ut of memory (?:while trying to allocate|allocating)|allocate request for) {_SIZE}"
)
_ALLOCATION: Final = re.compile(
    rf"\d+\. Size: {_SIZE}\s+(?:Operator: op_name=\"([^\"]*)\"[^\n]*\s+)?Shape: (\S+?)(?:{{\S*)?\s", re.DOTALL
)
_COLLECTED: Final = "collected by a loop"
_PARTS: Final = "microbatches/"
_SUMS: Final = re.compile(r"transpose\(|microbatches/while$")
"""What loops collect that are sums of gradients, not what gradients are computed from."""


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """What XLA's message says.

    Attributes:
        needed: bytes on each device; 0 where the message does not say.
        available: bytes that each device has for programs; 0 where the message does not say.
        largest: what the message lists, the largest first.
        message: its first line.
    """

    needed: int
    available: int
    largest: tuple[Buffer, ...]
    message: str


def out_of_memory(message: str) -> OutOfMemory | None:
    """Read XLA's message; None where it is about something else.

    Example:
        >>> message = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (29.38G) exceeds "
        >>> found = out_of_memory(message + "available HBM (15.75G)")
        >>> round((found.needed - found.available) / 2**30, 2)
        13.63
    """
    if not re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory", message):
        return None
    needed = available = 0
    for form in _NEEDED:
        if found := form.search(message):
            needed, available = _binary_bytes(found[1], found[2]), _binary_bytes(found[3], found[4])
            break
    else:
        if found := _WANTED.search(message):
            needed = _binary_bytes(found[1], found[2])
    largest = tuple(
        Buffer(_binary_bytes(size, unit), shape, "", name or "", "value")
        for size, unit, name, shape in _ALLOCATION.findall(message)
    )
    return OutOfMemory(needed, available, largest, message.partition("\n")[0])


def _binary_bytes(number: str, unit: str) -> int:
    """Bytes, from a number and a unit as XLA says them: its K, M, G and T are powers of 1024."""
    return int(float(number) * _BINARY[unit])


def advice(
    missing: int, buffers: Sequence[Buffer], mesh: MeshSpec, saved_by_donation: int = 0
) -> tuple[str, ...]:
    """What would make a program fit, the option that frees most first.

    Args:
        missing: bytes that each device is short of.
        buffers: the program's arrays on one device, as `propagated(lowered).buffers`.
        mesh: the mesh it was compiled for.
        saved_by_donation: bytes of results that could take the place of arguments that are not donated.

    Returns:
        Sentences, each with the bytes it is about: what to change, and the arrays that say so.
    """
    said: list[tuple[int, str]] = []
    arguments = [each for each in buffers if each.kind == "argument"]
    collected = [each for each in buffers if each.kind == _COLLECTED and not _SUMS.search(each.what)]
    whole = [(each, _idle(each, mesh)) for each in arguments]
    free = sum(each.bytes - each.bytes // factor for each, factor in whole if factor > 1)
    if free > missing // 8 and free:
        axes = _idle_axes([each for each, factor in whole if factor > 1], mesh)
        said.append(
            (
                free,
                f'split the arguments over {axes} too (shard="fsdp"): frees up to {bytes_text(free)} on each '
                f"device; the largest that are not: {_list(each for each, factor in whole if factor > 1)}",
            )
        )
    if saved_by_donation:
        said.append(
            (
                saved_by_donation,
                f"donate what is given back changed (donate_argnums): frees {bytes_text(saved_by_donation)}",
            )
        )
    kept = sum(each.bytes for each in collected)
    if kept > missing // 8 and kept:
        said.append(
            (
                kept,
                f"compute again what the loop keeps for its gradient (jax.checkpoint around its body): it "
                f"keeps {bytes_text(kept)}: {_list(collected)}",
            )
        )
    in_parts = any(_PARTS in each.what for each in buffers)
    values = [each for each in buffers if each.kind == "value" and not _is_like(each, arguments)]
    live = max(kept, values[0].bytes if values else 0)
    sums = 0 if in_parts else 2 * _gradients(buffers, arguments)  # that of all parts, and each part's own
    if live - sums > missing > 0:
        count = 2  # of what a part keeps twice as much counts, since the peak may be elsewhere then
        while live - 2 * live // count - sums < missing and count < 1024:
            count *= 2
        freed = live - 2 * live // count - sums
        parts = f"{count} times as many" if in_parts else str(count)
        if freed > 0:
            said.append(
                (
                    freed,
                    f"take the batch in {parts} micro-batches, or {count} times as many devices along "
                    f"the batch's axis: frees about {bytes_text(freed)} of activations",
                )
            )
    said.sort(key=lambda pair: -pair[0])
    if not said:
        return (f"more devices along the axes that split the largest arrays: {_list(buffers)}",)
    return tuple(text for _, text in said)


def _gradients(buffers: Iterable[Buffer], arguments: Sequence[Buffer]) -> int:
    """Bytes of the gradients of arguments: as many arrays of a shape as there are arguments of it, at most.

    Where loops collect gradients of a shape, other arrays of it are what these begin with or end as.
    """
    made: dict[str, list[Buffer]] = {}
    for each in buffers:
        if each.kind != "argument" and "transpose(" in each.what:
            made.setdefault(_dims(each), []).append(each)
    counts = Counter(_dims(each) for each in arguments)
    found = 0
    for dims, same in made.items():
        stacked = [each for each in same if each.kind == _COLLECTED]
        found += sum(sorted((each.bytes for each in stacked or same), reverse=True)[: counts[dims]])
    return found


def _is_like(buffer: Buffer, arguments: Iterable[Buffer]) -> bool:
    """Whether an array has the shape of an argument, as gradients and new parameters have."""
    return any(_dims(buffer) == _dims(each) for each in arguments)


def _dims(buffer: Buffer) -> str:
    return buffer.shape.partition("[")[2]


def _idle(buffer: Buffer, mesh: MeshSpec) -> int:
    """Into how many more parts an array could be split by axes of which each device holds a copy."""
    idle = [axis.size for axis in mesh.axes if f'"{axis.name}"' not in buffer.layout and axis.size > 1]
    sizes = [int(each) for each in re.findall(r"\d+", _dims(buffer))]
    factor = 1
    for size_ in idle:
        if any(dim % (size_ * factor) == 0 for dim in sizes):
            factor *= size_
    return factor


def _idle_axes(buffers: Sequence[Buffer], mesh: MeshSpec) -> str:
    names = [axis.name for axis in mesh.axes if any(f'"{axis.name}"' not in each.layout for each in buffers)]
    return " and ".join(names)


def _list(buffers: Iterable[Buffer], most: int = 3) -> str:
    found = sorted(buffers, key=lambda each: -each.bytes)
    texts = [f"{each.what or each.kind} {each.shape} ({bytes_text(each.bytes)})" for each in found[:most]]
    return ", ".join(texts) + (f" and {len(found) - most} more" if len(found) > most else "")
