"""The float64 reference: every operation computes in float64, those with a function inside too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax._reference import in_float64
from lepton_jax.ir import trace

PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "gradient of a gather": jax.grad(lambda x: jnp.sum(x[jnp.array([0, 0, 2])] ** 2)),
    "maximum at": lambda x: x.at[jnp.array([0, 1])].max(3.0),
    "product at": lambda x: x.at[jnp.array([1, 1])].mul(0.3),
    "sum in a loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c.at[i].add(x[i] / 3), x),
    "cumulative": lambda x: jnp.cumsum(x / 7),
    "logsumexp": lambda x: jax.nn.logsumexp(x),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_what_numpy_would_say_with_more_digits(name: str) -> None:
    x = jnp.linspace(0.1, 2.0, 4)
    (result,) = in_float64(trace(PROGRAMS[name], x))(x)
    with jax.enable_x64(True):
        expected = np.asarray(PROGRAMS[name](jnp.asarray(np.asarray(x), jnp.float64)))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-7)
    np.testing.assert_allclose(result, PROGRAMS[name](x), rtol=1e-5)
