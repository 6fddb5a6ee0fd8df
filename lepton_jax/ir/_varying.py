"""Programs traced as if the same on all devices, evaluated in a `shard_map` where arrays differ.

JAX wants all operands of an operation to vary along the same mesh axes, and marks those that do not when it
traces a function. A program that was traced elsewhere has no such marks: they are put in as it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

from lepton_jax.ir import _jax

Axes = frozenset[str]

_MARKS: ContextVar[bool] = ContextVar("marks", default=False)


@contextmanager
def marking(args: Sequence[Any]) -> Iterator[None]:
    """While a program is evaluated on arrays of which some vary, operands are made to vary alike."""
    token = _MARKS.set(_MARKS.get() or any(map(axes_of, args)))
    try:
        yield
    finally:
        _MARKS.reset(token)


def is_marking() -> bool:
    """Whether operands are made to vary alike."""
    return _MARKS.get()


def axes_of(x: Any) -> Axes:
    """The mesh axes along which JAX knows a value to vary; none for what is no array."""
    kind = jax.typeof(x)
    return _jax.varying_axes(kind) if _jax.is_array_aval(kind) else Axes()


def alike(operands: Sequence[Any]) -> Sequence[Any]:
    """Operands that all vary along the axes along which any of them does, where they are made to."""
    if not is_marking():
        return operands
    return widened(operands, [Axes().union(*map(axes_of, operands))] * len(operands))


def widened(arrays: Sequence[Any], axes: Sequence[Axes]) -> list[Any]:
    """Arrays that vary along some axes each, beside their own."""
    return [_widened(array, each) for array, each in zip(arrays, axes, strict=True)]


def _widened(array: Any, axes: Axes) -> Any:
    if not axes or not _jax.is_array_aval(jax.typeof(array)):
        return array
    missing = tuple(sorted(axes - axes_of(array)))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def settled(step: Callable[[list[Any]], Sequence[Any]], state: Sequence[Any]) -> list[Any]:
    """The first state of a loop, as varied as what the loop makes of it.

    Args:
        step: from a state to the next; it is traced, until nothing more varies.
        state: the arrays of the first one.
    """
    state = list(state)
    while is_marking():
        after = _jax.trace_flat(lambda *now: step(list(now)), [jax.typeof(x) for x in state]).out_avals
        wider = widened(state, [_jax.varying_axes(a) if _jax.is_array_aval(a) else Axes() for a in after])
        if all(map(lambda old, new: old is new, state, wider)):
            break
        state = wider
    return state


def as_varied_as(results: Sequence[Any], state: Sequence[Any]) -> list[Any]:
    """The state after a step of a loop, as varied as the one before."""
    return widened(results, list(map(axes_of, state))) if is_marking() else list(results)


def as_varied_as_first(branch: Callable[..., list[Any]], operands: Sequence[Any]) -> Callable[..., list[Any]]:
    """A branch whose results vary along the axes of the operands, which are alike."""
    if not is_marking():
        return branch
    axes = axes_of(operands[0])

    def widest(*args: Any) -> list[Any]:
        results = branch(*args)
        return widened(results, [axes] * len(results))

    return widest
