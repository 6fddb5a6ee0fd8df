"""Updates: an array that is updated and read in one step is updated in place."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.passes.lower.updates import RULES

HEADS, LENGTH, WIDTH = 4, 256, 32

pytestmark = pytest.mark.skipif(not RULES, reason="XLA drops the barrier before jax 0.11")


def attended(q: Any, key: Any, value: Any, keys: Any, values: Any, position: Any) -> Any:
    """A decoder's step: q, key, value [batch, heads, width] and the cache [batch, heads, length, width]."""
    keys = lax.dynamic_update_slice(keys, key[:, :, None], (0, 0, position, 0))
    values = lax.dynamic_update_slice(values, value[:, :, None], (0, 0, position, 0))
    scores = jnp.einsum("bhd,bhsd->bhs", q, keys)
    weights = jax.nn.softmax(jnp.where(jnp.arange(LENGTH) <= position, scores, -jnp.inf))
    return jnp.einsum("bhs,bhsd->bhd", weights, values), keys, values


def sample(batch: int = 1, length: int = LENGTH) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    shapes = [(batch, HEADS, WIDTH)] * 3 + [(batch, HEADS, length, WIDTH)] * 2
    return *(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes), jnp.int32(7)


def generated(q: Any, key: Any, value: Any, keys: Any, values: Any, position: Any) -> Any:
    """Many steps."""

    def body(i: Any, carry: Any) -> Any:
        q, keys, values = carry
        return attended(q, key, value, keys, values, i)

    return lax.fori_loop(0, position, body, (q, keys, values))


@pytest.mark.parametrize("fun", [attended, generated])
def test_a_cache_given_away_is_not_copied(fun: Any) -> None:
    args = sample()
    expected = jax.jit(fun)(*args)
    optimised = lepton.optimize(fun, donate_argnums=(3, 4))
    compiled = optimised.lower(*args).compile()
    shape = rf"f32\[(1,)?{HEADS},{LENGTH},{WIDTH}\]"
    assert optimised.trace(*args).report.rules["update-once"] == 2
    assert not re.findall(rf"{shape}\S* copy\(", compiled.as_text())
    for left, right in zip(jax.tree.leaves(expected), jax.tree.leaves(optimised(*args)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_is_read_once_or_in_its_own_shape_stays() -> None:
    def only_read(*args: Any) -> Any:
        return attended(*args)[0]

    def across(q: Any, key: Any, value: Any, keys: Any, values: Any, position: Any) -> Any:
        """The cache is [batch, length, heads, width]: the product turns it."""
        keys = lax.dynamic_update_slice(
            jnp.reshape(keys, (1, LENGTH, HEADS, WIDTH)), key[:, None], (0, position, 0, 0)
        )
        return jnp.einsum("bhd,bshd->bhs", q, keys), keys

    small, several = sample(length=8), sample(batch=2)

    def shorter(*args: Any) -> Any:
        keys = lax.dynamic_update_slice(args[3], args[1][:, :, None], (0, 0, args[5], 0))
        return jnp.einsum("bhd,bhsd->bhs", args[0], keys), keys

    for fun, args in ((only_read, sample()), (across, sample()), (shorter, small), (attended, several)):
        assert "update-once" not in lepton.optimize(fun).trace(*args).report.rules


def test_an_update_is_pinned_once() -> None:
    optimised = lepton.optimize(attended, "default,updates,default")
    assert optimised.trace(*sample()).report.rules["update-once"] == 2


def test_gradients_and_vmap_pass_through() -> None:
    def loss(q: Any, *rest: Any) -> Any:
        return sum(jnp.sum(jnp.sin(part)) for part in attended(q, *rest))

    args = sample()
    optimised = lepton.optimize(loss)
    assert "update-once" in optimised.trace(*args).report.rules
    for left, right in zip(
        jax.grad(loss, (0, 1, 3))(*args), jax.grad(optimised, (0, 1, 3))(*args), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    stacked = tuple(jnp.stack([x, x]) for x in args)
    for left, right in zip(
        jax.tree.leaves(jax.vmap(attended)(*stacked)),
        jax.tree.leaves(jax.vmap(lepton.optimize(attended))(*stacked)),
        strict=True,
    ):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
