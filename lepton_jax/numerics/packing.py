"""Codes of 1 to 8 bits, stored without gaps.

The layout: an axis of n codes of `bits` bits becomes uint8 bytes along the same axis, in planes of 4, 2 and
1 bits (3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1), high bits first. In a plane of p bits with m bytes,
code i lies in byte `i % m`, from bit `p · (i // m)` on: an int4 byte holds codes i and i + m, so a kernel can
use both halves as contiguous pieces, without interleaving. Every plane takes whole bytes, m = ⌈n·p/8⌉.

JAX's own int4 is not used for storage: how many bytes it takes depends on version and backend.
"""

from __future__ import annotations

from functools import reduce
from itertools import accumulate

import jax
import jax.numpy as jnp


def packed_size(size: int, bits: int) -> int:
    """Bytes for `size` codes along an axis.

    Example:
        >>> packed_size(64, 3)
        24
    """
    return sum(-(-size * width // 8) for width in _planes(bits))


def packed_axis(shape: tuple[int, ...], bits: int) -> int:
    """The axis to pack codes along: the last, unless that leaves gaps that another does not.

    The last axis of a kernel stored [outputs, inputs, 3, 3] has three codes, and whole bytes for them;
    along the channels nothing is lost. A 32nd more bytes than the least counts as nothing.

    Args:
        shape: of the codes, one dimension or more.
        bits: 1 to 8.

    Example:
        >>> packed_axis((64, 32, 3, 3), 3), packed_axis((64, 48), 3)
        (1, 1)
    """
    last = len(shape) - 1
    if 0 in shape:
        return last
    shares = [packed_size(size, bits) / size for size in shape]
    enough = min(shares) * (1 + 1 / 32)
    return max(axis for axis, share in enumerate(shares) if share <= enough)


def pack(codes: jax.Array, bits: int, axis: int = -1) -> jax.Array:
    """Codes packed along an axis.

    Args:
        codes: int8 or uint8, of which the low `bits` bits are kept, or any type of 8 bits if `bits` is 8.
        bits: 1 to 8.
        axis: becomes `packed_size(size, bits)` long.

    Returns:
        uint8.

    Raises:
        ValueError: bits out of range, or codes of another type.

    Example:
        >>> pack(jnp.array([1, -1, 2, 3], jnp.int8), 4).tolist()
        [33, 63]
    """
    widths = _planes(bits)
    if codes.dtype.itemsize != 1 or (bits < 8 and codes.dtype not in (jnp.int8, jnp.uint8)):
        raise ValueError(f"codes of {bits} bits are packed from int8 or uint8, not {codes.dtype}")
    whole = jax.lax.bitcast_convert_type(codes, jnp.uint8)
    if bits == 8:
        return whole
    axis %= codes.ndim
    shifts = [bits - end for end in accumulate(widths)]
    planes = [_pack_plane(whole >> shift, width, axis) for shift, width in zip(shifts, widths, strict=True)]
    return jnp.concatenate(planes, axis) if len(planes) > 1 else planes[0]


def unpack(packed: jax.Array, bits: int, size: int, axis: int = -1, signed: bool = True) -> jax.Array:
    """The codes that `pack` packed.

    Args:
        packed: uint8.
        bits: 1 to 8.
        size: codes along the axis.
        axis: the packed one.
        signed: int8, with the sign extended; otherwise uint8 (`Format.signed_codes` says which).

    Raises:
        ValueError: bits out of range, or the axis is not as long as `size` codes take.

    Example:
        >>> unpack(jnp.array([33, 63], jnp.uint8), 4, 4).tolist()
        [1, -1, 2, 3]
    """
    axis %= packed.ndim
    if packed.shape[axis] != packed_size(size, bits) or packed.dtype != jnp.uint8:
        raise ValueError(
            f"{size} codes of {bits} bits take {packed_size(size, bits)} bytes (uint8), "
            f"not {packed.shape[axis]} elements of {packed.dtype}"
        )
    codes = packed
    if bits < 8:
        codes = reduce(
            jnp.bitwise_or,
            [
                _unpack_plane(piece, width, size, axis) << shift
                for piece, width, shift in _cut_planes(packed, bits, size, axis)
            ],
        )
    return _with_sign(codes, bits) if signed else codes


def pieces(bits: int) -> int:
    """In how many pieces `unpack_pieces` gives codes: as many as are in a byte of the narrowest plane.

    Example:
        >>> pieces(4), pieces(3), pieces(8)
        (2, 8, 1)
    """
    return 8 // min(_planes(bits))


def unpack_pieces(
    packed: jax.Array, bits: int, size: int, axis: int = -1, signed: bool = True
) -> list[jax.Array]:
    """The codes that `pack` packed, as `pieces(bits)` arrays that follow one another along the axis.

    A compiler makes each of them in one loop over contiguous bytes; putting them together, as `unpack` does,
    takes several times as long on a CPU.

    Args:
        packed, bits, axis, signed: as in `unpack`.
        size: codes along the axis, a multiple of eight.

    Example:
        >>> [part.tolist() for part in unpack_pieces(pack(jnp.arange(8, dtype=jnp.int8), 4), 4, 8)]
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    axis %= packed.ndim
    many, found = pieces(bits), []
    length = size // many
    if len(_planes(bits)) > 1:  # XLA for CPUs would read both planes through the slice that a block is
        packed = jax.lax.optimization_barrier(packed)
    for place in range(many):
        codes = []
        for plane, width, shift in _cut_planes(packed, bits, size, axis):
            # Codes that lie in the same bits of the bytes of a wide plane are several pieces.
            inside, at = divmod(place, many * width // 8)
            part = jax.lax.slice_in_dim(plane, at * length, (at + 1) * length, axis=axis)
            codes.append(((part >> (inside * width)) & (2**width - 1)) << shift)
        whole = reduce(jnp.bitwise_or, codes)
        found.append(_with_sign(whole, bits) if signed else whole)
    return found


def _cut_planes(packed: jax.Array, bits: int, size: int, axis: int) -> list[tuple[jax.Array, int, int]]:
    """The planes of packed codes, how many bits each has, and by how many they are shifted in the code."""
    widths = _planes(bits)
    ends = list(accumulate(-(-size * width // 8) for width in widths))
    shifts = [bits - end for end in accumulate(widths)]
    planes = [
        jax.lax.slice_in_dim(packed, start, end, axis=axis)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return list(zip(planes, widths, shifts, strict=True))


def _with_sign(codes: jax.Array, bits: int) -> jax.Array:
    """uint8 codes as int8, the sign extended."""
    spare = 8 - bits
    return jax.lax.bitcast_convert_type(codes << spare, jnp.int8) >> spare


def _planes(bits: int) -> tuple[int, ...]:
    """The widths of the planes of a code, high bits first."""
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def _pack_plane(codes: jax.Array, width: int, axis: int) -> jax.Array:
    """The low bits of codes, 2, 4 or 8 to a byte."""
    size, many = codes.shape[axis], 8 // width
    length = -(-size // many)
    short = [(0, many * length - size if at == axis else 0, 0) for at in range(codes.ndim)]
    codes = jax.lax.pad(codes & (2**width - 1), jnp.uint8(0), short)
    pieces = [
        jax.lax.slice_in_dim(codes, at * length, (at + 1) * length, axis=axis) << (at * width)
        for at in range(many)
    ]
    return reduce(jnp.bitwise_or, pieces)


def _unpack_plane(packed: jax.Array, width: int, size: int, axis: int) -> jax.Array:
    pieces = [(packed >> (at * width)) & (2**width - 1) for at in range(8 // width)]
    return jax.lax.slice_in_dim(jnp.concatenate(pieces, axis), 0, size, axis=axis)
