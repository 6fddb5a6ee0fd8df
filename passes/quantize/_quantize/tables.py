"""Rows of a quantised table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
from jax import lax

from lepton_jax.numerics.packing import packed_axis
from lepton_jax.numerics.quantize import Scheme, decode
from lepton_jax.passes.quantize._quantize.learned import of_weight
from lepton_jax.passes.quantize._quantize.observing import by_kind
from lepton_jax.passes.quantize._quantize.weights import Storage, as_float, stored, unpacked


@dataclass(frozen=True)
class Rows:
    """How rows of a table are taken.

    Attributes:
        axis: of the rows.
        storage: how the table is kept.
        params: the gather's.
        kinds: what training has learned.
    """

    axis: int
    storage: Storage
    params: tuple[tuple[str, Any], ...]
    kinds: tuple[str, ...] = ()


def rows(table: jax.Array, indices: jax.Array, *others: jax.Array, how: Rows) -> jax.Array:
    """Rows of a table that is kept in codes, with a scale for each row (or group in it).

    Only the rows that are taken are unpacked, unless codes are packed across rows.

    Args:
        others: what training has learned.
    """
    q = stored(table, how.storage, of_weight(by_kind(others, how.kinds)))
    axis = packed_axis(table.shape, how.storage.scheme.fmt.bits)
    size, late = table.shape[axis], how.axis != axis
    options = dict(how.params)
    numbers = options.pop("dimension_numbers")
    stay = [i for i in range(table.ndim) if i not in numbers.collapsed_slice_dims]

    def take(x: jax.Array, options: dict[str, Any]) -> jax.Array:
        sizes = tuple(1 if i == how.axis else n for i, n in enumerate(x.shape))
        return lax.gather(x, indices, numbers, sizes, **options)

    scale = take(as_float(q.scale), options)  # NaN or 0 where an index is out of bounds and JAX fills
    if options["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        options["mode"] = lax.GatherScatterMode.CLIP
    codes = q.codes if late else unpacked(q.codes, how.storage, size, axis)
    codes = take(codes, options)
    if late:
        codes = unpacked(codes, how.storage, size, numbers.offset_dims[stay.index(axis)])
    scheme = _of_rows(how.storage.scheme, numbers, table.ndim)
    return decode(codes, scale, None, scheme, table.dtype)


def _of_rows(scheme: Scheme, numbers: lax.GatherDimensionNumbers, rank: int) -> Scheme:
    """The scheme at the axes that the table's have in what is taken."""
    stay = [i for i in range(rank) if i not in numbers.collapsed_slice_dims]
    moved = dict(zip(stay, map(int, numbers.offset_dims), strict=True))  # vmap makes them NumPy's
    shared = tuple(moved[i] for i in scheme.shared or ())
    axes = tuple(moved[i] for i in scheme.group_axes)
    return replace(
        scheme, shared=shared, group_axis=axes[0] if axes and not scheme.fmt.block else axes or None
    )
