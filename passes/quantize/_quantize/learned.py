"""What calibration has to see for numbers that training learns, and where they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lepton_jax.numerics.learned import LEARNED, Arrays, scale_and_zero, start_of
from lepton_jax.numerics.observers import Observer, check
from lepton_jax.numerics.quantize import Scheme, scale_of, scale_of_range
from lepton_jax.passes._weights.watching import LooksAt, Watcher, saw_all


@dataclass(frozen=True)
class WeightStart(Watcher):
    """Where learning starts at a weight: the scales with the least squared error.

    Attributes:
        learns: what is learned.
        scheme: of the weight.
    """

    learns: str
    scheme: Scheme
    looks_at: ClassVar[LooksAt] = "weight"

    @property
    def kind(self) -> str:
        """What calibration is asked for."""
        return f"weight-{self.learns}"

    def see(self, x: jax.Array) -> Any:
        """The numbers for a weight."""
        search = replace(self.scheme, search="mse")
        return start_of(self.learns, *scale_of(x, search), self.scheme)

    def merge(self, left: Any, right: Any) -> Any:
        """The same: weights do not change from batch to batch."""
        return left

    def check(self, state: Any, name: str) -> None:
        """Raise where a weight is not finite."""
        if not all(bool(jnp.isfinite(array).all()) for array in state):
            raise ValueError(f"{name} has NaN or infinite elements and cannot be quantised")

    def result(self, state: Any) -> Arrays:
        """The numbers."""
        return tuple(state)


@dataclass(frozen=True)
class InputStart(Watcher):
    """Where learning starts at activations: the range that an observer saw.

    Attributes:
        learns: what is learned.
        observer: how the range is found.
        scheme: of the activations.
    """

    learns: str
    observer: Observer
    scheme: Scheme
    looks_at: ClassVar[LooksAt] = "whole input"

    @property
    def kind(self) -> str:
        """What calibration is asked for."""
        return f"input-{self.learns}"

    def see(self, x: jax.Array) -> Any:
        """The state after one array."""
        return self.observer.update(self.observer.init(x.shape), x)

    def merge(self, left: Any, right: Any) -> Any:
        """The state after both."""
        return self.observer.merge(left, right)

    def check(self, state: Any, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        check(state, name)

    def result(self, state: Any) -> Arrays:
        """The numbers."""
        low, high = self.observer.range(state, self.scheme)
        return start_of(self.learns, *scale_of_range(low, high, self.scheme), self.scheme)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """The state before any array of this shape."""
        return self.observer.init(shape)

    def saw(self, state: Any) -> bool:
        """Whether each place has seen a number."""
        return saw_all(state)


def input_scale(seen: dict[str, Arrays], scheme: Scheme) -> tuple[jax.Array, jax.Array | None] | None:
    """Scale and zero of activations that are known beforehand: by calibration, or learned; None if not known.

    Args:
        seen: what calibration saw, and what was learned, by kind.
    """
    if "range" in seen:
        low, high = seen["range"]
        return scale_of_range(low, high, scheme)
    for kind, arrays in seen.items():
        if kind in LEARNED and kind.startswith("input-"):
            return scale_and_zero(kind.removeprefix("input-"), arrays, scheme)
    return None


def of_weight(seen: dict[str, Arrays]) -> Any:
    """What is known of a weight beforehand: second moments of its inputs, what was learned, or None."""
    if "hessian" in seen:
        return seen["hessian"][0]
    return next((seen[kind] for kind in seen if kind.startswith("weight-") and kind in LEARNED), None)
