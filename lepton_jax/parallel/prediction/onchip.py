"""The memories of a TPU, and how much is in memory at once.

A TPU has a main memory and a vector memory. What XLA's compiler reports as a program's peak are the bytes of
inputs and outputs, which are there all the time, and of all else the most that is in the main memory or the
most that is in the vector memory, whichever is more. (So it is in the buffer assignments that libtpu dumps:
where nothing is left in the main memory, the peak is what the vector memory holds.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lepton_jax.parallel.prediction.assignment import Assignment
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.spans import Spans

_MIB: Final = 1 << 20
ON_CHIP: Final[Mapping[str, int]] = MappingProxyType({"v5e": 128 * _MIB, "v5p": 64 * _MIB, "v6e": 128 * _MIB})
"""Bytes of vector memory; of v4 all is for kernels."""
SCOPED: Final = 16 * _MIB
"""Of them those that kernels use."""


def on_chip(name: str) -> int:
    """The bytes of arrays that a chip's vector memory holds; 0 where it has none."""
    return max(ON_CHIP.get(name, 0) - SCOPED, 0)


@dataclass(frozen=True, slots=True)
class Load:
    """What is there when most is.

    Attributes:
        bytes: besides inputs and outputs.
        step: when.
        spans: the arrays.
    """

    bytes: int
    step: int
    spans: tuple[Span, ...]


def together(spans: Spans) -> Load:
    """What is there when most is, in a memory of one kind."""
    load = np.zeros(len(spans.nodes) + 1, np.int64)
    held = [each for each in spans.found if not each.given]
    for each in held:
        load[each.born : each.last + 1] += each.bytes
    return _most(load, [(each, each.born, each.last) for each in held])


def placed(spans: Spans, capacity: int) -> Load:
    """What is there when most is in one of the two memories, the vector memory holding so many bytes."""
    run = Assignment(spans, capacity)
    for span in spans.found:
        if span.shares and span.given:  # it is written over what it is made of, and counted besides
            run.vector[span.born] += span.bytes
    if run.main.max() > run.vector.max():
        return _most(run.main, run.left)
    return _most(run.vector, [(each, each.born, each.last) for each in spans.found])


def _most(load: NDArray[np.int64], held: Iterable[tuple[Span, int, int]]) -> Load:
    step = int(load.argmax())
    return Load(int(load[step]), step, tuple(each for each, begin, end in held if begin <= step <= end))
