"""Codes in words to bfloat16 and float16, two at a time, in a few instructions.

A code, put into the low bits of the number 128 (of 1024 in float16), adds itself to that: what is left is to
subtract. For codes of 8 bits, of which bfloat16 has room for seven, 128 or 256 is subtracted, as the
sign says. All of it is exact.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.targets.kernels.words import take_plane


def convert_plane(words: jax.Array, plane: int, bits: int, dtype: Any, *, assembly: bool) -> jax.Array:
    """The codes at one place of all words, as numbers.

    Args:
        words: int16, of any shape, inside a Pallas kernel for Triton.
        plane: the place, from 0.
        bits: 4 or 8.
        dtype: bfloat16 or float16.
        assembly: in PTX; otherwise in JAX, which Pallas can interpret.
    """
    if not assembly:
        return take_plane(words, plane, bits).astype(dtype)
    from jax.experimental.pallas import triton

    (found,) = triton.elementwise_inline_asm(
        instructions(plane, bits, jnp.dtype(dtype).name),
        args=[words],
        constraints="=r,r",
        pack=2,
        result_shape_dtypes=[jax.ShapeDtypeStruct(words.shape, dtype)],
    )
    return found


def instructions(plane: int, bits: int, dtype: str) -> str:
    """The PTX that takes two words in a register, and gives two numbers.

    Example:
        >>> print(instructions(0, 4, "float16"))
        {
        .reg .b32 t, c;
        lop3.b32 t, $1, 0x000f000f, 0x64006400, 0xea;
        mov.b32 c, 0x64086408;
        sub.rn.f16x2 $0, t, c;
        }
    """
    source, lines = "$1", []
    if plane:
        source = "t"
        lines.append(f"shr.u32 t, $1, {bits * plane};")
    if dtype == "float16":
        lines += _half(source, bits)
    elif bits == 4:
        lines += [
            f"lop3.b32 t, {source}, 0x000f000f, 0x43004300, 0xea;",  # (t & a) | b = 128 + code + 8
            "mov.b32 o, 0x3f803f80;",
            "mov.b32 c, 0xc308c308;",
            "fma.rn.bf16x2 $0, t, o, c;",  # t · 1 - 136
        ]
    else:
        lines += [
            f"lop3.b32 s, {source}, 0x00800080, 0x43004300, 0xea;",  # 128, or 256 of a negative code
            f"lop3.b32 t, {source}, 0x007f007f, 0x43004300, 0xea;",  # 128 + the lower seven bits
            "mov.b32 o, 0xbf80bf80;",
            "fma.rn.bf16x2 $0, s, o, t;",  # t - s
        ]
    body = "\n".join(lines)
    used = [name for name in ("t", "s", "o", "c") if f" {name}," in body]
    return f"{{\n.reg .b32 {', '.join(used)};\n{body}\n}}"


def _half(source: str, bits: int) -> list[str]:
    """For float16, in which 1024 has room for both."""
    mask, table, minus = (
        ("0x000f000f", "0xea", "0x64086408") if bits == 4 else ("0x00ff00ff", "0x6a", "0x64806480")
    )
    start = "0x64006400" if bits == 4 else "0x64806480"  # 0x6a: (t & a) ^ b, which turns the sign bit
    return [
        f"lop3.b32 t, {source}, {mask}, {start}, {table};",
        f"mov.b32 c, {minus};",
        "sub.rn.f16x2 $0, t, c;",
    ]
