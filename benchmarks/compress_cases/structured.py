"""Channels cut out of a LeptonNet that is trained further, and heads and widths out of a transformer.

LeptonNet learns MNIST: all 60,000 images, each as 14 × 14 tiles of 2 × 2 pixels. It loses channels until 2.1
times fewer flops are left, in each layer those that change the loss on training images least at first order.
Then it learns again, from what the whole model says of the training images. Half of the heads and of
the width of the MLPs of a transformer encoder go by magnitude. Times are those of `jax.jit` of both, in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import numpy as np
import optax
from flax import nnx

import lepton_jax as lepton
from benchmarks._common import Row, data, in_turn
from benchmarks.compress_cases._structured_peers import side_by_side
from benchmarks.quantise_cases.accuracy import percent
from benchmarks.quantise_cases.transformer import build_encoder
from lepton_jax.models import LeptonNet, LeptonNetConfig, create

BUDGET: Final = "flops<=0.476"
WIDTHS: Final = (32, 64, 128)
"""Channels of the stages of LeptonNet."""

EPOCHS: Final = 1, 1
"""Before the cut, and after it."""

BATCH: Final = 128
"""Images of a step of training."""

TIMED: Final = 64
"""Images of a batch that is timed."""

Params = Any
Training = Callable[[Params, Any], tuple[Any, Params]]
"""(parameters, images) → logits, and the parameters with new statistics of batch norm."""


def measure(quick: bool) -> list[Row]:
    """LeptonNet and a transformer with fewer channels, heads and features; another library's ResNet-56."""
    rounds = 1 if quick else 15
    return [*_transformer(quick, rounds), *_lepton_net(quick, rounds), *side_by_side(quick)]


def _lepton_net(quick: bool, rounds: int) -> list[Row]:
    """Accuracies before and after, and times of both programs."""
    if (files := data("mnist.npz")) is None:
        return []
    with np.load(files[0]) as found:
        images, labels = found["x_train"], found["y_train"]
        test, expected = found["x_test"], found["y_test"]
    count, unseen = (BATCH, TIMED) if quick else (len(images), len(test))
    x, y, tests = tiles(images[:count]), labels[:count], (tiles(test[:unseen]), expected[:unseen])
    config = LeptonNetConfig(image_channels=4, widths=(16,) if quick else WIDTHS)
    definition, state = nnx.split(create(lambda: LeptonNet(config, rngs=nnx.Rngs(0))))

    def training(params: Params, x: Any) -> tuple[Any, Params]:
        module = nnx.merge(definition, params)
        return module(x, train=True), nnx.to_pure_dict(nnx.state(module))

    def network(params: Params, x: Any) -> Any:
        return nnx.merge(definition, params)(x)

    before, after = (0, 1) if quick else EPOCHS
    params = fit(training, nnx.to_pure_dict(state), x, np.eye(10, dtype=np.float32)[y], before)
    small = prune(network, params, x, y, 1 if quick else 20)
    plain, fewer = jax.jit(network), jax.jit(small.fun)
    logits = np.concatenate([plain(params, x[i : i + TIMED]) for i in range(0, count, TIMED)])
    trained = fit(small.cut(training), small.params, x, np.asarray(jax.nn.softmax(logits)), after)
    batch = tests[0][:TIMED]
    faster, _ = in_turn(lambda: plain(params, batch), lambda: fewer(trained, batch), rounds)
    return [
        {
            **_smaller(f"LeptonNet {config.widths}, MNIST", small, faster),
            "percent right, whole": percent(functools.partial(plain, params), *tests),
            "cut": percent(functools.partial(fewer, small.params), *tests),
            "trained": percent(functools.partial(fewer, trained), *tests),
        }
    ]


def tiles(images: Any) -> Any:
    """Bytes [N, 28, 28] as float32 [N, 14, 14, 4]: tiles of 2 × 2 pixels."""
    cut = images.reshape(-1, 14, 2, 14, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 14, 14, 4)
    return (cut / 255 - 0.13).astype(np.float32)


def prune(fun: Any, params: Params, images: Any, labels: Any, batches: int) -> lepton.StructurallyPruned:
    """A model with fewer channels, chosen by so many batches of training images."""
    starts = range(0, BATCH * batches, BATCH)

    def loss(params: Params, images: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(fun(params, images), labels).mean()

    return lepton.structured_prune(
        fun,
        params,
        images[:TIMED],
        budget=BUDGET,
        importance="taylor",
        loss=loss,
        batches=[(images[i : i + BATCH], labels[i : i + BATCH]) for i in starts],
        round_to=8,
    )


def fit(training: Training, params: Params, images: Any, targets: Any, epochs: int) -> Params:
    """The parameters after some epochs of Adam on the cross entropy with probabilities of classes.

    Args:
        images: [N, ...].
        targets: probabilities [N, 10].
    """
    kinds = jax.tree_util.tree_map_with_path(lambda path, _: _kind(jax.tree_util.keystr(path)), params)
    steps = max(epochs * (len(images) // BATCH), 1)
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(params: Params, x: Any, wanted: Any) -> tuple[Any, Params]:
        logits, new = training(params, x)
        return optax.softmax_cross_entropy(logits, wanted).mean(), new

    @jax.jit
    def step(params: Params, state: Any, x: Any, wanted: Any) -> tuple[Params, Any]:
        gradient, new = jax.grad(loss, has_aux=True)(params, x, wanted)
        updates, state = tx.update(gradient, state, params)
        moved = optax.apply_updates(params, updates)
        both = jax.tree.map(lambda kind, a, b: a if kind == "trained" else b, kinds, moved, new)
        return both, state

    rng, state = np.random.default_rng(0), tx.init(params)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for i in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[i : i + BATCH]
            params, state = step(params, state, images[chosen], targets[chosen])
    return params


def _kind(path: str) -> str:
    """Statistics of batch norm are counted, not trained."""
    return "counted" if any(name in path for name in ("'mean'", "'var'")) else "trained"


def _transformer(quick: bool, rounds: int) -> list[Row]:
    """Heads and MLPs have their own groups; the residual stream stays whole."""
    encoder, params, sample = build_encoder(quick)
    small = lepton.structured_prune(encoder, params, *sample, ratio={".../query[1]": 0.5, ".../up[1]": 0.5})
    plain, fewer = jax.jit(encoder), jax.jit(small.fun)
    faster, _ = in_turn(lambda: plain(params, *sample), lambda: fewer(small.params, *sample), rounds)
    return [_smaller("transformer encoder, half the heads and MLP", small, faster)]


def _smaller(name: str, small: lepton.StructurallyPruned, faster: float) -> Row:
    flops = 1 / small.report.share("flops")
    return {
        "model": name,
        "times fewer flops": flops,
        "times fewer parameters": 1 / small.report.share("parameters"),
        "times faster": faster,
        "speed-up by flops": faster / flops,
    }
