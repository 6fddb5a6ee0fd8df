"""A small classifier of handwritten digits, taught by a large one that has seen more of them.

Run it with `python examples/distill.py`. It needs scikit-learn for the digits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lepton_jax as lepton
from lepton_jax.distill import Features, Labels, Logits, Term

Params = dict[str, Any]


def network(params: Params, x: Any) -> Any:
    """Logits of 10 digits, of images with 64 pixels."""
    with jax.named_scope("hidden"):
        x = jax.nn.relu(x @ params["up"] + params["bias"])
    return x @ params["down"]


def init(key: Any, width: int) -> Params:
    """Random weights."""
    up, down = jax.random.split(key)
    return {
        "up": jax.random.normal(up, (64, width)) * (2 / 64) ** 0.5,
        "bias": jnp.zeros(width),
        "down": jax.random.normal(down, (width, 10)) * width**-0.5,
    }


def train(teacher: Any, start: Params, x: Any, y: Any, epochs: int, terms: list[Term]) -> Params:
    """Adam, in batches of 50."""
    batches = [(x[i : i + 50], y[i : i + 50]) for i in range(0, len(x), 50)]
    found = lepton.distill(
        teacher, (network, start), optax.adam(3e-3), batches, terms=terms, epochs=epochs, report_every=100
    )
    print(found)
    params: Params = found.params
    return params


def main(epochs: int = 60) -> dict[str, float]:
    """Train the teacher on 1,200 digits, and the student on 200, alone and taught; return the accuracies."""
    images, labels = load_digits(return_X_y=True)
    x = np.asarray(images / 16 - 0.3, np.float32)
    held, few = slice(1200, None), slice(200)
    found: dict[str, float] = {}

    def tell(name: str, params: Params) -> None:
        found[name] = float((network(params, x[held]).argmax(-1) == labels[held]).mean())
        print(f"{name:<16} {sum(leaf.size for leaf in params.values()):>7,} weights  {found[name]:.2%} right")

    def nobody(x: Any) -> Any:
        return x

    large = train(nobody, init(jax.random.key(0), 256), x[:1200], labels[:1200], epochs // 4, [Labels()])
    tell("teacher", large)
    small = init(jax.random.key(1), 16)
    tell("student, alone", train(nobody, small, x[few], labels[few], epochs, [Labels()]))
    terms: list[Term] = [Logits(temperature=4.0), Features("hidden", weight=0.1)]
    tell("student, taught", train((network, large), small, x[few], labels[few], epochs, terms))
    return found


if __name__ == "__main__":
    main()
