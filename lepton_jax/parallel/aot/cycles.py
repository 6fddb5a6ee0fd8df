"""What the TPU compiler estimates of a program's time: cycles, loops as often as they run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lepton_jax.parallel.aot.text import Module, called_by
from lepton_jax.targets.chips import Chip

_CYCLES: Final = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN: Final = 1 << 62
"""From here on a number says that the compiler has no estimate: it writes the largest of 64 bits."""

PER_CYCLE: Final[Mapping[str, int]] = MappingProxyType(
    {"v4": 8 * 128 * 128 * 2, "v5e": 4 * 128 * 128 * 2, "v5p": 8 * 128 * 128 * 2}
)
"""Operations of a chip's matrix units in a cycle: units × 128 × 128 multiplications and additions."""


def estimated_cycles(module: Module, trips: Mapping[str, int] | None = None) -> int | None:
    """The compiler's estimate for one run on one device; None where its text has none (CPU and GPU).

    Operations that wait for others devices, and transfers between memories, are not in it: it is the
    compute part of a step, and compares two forms of one program better than it predicts a time.

    Args:
        module: the parsed text.
        trips: as for `collectives`.
    """
    fused = {
        called
        for computation in module.computations.values()
        for each in computation.instructions.values()
        if each.opcode == "fusion"
        for called in called_by(each)
    }
    total, seen = 0, False
    for name, times in module.times(trips).items():
        if name in fused:  # counted with the fusion
            continue
        for each in module.computations[name].instructions.values():
            found = _CYCLES.search(each.rest)
            if found and int(found[1]) < _UNKNOWN:
                total, seen = total + int(found[1]) * times, True
    return total if seen else None


def seconds(cycles: int, chip: Chip) -> float | None:
    """The time of a number of cycles, by the clock that a chip's peak rate implies; None if unknown.

    Example:
        >>> from lepton_jax.targets.chips import get_chip
        >>> round(seconds(1_500_000_000, get_chip("v5e")), 3)
        0.998
    """
    per_cycle = PER_CYCLE.get(chip.name)
    return None if per_cycle is None else cycles * per_cycle / chip.rates.flops["bfloat16"]
