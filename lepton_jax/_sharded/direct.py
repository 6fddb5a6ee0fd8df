"""Calls like earlier ones: their arrays are known by type and place, so nothing is looked at twice.

Where an array lies is an object that arrays share: the results of a program have the same ones at every call.
So a call is known by their identities. They are kept alive here, so that no other object takes theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import jax
import numpy as np

from lepton_jax._sharded.program import Laid
from lepton_jax.ir import _jax

_MOST: Final = 64
"""Programs of calls that are known; later ones are looked at, since nothing seems to come again."""


@dataclass(frozen=True)
class _Direct:
    """A program that takes the arrays of a call as they are.

    Attributes:
        jitted: of the arrays to donate, and of the others.
        donated: picks the ones.
        others: picks the others.
        results: makes a tree of the results.
        alive: where the arrays lie, which the key names.
    """

    jitted: Any
    donated: Callable[[Sequence[Any]], Sequence[Any]]
    others: Callable[[Sequence[Any]], Sequence[Any]]
    results: Callable[[Sequence[Any]], Any]
    alive: tuple[Any, ...]


class DirectCalls:
    """The programs of calls of which all arrays lay where they should."""

    def __init__(self) -> None:
        self._known: dict[Any, _Direct] = {}
        self._array: Any = None  # JAX's class of arrays, once one was seen
        self._lock = threading.Lock()

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any] | None:
        """The results of a call, as a tree in a tuple; None where it is not known."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        known = self._known.get(self._key(leaves, tree))
        if known is None:
            return None
        return (known.results(known.jitted(known.donated(leaves), known.others(leaves))),)

    def _key(self, leaves: Sequence[Any], tree: Any) -> Any:
        kind = self._array
        try:
            marks = [
                (id(x.sharding) if x.committed else 0, (a := x.aval).shape, a.dtype, a.weak_type)
                if type(x) is kind
                else _host(x)
                for x in leaves
            ]
            return (tree, _jax.x64_enabled(), tuple(marks))
        except _Unknown:
            return None

    def note(self, args: Sequence[Any], kwargs: Mapping[str, Any], laid: Laid) -> None:
        """Remember a call, if its arrays lie where the program wants them, or nowhere in particular."""
        if len(self._known) >= _MOST:
            return
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays = [x for x in leaves if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)]
        if arrays and self._array is None:
            self._array = type(arrays[0])
        key = self._key(leaves, tree)
        if key is None or not laid.lie_right(leaves):
            return
        with self._lock:
            where = [[i for i, gone in enumerate(laid.donated) if gone is each] for each in (True, False)]
            alive = tuple(x.sharding for x in arrays)
            self._known[key] = _Direct(laid.jitted, _picker(where[0]), _picker(where[1]), laid.results, alive)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


class _Unknown(Exception):
    """An array of another kind."""


def _host(leaf: Any) -> Any:
    if type(leaf) is np.ndarray:
        return leaf.shape, leaf.dtype
    raise _Unknown


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What picks the elements at some places of a list; `jax.jit` is given lists."""
    if len(places) < 2:
        return lambda leaves: [leaves[i] for i in places]
    pick = itemgetter(*places)
    return lambda leaves: list(pick(leaves))
