"""A ResNet-20 on CIFAR-10 images, trained while it is quantised, on 4,000 training images."""

from __future__ import annotations

import functools
import time
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lepton_jax as lepton
from benchmarks._common import Row, nbytes
from benchmarks.quantise_cases.accuracy import percent, read, resnet20

ACTIVATIONS: Final = "activations=static,observer=percentile"

KINDS: Final = {
    "int4, activations int8 static": f"weights=int4,{ACTIVATIONS}",
    "int3, activations int8 static": f"weights=int3,{ACTIVATIONS}",
}
"""What is trained, as options of the pass `quantize`."""

BATCH: Final = 100

EPOCHS: Final = 2

RATES: Final = {"params": 3e-4, "learned": 3e-4}
"""The learning rates of weights and of step sizes, at the start; they fall to 0 along a cosine."""

FROZEN: Final = ("params/*running_mean", "params/*running_var")


def measure(quick: bool) -> list[Row]:
    """Percent of the test images that are classified right: rounded, and trained after that.

    The loss is the cross entropy between the logits of the float model and those of the rounded one.
    """
    if (found := read()) is None:
        return []
    params, x, labels, training, _ = found
    x, labels = (x[:200], labels[:200]) if quick else (x, labels)
    training = training[:200] if quick else training
    plain: Any = jax.jit(functools.partial(resnet20, params))
    rows: list[Row] = [_row("float32", percent(plain, x, labels), 1.0, 0.0)]
    targets = np.concatenate([plain(training[i : i + BATCH]) for i in range(0, len(training), BATCH)])
    kinds = dict(list(KINDS.items())[: 1 if quick else None])
    for name, options in kinds.items():
        start = time.perf_counter()
        f = lepton.trainable(
            resnet20,
            params,
            training[:BATCH],
            passes=f"deploy,quantize{{{options},train=lsq}}",
            frozen=FROZEN,
            calibration=[training[i : i + BATCH] for i in range(0, min(1000, len(training)), BATCH)],
        )
        before = f.compile(f.params)
        trained = train(f, training, targets, 1 if quick else EPOCHS)
        after = f.compile(trained)
        seconds = time.perf_counter() - start
        share = nbytes(after.params) / nbytes(params)
        rows.append(_row(f"{name}, rounded", percent(before, x, labels), share, 0.0))
        rows.append(_row(f"{name}, trained", percent(after, x, labels), share, seconds))
    return rows


def _row(name: str, right: float, size: float, seconds: float) -> Row:
    return {"model": name, "percent right": right, "bytes": size, "seconds": seconds}


def train(f: lepton.Trainable, images: Any, targets: Any, epochs: int) -> Any:
    """Adam, over the images in random order, each mirrored half of the time."""
    steps = epochs * (len(images) // BATCH)
    schedules = {name: optax.cosine_decay_schedule(rate, steps) for name, rate in RATES.items()}
    tx = optax.multi_transform(
        {name: optax.adam(rate) for name, rate in schedules.items()}, {n: n for n in RATES}
    )

    def loss(params: Any, x: Any, target: Any) -> Any:
        return optax.softmax_cross_entropy(f(params, x), jax.nn.softmax(target)).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, x: Any, target: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, x, target), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, f.params)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for i in range(0, len(images) - BATCH + 1, BATCH):
            which = order[i : i + BATCH]
            params, state = step(params, state, images[which], targets[which])
    return params
