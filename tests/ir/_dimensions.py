"""What tests of dimensions share: arrays, and what is read of the dependencies found."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir.dimensions import Dependencies, Group

Units = dict[str, list[list[int]]]


def floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def units(group: Group) -> Units:
    """The indices of each unit, by parameter and dimension."""
    return {f"{each.path}[{each.dim}]": each.positions.tolist() for each in group.params}


def free(found: Dependencies) -> list[Units]:
    return [units(group) for group in found.cuttable]


def names(found: Dependencies) -> list[set[str]]:
    return [set(each) for each in free(found)]


def reason(found: Dependencies, path: str, dim: int) -> str:
    (group,) = found.group_of(path, dim)
    assert group.pinned is not None
    return group.pinned


def alone(*numbers: int) -> list[list[int]]:
    return [[each] for each in numbers]
