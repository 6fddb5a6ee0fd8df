"""Arrays of different stages in the same buffers, so that one program for all devices can hold them.

Arrays of one shape that most stages have as many of lie each in a buffer of this shape; all others lie one
after the other in a flat buffer for each dtype, as long as the longest. A stage that has less leaves zeros.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp

_USED: Final = 0.5
"""The part of the buffers of one shape that must be used, or arrays of this shape lie flat."""


@dataclass(frozen=True)
class Place:
    """Where an array lies: in a buffer of its shape, or flat from an offset on.

    Attributes:
        buffer: which.
        shape: of the array.
        offset: in a flat buffer; None in one of its own shape.
    """

    buffer: int
    shape: tuple[int, ...]
    offset: int | None

    @property
    def end(self) -> int:
        """Where it ends in a flat buffer."""
        assert self.offset is not None
        return self.offset + math.prod(self.shape)


class Packing:
    """Buffers for lists of arrays, one list for each stage.

    Attributes:
        buffers: their shapes and dtypes.
        places: for each stage, for each array, where it lies.

    Example:
        >>> f = jax.ShapeDtypeStruct((2, 3), "float32")
        >>> packing = Packing([[f], [f, f], []])
        >>> [buffer.shape for buffer in packing.buffers]
        [(2, 3), (2, 3)]
    """

    def __init__(self, lists: Sequence[Sequence[Any]]) -> None:
        self.buffers: list[jax.ShapeDtypeStruct] = []
        slots = self._slots(lists)
        lengths: dict[Any, int] = {}
        flat: dict[Any, int] = {}
        for avals in lists:
            used: Counter[Any] = Counter()
            for aval in avals:
                if _kind(aval) not in slots:
                    used[aval.dtype] += math.prod(aval.shape)
            lengths = {dtype: max(used[dtype], lengths.get(dtype, 0)) for dtype in {*used, *lengths}}
        for dtype in sorted(lengths, key=str):
            flat[dtype] = len(self.buffers)
            self.buffers.append(jax.ShapeDtypeStruct((lengths[dtype],), dtype))
        self.places = tuple(tuple(self._placed(avals, slots, flat)) for avals in lists)

    def _slots(self, lists: Sequence[Sequence[Any]]) -> dict[Any, list[int]]:
        """For each shape that has buffers of its own, which."""
        counts = [Counter(map(_kind, avals)) for avals in lists]
        slots: dict[Any, list[int]] = {}
        for kind in dict.fromkeys(kind for each in counts for kind in each):
            most = max(each[kind] for each in counts)
            if sum(each[kind] for each in counts) >= _USED * most * len(lists):
                slots[kind] = list(range(len(self.buffers), len(self.buffers) + most))
                self.buffers += [jax.ShapeDtypeStruct(*kind)] * most
        return slots

    @staticmethod
    def _placed(avals: Sequence[Any], slots: dict[Any, list[int]], flat: dict[Any, int]) -> list[Place]:
        taken: Counter[Any] = Counter()
        found = []
        for aval in avals:
            kind = _kind(aval)
            if kind in slots:
                found.append(Place(slots[kind][taken[kind]], aval.shape, None))
                taken[kind] += 1
            else:
                found.append(Place(flat[aval.dtype], aval.shape, taken[aval.dtype]))
                taken[aval.dtype] += math.prod(aval.shape)
        return found

    @property
    def bytes(self) -> int:
        """The bytes of the buffers of one stage."""
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in self.buffers)

    def zeros(self, *before: int) -> list[jax.Array]:
        """Empty buffers, with dimensions before their own."""
        return [jnp.zeros((*before, *each.shape), each.dtype) for each in self.buffers]

    def put(self, stage: int, values: Sequence[Any]) -> list[jax.Array]:
        """The buffers with a stage's arrays."""
        found: dict[int, list[Any]] = {}
        for place, value in zip(self.places[stage], values, strict=True):
            found.setdefault(place.buffer, []).append(value)
        buffers = []
        for index, each in enumerate(self.buffers):
            given = found.get(index, [])
            if given and given[0].shape == each.shape and len(given) == 1:
                buffers.append(given[0])
                continue
            flat = [jnp.ravel(value) for value in given]
            missing = math.prod(each.shape) - sum(value.size for value in flat)
            if missing or not flat:
                flat.append(jnp.zeros(missing, each.dtype))
            buffers.append(jnp.concatenate(flat).reshape(each.shape))
        return buffers

    def take(self, stage: int, buffers: Sequence[Any]) -> list[Any]:
        """A stage's arrays out of the buffers."""
        return [
            buffers[place.buffer]
            if place.offset is None
            else buffers[place.buffer][place.offset : place.end].reshape(place.shape)
            for place in self.places[stage]
        ]


def _kind(aval: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(aval.shape), aval.dtype
