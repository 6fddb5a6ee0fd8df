"""Weights as indices into palettes of few numbers, or of few short vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.numerics.palettes import scalars, vectors

Method = Literal["exact", "lloyd"]

_MOST_BINS: Final = 1 << 20
_FEWEST_BINS: Final = 1 << 8
_AT_ONCE: Final = 1 << 22
_FEW: Final = 16


@dataclass(frozen=True)
class PaletteScheme:
    """What shares a palette, and how it is found.

    Attributes:
        bits: of a code, 1 to 8; a palette has 2^bits entries.
        axis: of the channels that have palettes of their own; None: one palette for all.
        group: so many neighbouring channels share a palette; the last may have fewer.
        vector: so many neighbours along `vector_axis` are one entry. Its size is a multiple of that.
        vector_axis: another axis than `axis`.
        zeros: the first entry is zero, and zeros have it: code 0.
        method: `exact`: the least squared error that is possible, see `scalars.optimal`, and
            `scalars.bins_of` for what is told apart: 2^16 numbers of a tensor; of many groups 2^20 in all, at
            least 2^8 of each; Lloyd's steps follow. `lloyd`: those alone, which is much faster with 7 and 8
            bits. Vectors always have the latter, after k-means++.

    Raises:
        ValueError: a number out of range, or the axis of vectors is that of channels.
    """

    bits: int
    axis: int | None = None
    group: int = 1
    vector: int = 1
    vector_axis: int = 0
    zeros: bool = True
    method: Method = "exact"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"a palette has 1 to 8 bits, not {self.bits}")
        if self.group < 1 or self.vector < 1:
            raise ValueError("group and vector are 1 or more")
        if self.vector > 1 and self.axis == self.vector_axis:
            raise ValueError("vectors lie along another axis than the channels that have palettes")

    @property
    def entries(self) -> int:
        """The entries of a palette."""
        return int(1 << self.bits)

    def groups(self, shape: tuple[int, ...]) -> int:
        """The palettes of a weight of this shape."""
        return 1 if self.axis is None else -(-shape[self.axis] // self.group)

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the codes of a weight of this shape.

        Raises:
            ValueError: the axis of vectors is no multiple of their length.
        """
        if self.vector == 1:
            return shape
        if shape[self.vector_axis] % self.vector:
            raise ValueError(
                f"an axis of {shape[self.vector_axis]} cannot be cut into vectors of {self.vector}"
            )
        return tuple(n // self.vector if i == self.vector_axis else n for i, n in enumerate(shape))


class Palettized(NamedTuple):
    """A weight in codes.

    Attributes:
        codes: uint8, of `PaletteScheme.codes_shape`.
        palette: f32[groups, 2^bits, vector]; ascending after the zero where `vector` is 1.
    """

    codes: jax.Array
    palette: jax.Array


def palettize(weight: Any, scheme: PaletteScheme, importance: Any = None) -> Palettized:
    """The codes and palettes of a weight that make the weighted squared error small.

    Args:
        weight: floats of any shape, finite; not traced.
        scheme: how.
        importance: how much each element counts, 0 or more, broadcastable to the weight: the diagonal of the
            Hessian or of the Fisher information (SqueezeLLM, arXiv:2306.07629). None: all the same.

    Raises:
        ValueError: the weight cannot be cut into vectors.

    Example:
        >>> found = palettize(jnp.array([1.0, 1.1, 0.0, 5.0]), PaletteScheme(2))
        >>> found.codes.tolist(), decode(*found, PaletteScheme(2)).tolist()
        ([1, 2, 0, 3], [1.0, 1.100000023841858, 0.0, 5.0])
    """
    palette = palette_of(weight, scheme, importance)
    whole = np.asarray(weight)
    if not whole.size:
        return Palettized(encode(jnp.asarray(weight), palette, scheme), palette)
    points = _points(np, whole, scheme)
    find = vectors.nearest if scheme.vector > 1 else partial(_nearest_numbers, np)
    each = [find(x.astype(np.float32), p) for x, p in zip(points, np.asarray(palette), strict=True)]
    codes = np.stack(each).astype(np.uint8)
    if scheme.zeros:
        codes = np.where(np.any(points != 0, -1), codes, np.uint8(0))
    return Palettized(jnp.asarray(_as_weight(np, codes[..., None], whole.shape, scheme)), palette)


def palette_of(weight: Any, scheme: PaletteScheme, importance: Any = None) -> jax.Array:
    """The palettes of a weight, f32[groups, 2^bits, vector]; see `palettize`. Computed on the host."""
    whole = np.asarray(weight)
    scheme.codes_shape(whole.shape)
    groups = scheme.groups(whole.shape)
    if not whole.size:
        return jnp.zeros((groups, scheme.entries, scheme.vector), jnp.float32)
    counts = np.ones((), np.float32) if importance is None else np.asarray(importance, np.float32)
    counts = np.broadcast_to(counts, whole.shape)
    points, mass = _points(np, whole, scheme), _points(np, counts, scheme).mean(-1)
    if scheme.zeros:
        mass = np.where(np.any(points != 0, -1), mass, 0)
    count, fixed = scheme.entries - scheme.zeros, int(scheme.zeros)
    if scheme.vector > 1:
        each = zip(points, mass, strict=True)
        return jnp.asarray(np.stack([vectors.centroids_of(p, m, count + fixed, fixed) for p, m in each]))
    found = np.zeros((groups, scheme.entries, 1), np.float32)
    found[:, fixed:, 0] = _numbers(points[..., 0], mass, count, scheme.method)
    return jnp.asarray(found)


def _numbers(points: Any, mass: Any, count: int, method: Method) -> scalars.Floats:
    """The centroids of groups of numbers."""
    fine = [scalars.bins_of(x, m) for x, m in zip(points, mass, strict=True)]
    if method == "lloyd":
        return np.stack([scalars.lloyd(bins, scalars.spread(bins, count)) for bins in fine])
    most = min(max(_MOST_BINS // len(fine), _FEWEST_BINS), scalars.MOST_BINS)
    coarse = [b if b.values.size <= most else scalars.bins_of(b.values, b.mass, most) for b in fine]
    starts = scalars.optimal(coarse, count)
    return np.stack([scalars.lloyd(bins, start) for bins, start in zip(fine, starts, strict=True)])


def encode(weight: jax.Array, palette: jax.Array, scheme: PaletteScheme) -> jax.Array:
    """The codes of the nearest entries, uint8.

    Args:
        weight: floats.
        palette: as `palette_of` made it, or as training has changed it.
        scheme: how.
    """
    if not weight.size:
        return jnp.zeros(scheme.codes_shape(weight.shape), jnp.uint8)
    points = _points(jnp, weight, scheme)
    find = _nearest_vectors if scheme.vector > 1 else partial(_nearest_numbers, jnp)
    codes = jax.vmap(find)(points, palette)
    if scheme.zeros:
        codes = jnp.where(jnp.any(points != 0, -1), codes, 0).astype(jnp.uint8)
    found: jax.Array = _as_weight(jnp, codes[..., None], weight.shape, scheme)
    return found


def decode(codes: Any, palette: Any, scheme: PaletteScheme, dtype: Any = jnp.float32) -> Any:
    """The weight of codes; of numpy's arrays on the host.

    Args:
        codes: uint8.
        palette: f32[groups, 2^bits, vector].
        scheme: how.
        dtype: of the result.
    """
    xp: Any = np if isinstance(codes, np.ndarray) else jnp
    place = codes.astype(np.int32)
    if scheme.axis is not None:
        group = xp.arange(codes.shape[scheme.axis], dtype=np.int32) // scheme.group * scheme.entries
        sides = [1] * codes.ndim
        sides[scheme.axis] = -1
        place = place + group.reshape(sides)
    return look_up(place, palette, scheme, dtype)


def look_up(place: Any, palette: Any, scheme: PaletteScheme, dtype: Any) -> Any:
    """The weight of places in all palettes one after another.

    Args:
        place: int32, the code, and 2^bits more for each palette before.
        palette: f32[groups, 2^bits, vector].
        scheme: how.
        dtype: of the result.
    """
    flat = palette.astype(dtype).reshape(-1, scheme.vector)
    flat = flat[:, 0] if scheme.vector == 1 else flat
    on_host = isinstance(place, np.ndarray)
    found: Any = flat[place] if on_host else flat.at[place].get(mode="promise_in_bounds")
    if scheme.vector == 1:
        return found
    shape = list(place.shape)
    shape[scheme.vector_axis] *= scheme.vector
    xp: Any = np if on_host else jnp
    return xp.moveaxis(found, -1, scheme.vector_axis + 1).reshape(shape)


def nbytes(shape: tuple[int, ...], scheme: PaletteScheme, itemsize: int = 4) -> int:
    """Bytes of the codes, packed without gaps, and of the palettes.

    Args:
        shape: of the weight.
        scheme: how.
        itemsize: of the palettes' entries.
    """
    codes = math.prod(scheme.codes_shape(shape))
    return -(-codes * scheme.bits // 8) + scheme.groups(shape) * scheme.entries * scheme.vector * itemsize


def _nearest_vectors(points: jax.Array, palette: jax.Array) -> jax.Array:
    """The indices of the nearest of vectors, some of [n, d] at a time."""
    squares = jnp.sum(jnp.square(palette), 1)

    def some(part: jax.Array) -> jax.Array:
        near = squares - 2 * jnp.matmul(part, palette.T, precision=lax.Precision.HIGHEST)
        return jnp.argmin(near, 1).astype(jnp.uint8)

    points, size = points.astype(jnp.float32), max(_AT_ONCE // palette.shape[0], 1)
    if points.shape[0] <= size:
        return some(points)
    parts = -(-points.shape[0] // size)
    padded = jnp.pad(points, ((0, parts * size - points.shape[0]), (0, 0)))
    found: jax.Array = lax.map(some, padded.reshape(parts, size, -1))
    return found.reshape(-1)[: points.shape[0]]


def _nearest_numbers(xp: Any, points: Any, palette: Any) -> Any:
    """The indices of the nearest of numbers [n, 1], the lower one of two that are as near."""
    order = xp.argsort(palette[:, 0])
    middles = palette[order, 0]
    middles = (middles[1:] + middles[:-1]) / 2
    numbers = points[:, 0].astype(np.float32)
    if xp is np:
        return order[np.searchsorted(middles, numbers)]
    how = "compare_all" if palette.shape[0] <= _FEW else "scan"
    place = jnp.searchsorted(middles, numbers, method=how)
    return order.astype(jnp.uint8).at[place].get(mode="promise_in_bounds")


def _points(xp: Any, x: Any, scheme: PaletteScheme) -> Any:
    """A weight as vectors, [groups, points, vector]; groups that are short are filled with zeros.

    Args:
        xp: numpy or jax.numpy.
        x: the weight.
        scheme: how.
    """
    shape = scheme.codes_shape(x.shape)
    if scheme.vector > 1:
        x = x.reshape(*shape[: scheme.vector_axis + 1], scheme.vector, *shape[scheme.vector_axis + 1 :])
        x = xp.moveaxis(x, scheme.vector_axis + 1, -1)
    else:
        x = x[..., None]
    if scheme.axis is None:
        return x.reshape(1, -1, scheme.vector)
    x = xp.moveaxis(x, scheme.axis, 0)
    groups = scheme.groups(shape)
    short = groups * scheme.group - shape[scheme.axis]
    x = xp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(groups, -1, scheme.vector)


def _as_weight(xp: Any, points: Any, shape: tuple[int, ...], scheme: PaletteScheme) -> Any:
    """Codes [groups, points, 1] in the shape of the codes of a weight."""
    shape = scheme.codes_shape(shape)
    if scheme.axis is None:
        return points.reshape(shape)
    rest = [n for i, n in enumerate(shape) if i != scheme.axis]
    whole = points.reshape(-1, *rest)[: shape[scheme.axis]]
    return xp.moveaxis(whole, 0, scheme.axis)
