"""What every observer counts, and how two counts become one."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

AxisName: TypeAlias = str | tuple[str, ...]


class Seen(NamedTuple):
    """What every observer counts; each f32 of the shape of the axes kept.

    Attributes:
        low: the least finite number; infinite if there was none. Across devices: pmin.
        high: the greatest finite number; minus infinity if there was none. Across devices: pmax.
        finite: how many finite numbers. Across devices: psum.
        nan: how many NaN. Across devices: psum.
        infinite: how many infinities. Across devices: psum.
    """

    low: jax.Array
    high: jax.Array
    finite: jax.Array
    nan: jax.Array
    infinite: jax.Array


def nothing(shape: tuple[int, ...]) -> Seen:
    """The counts before the first number."""
    ends = jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -jnp.inf, jnp.float32)
    return Seen(*ends, *(jnp.zeros(shape, jnp.float32) for _ in range(3)))


def see(rows: jax.Array, used: jax.Array) -> Seen:
    """The counts of each row f32[..., n], of those numbers that are used."""
    finite = used & jnp.isfinite(rows)

    def many(which: jax.Array) -> jax.Array:
        return jnp.sum(which, -1, dtype=jnp.int32).astype(jnp.float32)  # float32 counts to 2^24 by ones

    return Seen(
        jnp.min(jnp.where(finite, rows, jnp.inf), -1, initial=jnp.inf),
        jnp.max(jnp.where(finite, rows, -jnp.inf), -1, initial=-jnp.inf),
        many(finite),
        many(used & jnp.isnan(rows)),
        many(used & jnp.isinf(rows)),
    )


def merge_seen(left: Seen, right: Seen) -> Seen:
    """The counts of both."""
    ends = jnp.minimum(left.low, right.low), jnp.maximum(left.high, right.high)
    return Seen(*ends, *(a + b for a, b in zip(left[2:], right[2:], strict=True)))


def seen_over(seen: Seen, axis_name: AxisName) -> Seen:
    """The counts of all devices along a mapped axis."""
    ends = lax.pmin(seen.low, axis_name), lax.pmax(seen.high, axis_name)
    return Seen(*ends, *(lax.psum(count, axis_name) for count in seen[2:]))


def seen_by(state: Any) -> Seen:
    """The counts in the state of any observer."""
    found: Seen = state if isinstance(state, Seen) else state.seen
    return found


def check(state: Any, name: str) -> None:
    """Raise an error if an observer saw NaN, an infinity, or nothing.

    Args:
        state: of any observer; stacked ones count together.
        name: the place that it observed, for the message.

    Raises:
        ValueError: the message says what was seen, where, and what to do.

    Example:
        >>> from lepton_jax.numerics.observers import MinMax
        >>> seen = MinMax().update(MinMax().init((2,)), jnp.array([1.0, 2.0]))
        >>> check(seen, "decoder/layer_3/mlp")
    """
    seen = seen_by(state)
    count, nan, infinite = (float(jnp.sum(part)) for part in seen[2:])
    if nan or infinite:
        whole = count + nan + infinite
        raise ValueError(
            f"{name}: calibration saw {nan:.0f} NaN and {infinite:.0f} infinities among {whole:.0f} numbers; "
            "look for the first place where they arise, or mask what is padding"
        )
    if not count:
        raise ValueError(f"{name}: calibration saw no number; give it batches that reach this place")
