"""Random keys of JAX among arrays: their data, and the name of what makes numbers of them."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.storage.errors import LeptonFileError

_MARK: Final = "key/"


def is_key(dtype: str) -> bool:
    """Whether arrays of this name are random keys."""
    return dtype.startswith(_MARK)


def key_data(array: Any) -> tuple[jax.Array, str] | None:
    """The data of random keys, uint32, and the name of their dtype: `key/threefry2x32`; None of others."""
    if not isinstance(array, jax.Array) or not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return None
    return jax.random.key_data(array), f"{_MARK}{jax.random.key_impl(array)}"


def as_keys(data: Any, dtype: str) -> jax.Array:
    """The keys again.

    Raises:
        LeptonFileError: this JAX has no such keys, or they have other data.
    """
    try:
        found: jax.Array = jax.random.wrap_key_data(jnp.asarray(data), impl=dtype.removeprefix(_MARK))
    except (ValueError, TypeError) as error:
        raise LeptonFileError(f"random keys of {dtype.removeprefix(_MARK)!r}: {error}") from error
    return found
