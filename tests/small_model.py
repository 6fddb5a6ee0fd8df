"""One layer, its parameters and an input: what tests of `prepare` and `compile` share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PARAMS = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.ones(4, np.float32)}
X = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)


def forward(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ jnp.sin(params["w"]) + params["b"])


def close(left: Any, right: Any) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
