"""The store of messages that processes joined by `jax.distributed` share."""

from __future__ import annotations

from typing import Any, Final

import jax
from jax._src import distributed

_LATE: Final = "DEADLINE_EXCEEDED"


def store() -> Any:
    """The store, or None where JAX was not started by `jax.distributed`."""
    return distributed.global_state.client


def tell(store: Any, key: str, said: bytes) -> None:
    """Write under a key, once, for other processes; twenty megabytes are not too many."""
    store.key_value_set_bytes(key, said)


def told(store: Any, key: str, seconds: float) -> bytes | None:
    """What another process has written under a key; None if it has not after so many seconds."""
    try:
        return bytes(store.blocking_key_value_get_bytes(key, int(seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if _LATE in str(error):
            return None
        raise


def forget(store: Any, key: str) -> None:
    """Remove what was written under a key, and under those that continue it with a slash."""
    store.key_value_delete(key)
