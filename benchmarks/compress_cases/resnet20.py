"""A ResNet-20 on CIFAR-10 images without half of its weights and more: at once, and with training."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lepton_jax as lepton
from benchmarks._common import Row
from benchmarks.quantise_cases.accuracy import percent, read, resnet20
from lepton_jax.numerics.sparsity_schedules import polynomial

KINDS: Final = {
    "magnitude": "importance=magnitude",
    "magnitude, ranked together": "importance=magnitude,among=global",
    "Wanda": "importance=wanda",
    "SparseGPT": "importance=sparsegpt,sweeps=0",
    "SparseGPT, 10 sweeps": "importance=sparsegpt,sweeps=10",
    "SparseGPT, 10 sweeps, by sensitivity": "importance=sparsegpt,sweeps=10,distribution=sensitivity",
}
"""How it is pruned at once, as options of the pass `prune`; calibrated on 1,000 training images.

Magnitudes are those of the weights as they are stored: pruned before `deploy` folds the norms into them.
"""

SPARSITIES: Final = (0.5, 0.6, 0.7)

BATCH: Final = 100

EPOCHS: Final = 6

RATE: Final = 1e-3
"""The learning rate at the start; it falls to 0 along a cosine."""


def measure(quick: bool) -> list[Row]:
    """Percent of the test images that are classified right, and the share of weights that is zero."""
    if (found := read()) is None:
        return []
    params, x, labels, training, _ = found
    count = 200 if quick else len(x)
    right = functools.partial(percent, images=x[:count], labels=labels[:count])
    plain: Any = jax.jit(functools.partial(resnet20, params))
    rows = [_row("float32", 0.0, right(plain), 0.0)]
    calibration = [training[i : i + BATCH] for i in range(0, BATCH if quick else 1000, BATCH)]
    sparsities = SPARSITIES[:1] if quick else SPARSITIES
    for name, options in list(KINDS.items())[: 1 if quick else None]:
        for sparsity in sparsities:
            rows.append(_at_once(name, f"{options},sparsity={sparsity}", params, x, calibration, right))
    images = training[:BATCH] if quick else training
    rows.append(_trained(params, plain, images, right, epochs=1 if quick else EPOCHS))
    pairs = 'importance=sparsegpt,sweeps=10,pattern="2:4"'
    return rows if quick else [*rows, _at_once("SparseGPT, 2:4", pairs, params, x, calibration, right)]


def _row(name: str, zeros: float, right: float, seconds: float) -> Row:
    return {"model": name, "zero": zeros, "percent right": right, "seconds": seconds}


def _at_once(
    name: str,
    options: str,
    params: Any,
    x: Any,
    calibration: list[Any],
    right: Callable[[Any], float],
) -> Row:
    """Pruned without training."""
    start = time.perf_counter()
    wants = "magnitude" not in options
    prune = f"prune{{{options}}}"
    model = lepton.compile(
        resnet20,
        params,
        x[:200],
        passes=f"deploy,{prune}" if wants else f"{prune},deploy",
        calibration=calibration if wants else None,
    )
    zeros = _zeros(model.params.arrays)
    return _row(name, zeros, right(model), time.perf_counter() - start)


def _zeros(arrays: Any) -> float:
    """The share of the elements of arrays of two dimensions or more that is zero."""
    weights = [np.asarray(array) for array in arrays if array.ndim > 1]
    return sum(int((each == 0).sum()) for each in weights) / sum(each.size for each in weights)


def _trained(params: Any, teacher: Any, images: Any, right: Callable[[Any], float], epochs: int) -> Row:
    """70 % of the weights gone, little by little, while it is trained to say what the float model says.

    Images are mirrored half of the time and shifted by up to two pixels; the statistics of norms stay.
    """
    start = time.perf_counter()
    steps = epochs * (len(images) // BATCH)
    fixed = {name: "fixed" if "running" in name else "trained" for name in params}
    adam = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    inner = optax.multi_transform({"trained": adam, "fixed": optax.set_to_zero()}, fixed)
    schedule = polynomial(0.7, begin=0, end=max(steps // 2, 1), initial=0.5)
    tx = lepton.sparsify(inner, schedule, every=5 if steps > 50 else 1, scope="global")

    @jax.jit
    def step(params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            return optax.softmax_cross_entropy(resnet20(params, x), jax.nn.softmax(teacher(x))).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for i in range(0, len(images) - BATCH + 1, BATCH):
            params, state = step(params, state, _varied(images[order[i : i + BATCH]], rng))
    model = lepton.compile(resnet20, params, images[:200])
    found = right(model)
    return _row("70 % zero, trained", _zeros(model.params.arrays), found, time.perf_counter() - start)


def _varied(images: Any, rng: np.random.Generator) -> Any:
    """A batch of images, all mirrored or none, and shifted."""
    images = images[:, :, ::-1] if rng.random() < 0.5 else images
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    top, left = rng.integers(0, 5, 2)
    return padded[:, top : top + 32, left : left + 32]
