"""States of optimisers within states of other optimisers."""

from __future__ import annotations

from typing import TypeVar

import jax

State = TypeVar("State")


def the_one(state: object, kind: type[State], wanted: str) -> State:
    """The one state of a kind in an optimiser's state.

    Args:
        state: such a state, or a tree that holds one.
        kind: its type.
        wanted: what is wanted, in words.

    Raises:
        TypeError: there is none, or there are several.
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, kind))
    found = [leaf for leaf in leaves if isinstance(leaf, kind)]
    if len(found) != 1:
        raise TypeError(f"{wanted}; found {len(found)} in it")
    return found[0]
