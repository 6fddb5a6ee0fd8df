"""Loss scaling around an optax optimiser."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from lepton_jax.numerics.loss_scale import LossScaleState, loss_scaled, scale_loss

GOOD, BAD = np.array([1.0, 2.0], np.float32), np.array([1.0, np.inf], np.float32)


def run(tx: Any, grads: list[np.ndarray[Any, Any]]) -> tuple[list[Any], list[Any], LossScaleState]:
    """The parameters and scales after each step, and the last state, in one compiled scan."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update({"w": gradient}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params["w"], state.scale)

    params = {"w": jnp.zeros(2)}
    scanned = jax.jit(lambda grads: lax.scan(step, (params, tx.init(params)), grads))
    (_, state), (weights, scales) = scanned(np.stack(grads))
    return weights.tolist(), scales.tolist(), state


def test_dynamic_scale() -> None:
    """It grows after good steps in a row, shrinks and leaves the step out after a bad one, within bounds."""
    tx = loss_scaled(optax.trace(0.5), initial_scale=4.0, growth_interval=2, least=2.0, greatest=8.0)
    weights, scales, state = run(tx, [GOOD, GOOD, GOOD, BAD, BAD, BAD, GOOD, BAD, GOOD, GOOD, GOOD, GOOD])
    assert scales == [4.0, 8.0, 8.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0, 4.0, 4.0, 8.0]
    assert weights[0] == [0.25, 0.5]
    assert weights[2] == weights[3] == weights[5] != weights[6]
    assert int(state.skipped) == 4 and int(state.good) == 0
    momentum = np.asarray(state.inner.trace["w"])
    assert np.isfinite(momentum).all()  # no bad gradient has reached the optimiser's state
    assert [leaf.dtype for leaf in (state.scale, state.good, state.skipped)] == [
        jnp.float32,
        jnp.int32,
        jnp.int32,
    ]


def test_static_scale() -> None:
    """It never changes, and bad steps are left out all the same."""
    tx = loss_scaled(optax.scale(-1.0), initial_scale=4.0, growth_interval=None)
    weights, scales, state = run(tx, [GOOD, BAD, np.array([np.nan, 0.0], np.float32), GOOD])
    assert scales == [4.0] * 4 and int(state.skipped) == 2
    assert weights == [[-0.25, -0.5]] * 3 + [[-0.5, -1.0]]


def test_same_steps_as_without_scaling() -> None:
    """With a power of two nothing is lost, whatever the optimiser; extra arguments get through."""
    target = jnp.asarray([3.0, -1.0])

    def loss(params: Any) -> Any:
        return jnp.sum((params - target) ** 2)

    plain = optax.adamw(0.1)
    scaled = optax.chain(optax.clip(1e9), loss_scaled(plain, initial_scale=2.0**10))

    @jax.jit
    def both(a: Any, b: Any, s: Any, t: Any) -> Any:
        updates, s = plain.update(jax.grad(loss)(a), s, a)
        others, t = scaled.update(jax.grad(lambda p: scale_loss(t, loss(p)))(b), t, b)
        return optax.apply_updates(a, updates), optax.apply_updates(b, others), s, t

    state = (jnp.zeros(2), jnp.zeros(2), plain.init(jnp.zeros(2)), scaled.init(jnp.zeros(2)))
    for _ in range(5):
        state = both(*state)
    np.testing.assert_allclose(state[0], state[1], rtol=1e-6)
    searched = loss_scaled(optax.polyak_sgd(), initial_scale=2.0)
    updates, _ = searched.update(
        2.0 * jax.grad(loss)(jnp.zeros(2)),
        searched.init(jnp.zeros(2)),
        jnp.zeros(2),
        value=loss(jnp.zeros(2)),
    )
    assert float(loss(updates)) < float(loss(jnp.zeros(2)))


def test_gradients_of_other_dtypes() -> None:
    """float16 gradients keep their dtype; what is no float is left alone; no gradients are fine."""
    tx = loss_scaled(optax.identity(), initial_scale=2.0)
    grads = {"h": jnp.asarray([2.0, 4.0], jnp.float16), "n": jnp.asarray([3])}
    updates, _ = tx.update(grads, tx.init(grads))
    assert (
        updates["h"].dtype == jnp.float16
        and updates["h"].tolist() == [1.0, 2.0]
        and updates["n"].tolist() == [3]
    )
    assert tx.update({}, tx.init({}))[0] == {}


def test_wrong_use() -> None:
    """Arguments out of range, and a state without a scale."""
    for first, least in ((0.0, 1.0), (2.0**30, 1.0), (2.0, 3.0)):
        with pytest.raises(ValueError, match="0 < least <= initial_scale <= greatest"):
            loss_scaled(optax.sgd(0.1), initial_scale=first, least=least)
    with pytest.raises(ValueError, match="growth_interval is a number of steps"):
        loss_scaled(optax.sgd(0.1), growth_interval=0)
    with pytest.raises(ValueError, match="factor must be greater than 1"):
        loss_scaled(optax.sgd(0.1), factor=1.0)
    with pytest.raises(TypeError, match="found 0 in it"):
        scale_loss(optax.sgd(0.1).init(jnp.ones(2)), jnp.ones(()))
