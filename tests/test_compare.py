"""What counts as rounding when two results are compared."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics.compare import compare_trees


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_other_numbers_are_no_rounding(dtype: Any) -> None:
    plain = jnp.linspace(-2, 3, 40, dtype=dtype)
    exact = np.linspace(-2, 3, 40)
    for other in (-plain, plain[::-1], plain * 2, plain.at[3].set(0)):
        assert not compare_trees(plain, other).ok
        assert not compare_trees(plain, other, exact).ok
    near = plain * (1 + jnp.finfo(dtype).eps)
    assert compare_trees(plain, near).ok and compare_trees(plain, near, exact).ok


def test_what_the_plain_program_gets_wrong_may_be_wrong_otherwise() -> None:
    plain, exact = jnp.array([1.0, 8.0], jnp.bfloat16), np.array([4.0, 8.0])
    assert compare_trees(plain, jnp.array([4.0, 8.0], jnp.bfloat16), exact).ok
    assert not compare_trees(plain, jnp.array([4.0, 8.0], jnp.bfloat16)).ok
