"""What collectives by hand share: the axes that are there, and the types that `jax.shard_map` checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from lepton_jax.ir._jax import varying_axes


def axes_size(axes: Sequence[str]) -> int:
    """How many devices stand along axes of the `jax.shard_map` around.

    Raises:
        ValueError: one of them is not there.
    """
    size = 1
    for axis in axes:
        try:
            size *= int(lax.axis_size(axis))
        except NameError as error:
            raise ValueError(
                f"{axis!r} is not an axis by hand here: call this inside jax.shard_map over a mesh "
                "that has it, or build the step with lepton.data_parallel"
            ) from error
    return size


def is_checked(axes: Sequence[str]) -> bool:
    """Whether the `jax.shard_map` around checks along which axes arrays differ (`check_vma`)."""
    return bool(axes) and bool(varying_axes(lax.axis_index(axes[0])))


def gather(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """The parts of all devices, one after the other along dimension 0; JAX knows that all have the same."""
    to = "invarying" if is_checked(axes) else "varying"
    found: jax.Array = lax.all_gather(x, tuple(axes), axis=0, tiled=True, to=to)
    return found


def check_local(leaves: Sequence[Any], axes: Sequence[str]) -> None:
    """Refuse gradients that JAX has summed already.

    Raises:
        ValueError: JAX knows that a gradient is the same on all devices.
    """
    if not is_checked(axes):
        return
    for leaf in leaves:
        if missing := [axis for axis in axes if axis not in varying_axes(leaf)]:
            raise ValueError(
                f"gradients are already summed over {missing[0]!r}: differentiation inside jax.shard_map "
                "does so for parameters that are the same on all devices. Differentiate "
                f"jax.lax.pcast(params, {tuple(axes)}, to='varying'), or say check_vma=False to jax.shard_map"
            )
