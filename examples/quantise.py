"""A classifier of handwritten digits in 8, 4 and 3 bits: how large it is, and how often it is right.

Run it with `python examples/quantise.py`. It needs scikit-learn for the digits.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lepton_jax as lepton

Params = dict[str, dict[str, Any]]

SETTINGS: Final = {
    "float32": "default",
    "int8 weights": "default,quantize",
    "int8 weights and activations": "default,quantize{activations=static}",
    "int4, groups of 64": "default,quantize{weights=int4,group=64}",
    "int3 by GPTQ, last layer int8": (
        'default,quantize{weights=int3,method=gptq,skip="params/out"},quantize{only="params/out"}'
    ),
}


def network(params: Params, x: Any) -> Any:
    """Logits of 10 digits, of images with 64 pixels."""
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def init(key: Any, widths: tuple[int, ...] = (64, 256, 256, 10)) -> Params:
    """Random weights."""
    names, keys = ("first", "second", "out"), jax.random.split(key, 3)
    return {
        name: {"kernel": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "bias": jnp.zeros(b)}
        for name, k, a, b in zip(names, keys, widths[:-1], widths[1:], strict=True)
    }


def train(params: Params, x: Any, y: Any, steps: int) -> Params:
    """Full-batch Adam."""
    tx = optax.adam(2e-3)

    def loss(params: Params) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)
    return params


def main(steps: int = 150) -> dict[str, float]:
    """Train, quantise in several ways, print sizes and accuracies; returns the accuracies."""
    images, labels = load_digits(return_X_y=True)
    x = np.asarray(images / 16 - 0.3, np.float32)
    params = train(init(jax.random.key(0)), x[:1200], labels[:1200], steps)
    test_x, test_y = x[1200:], labels[1200:]
    found: dict[str, float] = {}
    for name, passes in SETTINGS.items():
        needs = "static" in passes or "gptq" in passes
        model = lepton.compile(
            network, params, test_x, passes=passes, calibration=[x[:600], x[600:1200]] if needs else None
        )
        found[name] = float((model(test_x).argmax(-1) == test_y).mean())
        print(f"{name:<30} {model.nbytes:>9,} bytes   {found[name]:.2%} right")
    print(model.report())
    return found


if __name__ == "__main__":
    main()
