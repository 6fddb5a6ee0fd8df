"""Train a small decoder on eight devices, by data and by a preset with a pin; the losses are one device's.

python examples/shard.py        # eight virtual CPU devices
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # before JAX starts
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # a few small steps: compiling takes the time

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax.models import Decoder, DecoderConfig

CONFIG = DecoderConfig(vocabulary=32, context=16, layers=1, heads=4, width=32)
MODEL, PARAMS = nnx.split(nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0))))
TX = optax.sgd(1.0, momentum=0.9)

WAYS: dict[str, tuple[str, Any]] = {
    "data parallel": ("data=8", {"tokens": P("data")}),
    "tensor parallel": ("data=2,model=4", ("tp", {".../mlp_norm": None})),
}


def step(state: dict[str, Any], tokens: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    """One step on tokens [batch, length]: the new state, and the loss before it."""

    def loss(params: Any) -> jax.Array:
        logits = nnx.merge(MODEL, params)(tokens)
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return losses.mean()

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, tx = TX.update(grads, state["tx"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "tx": tx}, value


def train(run: Callable[..., Any], steps: int) -> list[float]:
    """The losses of some steps from the same start."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: 0.1 * rng.standard_normal(p.shape, np.float32), nnx.to_pure_dict(PARAMS))
    state = {"params": params, "tx": TX.init(params)}
    losses = []
    for _ in range(steps):
        tokens = np.cumsum(rng.integers(1, 3, (16, 16)), axis=1, dtype=np.int32) % 32
        state, loss = run(state, tokens)
        losses.append(float(loss))
    return losses


def main(steps: int = 8) -> dict[str, list[float]]:
    """Train on one device and in each way; returns the losses."""
    found = {"one device": train(jax.jit(step), steps)}
    for name, (mesh, shard) in WAYS.items():
        run = lepton.optimize(step, mesh=mesh, shard=shard, donate="auto")
        found[name] = train(run, steps)
        print(f"{name:<15} on {mesh}: loss {found[name][0]:.4f} → {found[name][-1]:.4f}")
        assert np.allclose(found[name], found["one device"], rtol=1e-3)
    return found


if __name__ == "__main__":
    main()
