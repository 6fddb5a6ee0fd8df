"""Which arrays a TPU keeps in its vector memory, and how much is in memory at once.

Arrays go to the vector memory for as long as there is room, those first that are there for the shortest time;
all are copied there before they are read, inputs too. What XLA's compiler reports as a program's peak are the
bytes of inputs and outputs, which are there all the time, and of all else the most that is in the main memory
or the most that is in the vector memory, whichever is more. (So it is in the buffer assignments that libtpu
dumps: where nothing is left in the main memory, the peak is what the vector memory holds.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
    return _most(load, held)


def placed(spans: Spans, capacity: int) -> Load:
    """What is there when most is in one of the two memories, the vector memory holding so many bytes."""
    steps = len(spans.nodes) + 1
    main, vector, shared = (np.zeros(steps, np.int64) for _ in range(3))
    small = sorted((each for each in spans.found if each.bytes <= capacity), key=lambda each: each.bytes)
    pieces = {
        id(span): [piece for piece in _visits(span) if _fits(vector, *piece, span.bytes, capacity)]
        for span in small
    }
    left = [each for each in spans.found if each.bytes > capacity]
    for begin, end, span in sorted(map(_stay, small), key=lambda stay: (stay[1] - stay[0], -stay[2].bytes)):
        for first, last in pieces[id(span)]:
            vector[first : last + 1] -= span.bytes
        if not _fits(vector, begin, end, span.bytes, capacity):
            left.append(span)
            for first, last in pieces[id(span)]:
                vector[first : last + 1] += span.bytes
        if span.shares and span.given:  # it is written over what it is made of, and counted besides
            shared[span.born] += span.bytes
    held = [each for each in left if not each.given]
    for each in held:
        main[each.born : each.last + 1] += each.bytes
    vector += shared
    return _most(main, held) if main.max() > vector.max() else _most(vector, spans.found)


def _most(load: NDArray[np.int64], held: Iterable[Span]) -> Load:
    step = int(load.argmax())
    return Load(int(load[step]), step, tuple(each for each in held if each.born <= step <= each.last))


def _stay(span: Span) -> tuple[int, int, Span]:
    if span.argument:
        first = min(span.reads, default=0)
        return max(first - 1, 0), span.last, span
    return span.born, span.last, span


def _visits(span: Span) -> list[tuple[int, int]]:
    """The steps around its making and its readings, none twice."""
    found: list[tuple[int, int]] = []
    pieces = [(max(read - 1, span.born), max(read, span.born)) for read in span.reads]
    if not span.given:
        pieces.append((span.born, span.born + 1))
    for first, last in sorted(pieces):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def _fits(load: NDArray[np.int64], begin: int, end: int, size: int, capacity: int) -> bool:
    part = load[begin : end + 1]
    if int(part.max()) + size > capacity:
        return False
    part += size
    return True
