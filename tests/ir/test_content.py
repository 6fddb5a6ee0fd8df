"""Keys that programs share which compute the same from equal constants, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir.content import content_key
from lepton_jax.ir.importer import from_jaxpr

X = jnp.ones((4, 3), jnp.float32)
TABLE = np.arange(3, dtype=np.float32)


def key(fun: Callable[..., Any]) -> Any:
    return content_key(from_jaxpr(jax.make_jaxpr(fun)(X), "f"))


def plain(x: Any) -> Any:
    return jnp.exp(x) * TABLE, jnp.exp(x) + 1


@pytest.mark.parametrize(
    "fun",
    [
        lambda x: (jnp.exp(x) * TABLE.copy(), jnp.exp(x) + 1),
        lambda x: (jax.jit(jnp.exp)(x) * TABLE, jnp.exp(x) + 1),  # in a body
        lambda x: ((y := jnp.exp(x)) * TABLE, y + 1),  # once
        lambda x: ((z := jnp.exp(x) + 1, jnp.exp(x) * TABLE)[1], z),  # in another order
        lambda x: (jnp.sin(x), plain(x))[1],  # beside what nobody reads
        lambda x: (jnp.exp(jax.lax.convert_element_type(x, "float32")) * TABLE, jnp.exp(x) + 1),
    ],
)
def test_the_same_computed_otherwise(fun: Callable[..., Any]) -> None:
    assert key(fun) == key(plain)


@pytest.mark.parametrize(
    "fun",
    [
        lambda x: (jnp.exp(x) * (TABLE + 1), jnp.exp(x) + 1),
        lambda x: (jax.jit(jnp.expm1)(x) * TABLE, jnp.exp(x) + 1),
        lambda x: plain(x)[::-1],
        lambda x: plain(x.astype("bfloat16").astype("float32")),
        lambda x: (*plain(x), x),
    ],
)
def test_something_else(fun: Callable[..., Any]) -> None:
    assert key(fun) != key(plain)
