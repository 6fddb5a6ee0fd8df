"""Integer weights in words of 16 bits, in the order in which a kernel takes them apart.

A word holds four codes of 4 bits, or two of 8. Along what is summed over, a block of 4 (or 2) times `width`
codes becomes `width` words: code `p·width + i` of a block lies in bits `4p` (or `8p`) of its word `i`. So the
codes at one place of all words of a block follow one another, and meet the activations as they lie in memory;
two neighbouring words fill a register, from which one shift and one logical operation make a pair of
bfloat16 or float16 numbers (Kim et al., 2022, https://arxiv.org/abs/2211.10017; Frantar et al., 2024,
https://arxiv.org/abs/2408.11743). Codes of 4 bits are stored with 8 added, codes of 8 bits as they are.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

WORD: Final = 16
"""Bits of a word."""

_MANY_ROWS: Final = 2048


def block_size(bits: int, width: int) -> int:
    """How many codes of a row a block holds.

    Example:
        >>> block_size(4, 64)
        256
    """
    return WORD // bits * width


def row_block(rows: int) -> int:
    """What the rows of a weight are filled up to a multiple of: 64, or 128 where there are many."""
    return 128 if rows >= _MANY_ROWS else 64


def word_shape(rows: int, inner: int, bits: int, width: int) -> tuple[int, int]:
    """The shape of the words of a weight [rows, inner]: rows and columns are filled up to whole blocks.

    Example:
        >>> word_shape(1000, 4096, 4, 64)
        (1024, 1024)
    """
    blocks = -(-inner // block_size(bits, width))
    return -(-rows // row_block(rows)) * row_block(rows), blocks * width


def pack_words(codes: jax.Array, bits: int, width: int) -> jax.Array:
    """The words of integer codes.

    Args:
        codes: int8 [rows, inner], of 4 or 8 bits.
        bits: 4 or 8.
        width: words in a block.

    Returns:
        int16 of `word_shape`; what was added to fill it stands for zeros.

    Raises:
        ValueError: neither 4 nor 8 bits, or codes that are not an int8 matrix.

    Example:
        >>> words = pack_words(jnp.arange(-4, 4, dtype=jnp.int8)[None], 4, 2)
        >>> words.shape, [hex(word & 0xFFFF) for word in words[0].tolist()]
        ((64, 2), ['0xa864', '0xb975'])
    """
    if bits not in (4, 8) or codes.ndim != 2 or codes.dtype != jnp.int8:
        raise ValueError(
            f"words are made of int8 matrices with codes of 4 or 8 bits, not of {codes.dtype}"
            f"{list(codes.shape)} with {bits}"
        )
    rows, inner = codes.shape
    high, words = word_shape(rows, inner, bits, width)
    many = WORD // bits
    codes = jnp.pad(codes, ((0, high - rows), (0, words * many - inner)))
    planes = codes.reshape(high, words // width, many, width).astype(jnp.uint16)
    if bits == 4:
        planes = planes + jnp.uint16(8)
    planes = planes & jnp.uint16(2**bits - 1)
    found = planes[:, :, 0]
    for p in range(1, many):
        found = found | (planes[:, :, p] << jnp.uint16(p * bits))
    return lax.bitcast_convert_type(found.reshape(high, words), jnp.int16)


def take_plane(words: jax.Array, plane: int, bits: int) -> jax.Array:
    """The codes at one place of all words: int16.

    Args:
        words: int16, of any shape.
        plane: the place, from 0.
        bits: 4 or 8.
    """
    if bits == 4:
        codes: jax.Array = ((words >> jnp.int16(4 * plane)) & jnp.int16(15)) - jnp.int16(8)
    else:
        codes = (words << jnp.int16(8 - 8 * plane)) >> jnp.int16(8)
    return codes


def unpack_words(words: jax.Array, rows: int, inner: int, bits: int, width: int) -> jax.Array:
    """The codes that `pack_words` packed: int8 [rows, inner].

    Example:
        >>> codes = jnp.arange(-8, 8, dtype=jnp.int8).reshape(2, 8)
        >>> bool((unpack_words(pack_words(codes, 4, 32), 2, 8, 4, 32) == codes).all())
        True
    """
    blocks = words.reshape(words.shape[0], -1, width)
    planes = [take_plane(blocks, p, bits) for p in range(WORD // bits)]
    codes = jnp.stack(planes, 2).reshape(words.shape[0], -1)
    return lax.slice(codes, (0, 0), (rows, inner)).astype(jnp.int8)
