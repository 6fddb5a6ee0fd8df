"""Which arrays a TPU keeps in its vector memory, and when, as XLA's memory space assignment decides it.

Arrays are taken in the order of what their being there saves, by the root of their bytes: of an operation
that memory holds up, the time that one array less in the main memory takes off; of others, how far they are
from that. Each is followed from the operation that makes it from reader to reader. It stays where there is
room and the next reader is not too far away; else it goes to the main memory, and is fetched again before
who reads it where there is room for it and time enough to copy it. What has gone to the main memory is there
until it is fetched for the last time. ("xla/service/memory_space_assignment" in OpenXLA's sources; the
numbers below are the defaults of libtpu, which it dumps with a program.)
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.spans import Spans
from lepton_jax.parallel.prediction.steps import OUTSIDE
from lepton_jax.parallel.prediction.times import arithmetic
from lepton_jax.parallel.prediction.windows import PARTS_AT_ONCE

FAR: Final = 8
"""An array stays between two readers if that takes less than copying the whole vector memory so often."""
OVERLAP: Final = (2, 1)
"""Copying begins so many times earlier than it takes, as is preferred and at least."""
LOOPED: Final = 5
"""How often a loop is taken to run, seen from outside of it."""


class Assignment:
    """Where the arrays of a program are.

    Attributes:
        main: bytes in the main memory at each step, without inputs and outputs.
        vector: bytes in the vector memory.
        left: arrays that are in the main memory, from which step to which.
    """

    def __init__(self, spans: Spans, capacity: int) -> None:
        steps = len(spans.nodes) + 1
        rates = spans.mesh.chip.rates
        self.main = np.zeros(steps, np.int64)
        self.vector = np.zeros(steps, np.int64)
        self.left: list[tuple[Span, int, int]] = []
        self._capacity = capacity
        self._speed = rates.bytes_per_second
        # Where products write the main memory, their results are copied while others read them there.
        self._meanwhile = spans.mesh.chip.name in OUTSIDE
        self._moved = np.zeros(steps)
        for span in spans.found:
            for step in _touched(span):
                self._moved[step] += span.bytes
        self._busy = np.zeros(steps)
        for step, node in enumerate(spans.nodes):
            if node is not None and not node.regions:
                self._busy[step] = arithmetic(node, spans.share(node), rates) * spans.waste(node)
        often = np.ones(steps)
        often[: len(spans.depths)] = LOOPED ** np.array(spans.depths, float)
        moved = self._moved / self._speed
        loops = np.ones(steps)
        for step, node in enumerate(spans.nodes):
            if node is None or (parts := spans.parts(node)) == 1:
                continue
            if parts > PARTS_AT_ONCE:  # so many in each round, as the texts of such loops have it
                loops[step] = PARTS_AT_ONCE * LOOPED / parts
            if spans.adds_parts(node):
                # One operation makes two parts, one for each way round, and is given whole operands.
                moved[step] *= parts / 2
        took = np.maximum(self._busy, moved) * often * loops
        self._often = often
        self._clock = np.concatenate([[0.0], np.cumsum(took)])
        for span in sorted(spans.found, key=self._saved, reverse=True):
            if span.main:
                self._leave(span, span.born, span.last)
            else:
                self._place(span)
        self._replace()

    def _saved(self, span: Span) -> float:
        """What it saves to have an array in the vector memory, by the root of its bytes."""
        best = -math.inf
        for step in _touched(span):
            busy, whole = self._busy[step], self._moved[step] / self._speed
            saved = whole - busy
            if saved > 0:
                saved = whole - max(busy, whole - span.bytes / self._speed)
            best = best + saved if best > 0 and saved > 0 else max(best, saved)
        return best / math.sqrt(span.bytes) if span.bytes else 0.0

    def _place(self, span: Span) -> None:
        """Follow an array from reader to reader."""
        inside = not (span.argument or span.outside) and self._fits(span.born, span.born, span.bytes)
        gone = None if inside else span.born
        fetched, before = span.last, span.born
        for step in sorted(set(span.reads)):
            if step == before and inside:
                continue
            near = self._seconds(before, step) < FAR * self._capacity / self._speed
            if not (inside and near and self._fits(before + 1, step, span.bytes)):
                gone = before if gone is None else gone
                inside = self._fetch(span, gone if self._meanwhile else before, step)
                fetched = max(step - 1, gone) if inside else span.last
            before = step
        if gone is not None and not span.given:
            self._leave(span, gone, fetched)

    def _replace(self) -> None:
        """Count what is written over what nobody reads later once where both meet."""
        ends = {span: end for span, _, end in self.left}
        for span, begin, _ in self.left:
            if begin == span.born and any(ends.get(each) == begin == each.last for each in span.over):
                self.main[begin] -= span.bytes

    def _leave(self, span: Span, begin: int, end: int) -> None:
        self.main[begin : end + 1] += span.bytes
        self.left.append((span, begin, end))

    def _fetch(self, span: Span, since: int, step: int) -> bool:
        """Copy an array to the vector memory for who reads it in a step; False: there is no room or time.

        It may be copied since a step.
        """
        for overlap in OVERLAP:
            begin = step - 1
            while begin > since and self._seconds(begin, step) < overlap * span.bytes / self._speed:
                begin -= 1
            enough = begin >= since and self._seconds(begin, step) >= span.bytes / self._speed
            if enough and self._fits(begin + 1, step, span.bytes):
                return True
        return False

    def _seconds(self, after: int, step: int) -> float:
        """How long all takes that runs between two steps."""
        took = float(self._clock[step] - self._clock[after + 1])
        return took / float(self._often[min(after, step) : step + 1].min())

    def _fits(self, begin: int, end: int, size: int) -> bool:
        part = self.vector[begin : end + 1]
        if int(part.max(initial=0)) + size > self._capacity:
            return False
        part += size
        return True


def _touched(span: Span) -> set[int]:
    """The steps that make an array or read it."""
    return set(span.reads) if span.argument else {span.born, *span.reads}
