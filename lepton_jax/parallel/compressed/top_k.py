"""The largest elements of each device's vector, and where they stand (Aji and Heafield, 2017).

Elements are chosen in each chunk of 1024 alone: sorting chunks is fast everywhere, and an index takes 16
bits. What is not sent waits in the feedback, without which this does not train (Stich et al., 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.parallel.compressed.manual import gather

CHUNK: Final = 1024
"""Elements of which the same number is sent."""


def sent_of_chunk(share: float) -> int:
    """How many elements of a chunk are sent: at least one."""
    return max(1, round(share * CHUNK))


def top_k_all_reduce(
    x: jax.Array, axes: Sequence[str], share: float = 0.01, local: jax.Array | None = None, scale: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """The sum over devices of their largest elements, times `scale`; the same bits on all devices.

    Args:
        x: float32[m], `CHUNK` divides m.
        axes: of the `jax.shard_map` around.
        share: of the elements that each device sends.
        local: float32[m], what was not sent before; None: nothing.
        scale: 1 / n for the mean.

    Returns:
        The sum, float32[m], and what was not sent, float32[m].
    """
    rows = (x if local is None else x + local).reshape(-1, CHUNK)
    _, places = lax.top_k(jnp.abs(rows), sent_of_chunk(share))
    sent = jnp.take_along_axis(rows, places, 1).astype(jnp.bfloat16)
    lost = rows - _spread(sent, places, rows.shape[0])
    pairs = jnp.stack([lax.bitcast_convert_type(sent, jnp.uint16), places.astype(jnp.uint16)])
    # One device after the other: each has no place twice, so that no order of adding is left open.
    came = gather(pairs[None], axes)
    total, _ = lax.scan(_add, _dense(came[0], rows.shape[0]), came[1:])
    local = jnp.where(jnp.isfinite(lost), lost, 0.0).reshape(x.shape)
    return (total * jnp.float32(scale)).reshape(x.shape), local


def _add(total: jax.Array, pairs: jax.Array) -> tuple[jax.Array, None]:
    return total + _dense(pairs, total.shape[0]), None


def _dense(pairs: jax.Array, chunks: int) -> jax.Array:
    return _spread(lax.bitcast_convert_type(pairs[0], jnp.bfloat16), pairs[1], chunks)


def _spread(values: jax.Array, places: jax.Array, chunks: int) -> jax.Array:
    rows = jnp.arange(chunks)[:, None]
    zeros = jnp.zeros((chunks, CHUNK), jnp.float32)
    return zeros.at[rows, places.astype(jnp.int32)].set(values.astype(jnp.float32), unique_indices=True)
