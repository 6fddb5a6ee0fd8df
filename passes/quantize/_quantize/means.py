"""What calibration sees for bias correction: the mean input of each weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]


@dataclass(frozen=True)
class MeanSeen:
    """The mean of an input over all axes but some.

    Attributes:
        axes: that stay.
    """

    axes: tuple[int, ...]
    kind: ClassVar[str] = "mean"

    def see(self, x: jax.Array) -> State:
        """The state after one array: the sum, f32 of the rank of x, the count, and the bad ones."""
        others = tuple(i for i in range(x.ndim) if i not in self.axes)
        count = jnp.asarray(math.prod(x.shape[i] for i in others), jnp.float32)
        wide = x.astype(jnp.float32)
        finite = jnp.isfinite(wide)
        total = jnp.sum(jnp.where(finite, wide, 0.0), others, keepdims=True)
        return {"bad": jnp.sum(~finite, dtype=jnp.float32), "count": count, "total": total}

    def merge(self, left: State, right: State) -> State:
        """The state after both."""
        return {name: left[name] + right[name] for name in left}

    def check(self, state: State, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        if bad := float(state["bad"].sum()):
            raise ValueError(f"{name}: calibration saw {bad:.0f} inputs with NaN or infinities")
        if not float(state["count"].min()):
            raise ValueError(f"{name}: calibration saw no input; give it batches that reach this place")

    def result(self, state: State) -> tuple[jax.Array, ...]:
        """The mean, f32 of the input's rank."""
        return (state["total"] / state["count"],)
