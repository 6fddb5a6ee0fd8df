"""The ranges that calibration finds for activations, and what it saw, by kind."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import jax

from lepton_jax.numerics.learned import LEARNED
from lepton_jax.numerics.observers import Observer, check
from lepton_jax.numerics.quantize import Scheme
from lepton_jax.passes._weights.watching import LooksAt, Watcher, saw_all

_Array = TypeVar("_Array")


@dataclass(frozen=True)
class RangeSeen(Watcher):
    """The range of activations, for a scale of all of them.

    Attributes:
        observer: how it is found.
        scheme: what they will be rounded to.
    """

    observer: Observer
    scheme: Scheme
    kind: ClassVar[str] = "range"
    looks_at: ClassVar[LooksAt] = "whole input"

    def see(self, x: jax.Array) -> Any:
        """The state after one array."""
        return self.observer.update(self.observer.init(x.shape), x)

    def merge(self, left: Any, right: Any) -> Any:
        """The state after both."""
        return self.observer.merge(left, right)

    def check(self, state: Any, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        check(state, name)

    def result(self, state: Any) -> tuple[jax.Array, ...]:
        """The ends of the range."""
        return self.observer.range(state, self.scheme)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """The state before any array of this shape."""
        return self.observer.init(shape)

    def saw(self, state: Any) -> bool:
        """Whether each place has seen a number."""
        return saw_all(state)


COUNTS: Final = {"range": 2, "channels": 3, "hessian": 1, **LEARNED}
"""How many arrays calibration makes of what it saw, by the kind."""


def by_kind(arrays: tuple[_Array, ...], kinds: tuple[str, ...]) -> dict[str, tuple[_Array, ...]]:
    """What calibration saw, put together by kind."""
    rest = iter(arrays)
    return {kind: tuple(itertools.islice(rest, COUNTS[kind])) for kind in kinds}
