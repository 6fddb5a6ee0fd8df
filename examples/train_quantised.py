"""A classifier of handwritten digits whose weights have 2 bits: rounded, and trained to be rounded.

Run it with `python examples/train_quantised.py`. It needs scikit-learn for the digits.
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

PASSES: Final = "default,quantize{weights=int2,activations=static,store=small,train=lsq}"


def network(params: Params, x: Any) -> Any:
    """Logits of 10 digits, of images with 64 pixels."""
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def init(key: Any, widths: tuple[int, ...] = (64, 128, 128, 10)) -> Params:
    """Random weights."""
    names, keys = ("first", "second", "out"), jax.random.split(key, 3)
    return {
        name: {"kernel": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "bias": jnp.zeros(b)}
        for name, k, a, b in zip(names, keys, widths[:-1], widths[1:], strict=True)
    }


def train(apply: Any, params: Any, x: Any, y: Any, steps: int) -> Any:
    """Full-batch Adam on whatever `apply(params, x)` takes."""
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(params: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)
    return params


def main(steps: int = 150) -> dict[str, float]:
    """Train in floats, round, train rounded; print sizes and accuracies, and return the accuracies."""
    images, labels = load_digits(return_X_y=True)
    x = np.asarray(images / 16 - 0.3, np.float32)
    train_x, train_y, test_x, test_y = x[:1200], labels[:1200], x[1200:], labels[1200:]
    found: dict[str, float] = {}

    def tell(name: str, apply: Any, nbytes: int) -> None:
        found[name] = float((apply(test_x).argmax(-1) == test_y).mean())
        print(f"{name:<20} {nbytes:>9,} bytes   {found[name]:.2%} right")

    params = train(network, init(jax.random.key(0)), train_x, train_y, steps)
    tell("float32", lambda x: network(params, x), sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    f = lepton.trainable(network, params, test_x, passes=PASSES, calibration=[train_x])
    rounded = f.compile(f.params)
    tell("int2, rounded", rounded, rounded.nbytes)
    trained = train(f, f.params, train_x, train_y, steps)
    model = f.compile(trained)
    tell("int2, trained", model, model.nbytes)
    print(model.report())
    return found


if __name__ == "__main__":
    main()
