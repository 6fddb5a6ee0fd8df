"""Which dimensions of an optimiser's state are those of its parameter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def corresponding(path: str, shape: Sequence[int], param: Sequence[int]) -> tuple[int | None, ...] | None:
    """Of each dimension of a state the parameter's dimension; None if the shapes have nothing in common.

    A state is as its parameter (moments, averages), lacks dimensions (Adafactor's rows and columns: Shazeer
    and Stern, 2018), or is a placeholder of one number.

    Example:
        >>> corresponding("mu/w", (4, 8), (4, 8)), corresponding("v_row/w", (4,), (4, 8))
        ((0, 1), (0,))
    """
    if tuple(shape) == tuple(param):
        return tuple(range(len(shape)))
    if all(size == 1 for size in shape):
        return (None,) * len(shape)
    if len(shape) >= len(param):
        return None
    ways = [
        dims
        for dims in itertools.combinations(range(len(param)), len(shape))
        if all(param[dim] == size for dim, size in zip(dims, shape, strict=True))
    ]
    if len(ways) == 1:
        return ways[0]
    names = path.split("/")
    dropped = _dropped(names, param)
    if dropped is not None:
        kept = tuple(dim for dim in range(len(param)) if dim != dropped)
        return kept if kept in ways else None
    return (None,) * len(shape) if ways else None


def _dropped(names: Sequence[str], param: Sequence[int]) -> int | None:
    """The dimension that Optax's factored second moments leave out: rows the largest, columns the next."""
    order = sorted(range(len(param)), key=lambda dim: param[dim])
    if "v_row" in names:
        return order[-1]
    return order[-2] if "v_col" in names and len(order) > 1 else None
