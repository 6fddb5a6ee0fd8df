"""Weights of codes and palettes, in the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.numerics.packing import pack, packed_axis, unpack
from lepton_jax.numerics.palettes import PaletteScheme, decode, encode, held, look_up, soft, trained

Ints = tuple[int, ...]
Train = Literal["none", "centroids", "dkm"]

GATHER: Final = ("dimension_numbers", "unique_indices", "indices_are_sorted", "mode", "fill_value")
"""The parameters of a gather but for the sizes of what it takes."""


@dataclass(frozen=True)
class Look:
    """How a weight is kept and looked up.

    Attributes:
        scheme: of the codes.
        shape: of the weight that has a palette.
        dtype: of the weight.
        turned: a permutation of what is looked up; None: none.
        call: whether codes are kept, and looked up at each call; otherwise what they stand for is kept.
        train: how it was trained, or is.
        temperature: of `dkm`.
    """

    scheme: PaletteScheme
    shape: Ints
    dtype: Any
    turned: Ints | None
    call: bool
    train: Train
    temperature: float

    def turn(self, weight: jax.Array) -> jax.Array:
        """What is looked up, as the use reads it."""
        return weight if self.turned is None else lax.transpose(weight, self.turned)


@dataclass(frozen=True)
class Take:
    """How rows of a table are taken.

    Attributes:
        axis: of the rows.
        params: the gather's.
    """

    axis: int
    params: tuple[tuple[str, Any], ...]


def rounded(source: jax.Array, palette: jax.Array, *, how: Look) -> jax.Array:
    """A weight in training.

    Args:
        source: the codes of `centroids`, the weight of `dkm`.
        palette: that is learned, or that the weight's palettes are near.
    """
    if how.train == "centroids":
        return how.turn(trained(source, palette, how.scheme, how.dtype))
    return how.turn(soft(store(source), palette, how.scheme, how.temperature)[0])


def weight_of(source: jax.Array, palette: jax.Array, *, how: Look) -> jax.Array:
    """A weight that is kept in codes, or made of them beforehand.

    Args:
        source: the codes of `centroids`, otherwise the weight.
        palette: f32[groups, entries, vector].
    """
    codes, palette = _coded(source, palette, how)
    if not how.call:
        return how.turn(decode(codes, palette, how.scheme, how.dtype))
    packed, axis = _packed(codes, how)
    codes = unpack(packed, how.scheme.bits, codes.shape[axis], axis, signed=False)
    return how.turn(decode(codes, store(palette), how.scheme, how.dtype))


def rows_of(source: jax.Array, palette: jax.Array, indices: jax.Array, *, how: Look, take: Take) -> jax.Array:
    """Rows of a table that is kept in codes; only those that are taken are looked up.

    Args:
        source: as of `weight_of`.
        palette: as of `weight_of`.
        indices: of the rows, as the gather reads them.
    """
    codes, palette = _coded(source, palette, how)
    packed, axis = _packed(codes, how, skip=take.axis)
    palette, scheme = store(palette), how.scheme
    options = dict(take.params)
    numbers, mode = options.pop("dimension_numbers"), options["mode"]
    stay = [i for i in range(codes.ndim) if i not in numbers.collapsed_slice_dims]
    moved = dict(zip(stay, numbers.offset_dims, strict=True))

    def rows(x: jax.Array, options: dict[str, Any]) -> jax.Array:
        sizes = tuple(1 if i == take.axis else n for i, n in enumerate(x.shape))
        return lax.gather(x, indices, numbers, sizes, **options)

    inside = {**options, "mode": lax.GatherScatterMode.CLIP} if _fills(mode) else options
    found = unpack(rows(packed, inside), scheme.bits, codes.shape[axis], moved[axis], signed=False)
    place = found.astype(jnp.int32)
    if scheme.axis is not None:
        sides = [1] * codes.ndim
        sides[scheme.axis] = -1
        group = jnp.arange(codes.shape[scheme.axis], dtype=jnp.int32) // scheme.group * scheme.entries
        first = group.reshape(sides)
        place = place + (rows(first, inside) if scheme.axis == take.axis else _beside(first, moved, place))
    along = PaletteScheme(scheme.bits, vector=scheme.vector, vector_axis=moved.get(scheme.vector_axis, 0))
    weight: jax.Array = look_up(place, palette, along, how.dtype)
    if not _fills(mode):
        return weight
    ones = jnp.ones([n if i == take.axis else 1 for i, n in enumerate(codes.shape)], how.dtype)
    return weight * rows(ones, options)  # NaN or 0 where an index is out of bounds and JAX fills


def _beside(x: jax.Array, moved: dict[int, int], place: jax.Array) -> jax.Array:
    """An array with one long axis, with that axis where the table's is in what was taken."""
    (axis,) = (i for i, n in enumerate(x.shape) if n != 1) if x.size != 1 else (0,)
    sides = [1] * place.ndim
    if x.size != 1:
        sides[moved[axis]] = -1
    return x.reshape(sides)


def _fills(mode: Any) -> bool:
    return bool(mode == lax.GatherScatterMode.FILL_OR_DROP)


def _coded(source: jax.Array, palette: jax.Array, how: Look) -> tuple[jax.Array, jax.Array]:
    """Codes and palettes, of the dtype of the weight."""
    if how.train == "centroids":
        return source, held(palette, how.scheme).astype(how.dtype)
    if how.train == "dkm":
        palette = soft(source, palette, how.scheme, how.temperature)[1]
    return encode(source, palette, how.scheme), palette.astype(how.dtype)


def _packed(codes: jax.Array, how: Look, skip: int | None = None) -> tuple[jax.Array, int]:
    """The codes without gaps, marked to be kept, and the axis along which they are packed.

    Args:
        skip: an axis that is not packed.
    """
    axis = packed_axis(codes.shape, how.scheme.bits)
    if axis == skip:
        axis = max((i for i in range(codes.ndim) if i != skip), key=lambda i: codes.shape[i])
    return store(pack(codes, how.scheme.bits, axis)), axis
