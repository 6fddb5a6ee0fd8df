"""A whole optax train step as one optimised function, and what Lepton did to it.

Run it with `python examples/train_step.py`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lepton_jax as lepton

Params = dict[str, Any]

tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))


def init(key: Any) -> Params:
    """A two-layer network for vectors of 16 numbers."""
    first, second = jax.random.split(key)
    return {
        "w1": jax.random.normal(first, (16, 64)) / 4.0,
        "w2": jax.random.normal(second, (64, 1)) / 8.0,
    }


def loss(params: Params, x: Any, y: Any) -> Any:
    """Mean squared error."""
    hidden = jax.nn.gelu(x @ params["w1"])
    return jnp.mean((hidden @ params["w2"] - y) ** 2)


@lepton.optimize(donate_argnums=(0, 1))
def train_step(params: Params, state: Any, x: Any, y: Any) -> tuple[Params, Any, Any]:
    """One step of Adam with clipped gradients."""
    value, grads = jax.value_and_grad(loss)(params, x, y)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def main(steps: int = 200) -> float:
    """Train, print the report, return the last loss."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 16)).astype(np.float32)
    y = np.tanh(x.sum(axis=1, keepdims=True))
    params = init(jax.random.key(0))
    state = tx.init(params)
    value = jnp.inf
    for step in range(steps):
        params, state, value = train_step(params, state, x, y)
        if step % 50 == 0:
            print(f"step {step:4d}  loss {float(value):.4f}")
    print(train_step.report)
    return float(value)


if __name__ == "__main__":
    main()
