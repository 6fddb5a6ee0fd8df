"""How XLA for TPUs scatters a sum: whether it does, and in parts of which size.

It joins a sum and the slice that each device keeps of it into one ring, both ways round. What is sent at
once is an even number of tiles: where parts must be made larger for that, rows go on to the next device
afterwards. Where that is too much, or where it is the lanes that are split and parts are odd, all is summed
on every device. The numbers are those of texts compiled for v5e and v5p with 2 to 16 devices, arrays of 1 kB
to 128 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

from lepton_jax.parallel.meshes import MeshSpec

_LANES: Final = 128
_ROWS: Final = 8
_HALVES: Final = 2 * _LANES
"""Parts of the dimension along the lanes are a multiple of this."""
_BUFFERS: Final = 15_000_000
"""Bytes of the vector memory that a ring takes: for one piece of each device's part, and for four more."""
_WIDE: Final = 4
"""Bytes as which elements are counted, narrow ones too."""
_MOST: Final = 1.5
"""All parts together, made larger, are at most so much more than the array."""


@cache
def scattered(shape: tuple[int, ...], dim: int, count: int) -> tuple[int, ...] | None:
    """The slices that a device receives of a sum that is scattered along a dimension.

    Args:
        shape: of the part that each device keeps.
        dim: the dimension that is split.
        count: between how many devices.

    Returns:
        How long along that dimension what the sum leaves on a device is, and each slice that its neighbour
        sends it afterwards; None where XLA sums the whole array on every device.

    Example:
        >>> scattered((256, 1024), 0, 4), scattered((68, 2048), 0, 16), scattered((1024, 384), 1, 4)
        ((256,), (72, 60), None)
    """
    if len(shape) < 2 or 0 in shape:
        return None
    part = shape[dim]
    if dim == _along_lanes(shape):
        return (part,) if part % _HALVES == 0 else None
    if len(shape) > 2:
        return (part,)
    rows = _in_pieces(-(-part // _ROWS), shape[1 - dim], count) * _ROWS
    if count * rows > _MOST * (-(-count * part // _ROWS) * _ROWS):
        return None
    # The parts begin too far on: those of the last device by the most.
    shift = (count - 1) * (rows - part)
    return (rows, *[rows] * (shift // rows), *[shift % rows] * (shift % rows > 0))


def fills_torus(axes: Iterable[str], mesh: MeshSpec) -> bool:
    """Whether a collective is over all of a torus that wraps in three dimensions.

    There XLA gathers and scatters by all-reduces: so compiling for v5p:4x4x4 and 4x4x8 showed, with arrays of
    all sizes. Smaller ones, and 32 of 64 devices, it does not; nor do chips in two dimensions.
    """
    chip = mesh.chip
    least = chip.wraps_at**chip.torus
    return chip.torus == 3 and mesh.devices >= least and mesh.size(*axes) == mesh.devices


def _in_pieces(tiles: int, width: int, count: int) -> int:
    """How many rows of tiles a part takes that is sent in equal pieces, each small enough, and even."""
    across = -(-width // _LANES)
    most = max(1, _BUFFERS // (_ROWS * across * _LANES * _WIDE * (count + 4)))
    least = 1 + across % 2
    most = max(least, most // least * least)
    pieces = -(-tiles // most)
    each = -(-tiles // pieces)
    return pieces * (-(-each // least) * least)


def _along_lanes(shape: Sequence[int]) -> int:
    """The dimension along the lanes: with another one along the rows it leaves the least room unused."""
    pairs = [(i, j) for i in range(len(shape)) for j in range(len(shape)) if i != j]

    def unused(pair: tuple[int, int]) -> tuple[float, int]:
        lanes, rows = shape[pair[0]], shape[pair[1]]
        least = _ROWS if rows >= _ROWS else 1 << (rows - 1).bit_length()
        tiled = -(-lanes // _LANES) * _LANES * (-(-rows // least) * least)
        return tiled / math.prod((lanes, rows)), -pair[0]

    return min(pairs, key=unused)[0]
