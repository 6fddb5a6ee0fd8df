"""What values and operations say about shardings."""

from __future__ import annotations

from typing import Any

from jax.sharding import PartitionSpec

from lepton_jax.ir.graph import Value


def is_sharded(value: Value) -> bool:
    """Whether a value's type carries a sharding."""
    sharding = getattr(value.aval, "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return False
    return any(axes is not None for axes in sharding.spec)


def is_open(sharding: Any) -> bool:
    """Whether a parameter leaves the sharding to JAX, as that of a conversion in a gradient does."""
    if sharding is None:
        return True
    spec = getattr(sharding, "spec", sharding)
    return isinstance(spec, PartitionSpec) and all(axes is None for axes in spec)
