"""All-reduce and reduce-scatter of vectors in blocks of 8-bit codes.

An all-reduce is a reduce-scatter and an all-gather. Both carry codes: each device quantises its vector and
sends every other its part (all-to-all), adds what it is sent in float32, quantises the sum and gives it to
all. A sum of codes would have to be wider, so there is no all-reduce of codes. EQuARX (Ahmed et al., 2025)
does this within XLA, ZeRO++ (Wang et al., 2023, qgZ) for gradients. What both quantisations lose is added to
the next step's gradients (error feedback: Seide et al., 2014; Karimireddy et al., 2019): on the sender what
it lost of its own vector, on the owner of a part what it lost of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.parallel.compressed.codes import error_of, from_message, to_message
from lepton_jax.parallel.compressed.manual import axes_size, gather


def block_reduce_scatter(
    x: jax.Array, axes: Sequence[str], form: str = "int8", block: int = 256, local: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Of the sum over devices the part that this one owns; sends about a quarter of the bytes of float32.

    Args:
        x: float32[n · m] for n devices along `axes`, `block` divides m.
        axes: of the `jax.shard_map` around.
        form: of the codes: int8, fp8_e4m3 or fp8_e5m2.
        block: elements that share a scale.
        local: float32[n · m], what this device lost of its vectors before; None: nothing.

    Returns:
        The part, float32[m], and what was lost of this device's vector, float32[n · m].

    Raises:
        ValueError: sizes do not divide.
    """
    n = axes_size(axes)
    _check(x, n, block)
    rows = (x if local is None else x + local).reshape(n, -1)
    message = to_message(rows, form, block)
    came = lax.all_to_all(message, tuple(axes), 0, 0, tiled=True)
    part = from_message(came, rows.shape[1], form, block).sum(0)
    return part, error_of(rows, message, form, block).reshape(x.shape)


def block_all_gather(
    part: jax.Array, axes: Sequence[str], form: str = "int8", block: int = 256
) -> tuple[jax.Array, jax.Array]:
    """The parts of all devices one after the other, as codes; and what was lost of this one's.

    Args:
        part: float32[m], `block` divides m.
        axes, form, block: as of `block_reduce_scatter`.

    Returns:
        float32[n · m], the same bits on every device, and float32[m].
    """
    _check(part, 1, block)
    message = to_message(part, form, block)
    rows = gather(message[None], axes)
    whole = from_message(rows, part.shape[0], form, block).reshape(-1)
    return whole, error_of(part, message, form, block)


def block_all_reduce(
    x: jax.Array,
    axes: Sequence[str],
    form: str = "int8",
    block: int = 256,
    local: jax.Array | None = None,
    owned: jax.Array | None = None,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum over devices times `scale`, the same bits on all of them.

    Args:
        x, axes, form, block, local: as of `block_reduce_scatter`.
        owned: float32[m], what this device lost of the part that it owns; None: nothing.
        scale: 1 / n for the mean.

    Returns:
        The sum, float32[n · m]; what was lost of this device's vector, float32[n · m], and of the part that
        it owns, float32[m]: the next call's `local` and `owned`.
    """
    part, local = block_reduce_scatter(x, axes, form, block, local)
    part = part * jnp.float32(scale)
    whole, owned = block_all_gather(part if owned is None else part + owned, axes, form, block)
    return whole, local, owned


def _check(x: jax.Array, n: int, block: int) -> None:
    if x.ndim != 1 or x.dtype != jnp.float32:
        raise ValueError(f"blocks are taken of a vector in float32, not of {x.dtype}{list(x.shape)}")
    if block < 1 or x.shape[0] % (n * block):
        raise ValueError(
            f"a vector of {x.shape[0]} does not divide into blocks of {block} on {n} devices: "
            f"fill it up to a multiple of {n * max(block, 1)}"
        )
