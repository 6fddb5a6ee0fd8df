"""Arrays and abstract values: what kind they are, and what there is to them but the mesh around."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

Tracer = jax.core.Tracer
ShapedArray = jax.core.ShapedArray


def is_array_aval(aval: Any) -> bool:
    """Whether it is an ordinary array (not a token, not a mutable reference)."""
    return isinstance(aval, ShapedArray)


def varying_axes(x: Any) -> frozenset[str]:
    """The manual mesh axes along which JAX knows an array to differ; none where `shard_map` does not check.

    Args:
        x: an array, or an abstract value.
    """
    aval = x if isinstance(x, ShapedArray) else jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(kind.varying if kind is not None else getattr(aval, "vma", ()))


def in_shard_map(x: Any) -> Any:
    """A shape on the mesh of the `shard_map` around, as arrays in it are; all else as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if not isinstance(x, jax.ShapeDtypeStruct) or not mesh.manual_axes:
        return x
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype, weak_type=x.weak_type, sharding=NamedSharding(mesh, jax.P())
    )


def aval_off_mesh(aval: Any) -> Any:
    """What there is to an abstract value but the mesh around its trace."""
    if not isinstance(aval, ShapedArray):
        return aval
    return (aval.shape, aval.dtype, aval.weak_type, sharding_off_mesh(aval.sharding))


def sharding_off_mesh(value: Any) -> Any:
    """None in place of a sharding that names a mesh and splits nothing; all else as it is."""
    if not isinstance(value, NamedSharding) or not isinstance(value.mesh, jax.sharding.AbstractMesh):
        return value
    return None if all(part is None for part in value.spec) else value


@functools.cache
def is_extended(dtype: Any) -> bool:
    """Whether it is an extended dtype, such as that of PRNG keys."""
    return bool(jnp.issubdtype(dtype, jax.dtypes.extended))


def plain_constant(array: Any) -> Any | None:
    """A constant as a numpy array, or None where its contents are not to be had.

    Tracers, PRNG keys and arrays spread over several processes have no plain contents.
    """
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, (Tracer, jax.ShapeDtypeStruct)) or is_extended(
        getattr(array, "dtype", np.dtype(bool))
    ):
        return None
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return np.asarray(array)
