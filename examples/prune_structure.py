"""A classifier of handwritten digits that loses half of its channels, and learns again what it lost.

Run it with `python examples/prune_structure.py`. It needs scikit-learn for the digits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lepton_jax as lepton

Params = dict[str, Any]


def network(params: Params, x: Any) -> Any:
    """Logits of 10 digits, of images [N, 8, 8, 1]."""
    axes = ("NHWC", "HWIO", "NHWC")
    for stride, name in ((1, "first"), (2, "second")):
        kernel = params[name]["kernel"]
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=axes)
        x = jax.nn.relu(x + params[name]["bias"])
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["third"]["kernel"] + params["third"]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def init() -> Params:
    """Random weights."""
    rng = np.random.default_rng(0)
    shapes = {"first": (3, 3, 1, 8), "second": (3, 3, 8, 16), "third": (256, 64), "out": (64, 10)}
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape), jnp.float32),
            "bias": jnp.zeros(shape[-1]),
        }
        for name, shape in shapes.items()
    }


def loss(params: Params, x: Any, y: Any) -> Any:
    """Mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()


def train(fun: Any, params: Params, x: Any, y: Any, steps: int) -> Params:
    """The parameters after some steps of a loss, each with 128 images."""
    tx = optax.sgd(0.1, 0.9)

    @jax.jit
    def step(params: Params, state: Any, x: Any, y: Any) -> tuple[Params, Any]:
        updates, state = tx.update(jax.grad(fun)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng(0), jax.jit(tx.init)(params)
    for _ in range(steps):
        chosen = rng.choice(len(x), 128)
        params, state = step(params, state, x[chosen], y[chosen])
    return params


def main(steps: int = 150) -> dict[str, float]:
    """The share of test images that is right: by the whole model, the cut one, and that one trained again."""
    images, labels = load_digits(return_X_y=True)
    x, y = np.asarray(images / 16, np.float32).reshape(-1, 8, 8, 1), np.asarray(labels, np.int32)
    x, y, unseen, wanted = x[:1400], y[:1400], x[1400:], y[1400:]
    params = train(loss, init(), x, y, steps)

    small = lepton.structured_prune(
        network,
        params,
        x[:64],
        budget="flops<=0.4",
        importance="taylor",
        loss=loss,
        batches=[(x[:256], y[:256])],
    )
    print(small.report)
    again = train(small.cut(loss), small.params, x, y, steps // 2)

    def right(fun: Any, params: Params) -> float:
        return float(np.mean(np.argmax(jax.jit(fun)(params, unseen), -1) == wanted))

    found = {
        "whole": right(network, params),
        "cut": right(small.fun, small.params),
        "trained again": right(small.fun, again),
    }
    for name, share in found.items():
        print(f"{name}: {share:.1%} right")
    return found


if __name__ == "__main__":
    main()
