"""The bytes that one device's part of an array takes."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

from lepton_jax.ir.graph import Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec

LANES: Final = 128
SUBLANES: Final = 8


def local_bytes(value: Value, layout: Layout, mesh: MeshSpec, minor: tuple[int, ...] | None = None) -> int:
    """The bytes of one device's part of a value that lies so; on TPUs those of whole tiles.

    Args:
        minor: the dimensions that tiles may cover; None: all.
    """
    if value.dtype is None:
        return 0
    shape = layout.local_shape(value.shape, mesh)
    elements = tiled_elements(shape, minor) if mesh.chip.rates.platform == "tpu" else math.prod(shape)
    return elements * int(value.dtype.itemsize)


def row_bytes(value: Value, layout: Layout, mesh: MeshSpec) -> int:
    """The bytes of one device's part of a table on a TPU, each of whose rows takes whole lanes."""
    *rows, lanes = layout.local_shape(value.shape, mesh)
    return math.prod(rows) * -(-lanes // LANES) * LANES * int(value.dtype.itemsize)


@cache
def tiled_elements(shape: tuple[int, ...], minor: tuple[int, ...] | None = None) -> int:
    """How many elements an array takes in a TPU's memory, which holds tiles of 8 rows of 128.

    The two dimensions that the tiles cover are those, of `minor` or of all, that leave the least room unused.

    Example:
        >>> tiled_elements((512, 8, 64)), tiled_elements((64, 8, 64))
        (262144, 65536)
    """
    if len(shape) < 2 or 0 in shape:
        return math.prod(shape)
    whole = math.prod(shape)
    return min(
        whole // (lanes * rows) * (-(-lanes // LANES) * LANES) * _rows(rows)
        for i, lanes in enumerate(shape)
        for j, rows in enumerate(shape)
        if i != j and (minor is None or (i in minor and j in minor))
    )


def covered_elements(shape: tuple[int, ...], lanes: int, rows: int) -> int:
    """How many elements an array takes whose tiles cover these two dimensions.

    Example:
        >>> covered_elements((32, 4, 4, 64), 3, 0), covered_elements((32, 4, 4, 64), 0, 3)
        (65536, 131072)
    """
    others = math.prod(size for i, size in enumerate(shape) if i not in (lanes, rows))
    return others * (-(-shape[lanes] // LANES) * LANES) * _rows(shape[rows])


def _rows(rows: int) -> int:
    """Rows of a tile that so many take: fewer than 8 take a smaller tile."""
    return -(-rows // SUBLANES) * SUBLANES if rows >= SUBLANES else 1 << (rows - 1).bit_length()
