"""Weights as products of thin ones: a ResNet-20 on CIFAR-10 images, and a character transformer."""

from __future__ import annotations

import functools
import time
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lepton_jax as lepton
from benchmarks._common import Row, in_turn, nbytes
from benchmarks.quantise_cases._character_model import Recipe, Tokens, shakespeare
from benchmarks.quantise_cases.accuracy import percent, read, resnet20
from benchmarks.quantise_cases.shakespeare import perplexity
from benchmarks.quantise_cases.training import BATCH, FROZEN, train

BUDGETS: Final = (0.7, 0.5)

SHARES: Final = (0.75, 0.5)

EPOCHS: Final = 1

STEPS: Final = 100
"""Of AdamW, on the transformer's factors."""

HESSIAN: Final = "weigh=hessian"


def measure(quick: bool) -> list[Row]:
    """Accuracy or perplexity, parameters, operations and time, at several budgets."""
    return _characters(quick) if quick else [*_images(), *_characters(quick)]


def _images() -> list[Row]:
    """Percent of the test images classified right; factors are trained on the float model's outputs."""
    if (found := read()) is None:
        return []
    params, x, labels, training, _ = found
    calibration = [training[i : i + BATCH] for i in range(0, 3 * BATCH, BATCH)]
    dense = lepton.compile(resnet20, params, x[:BATCH])
    row = functools.partial(_image_row, dense=dense, x=x, labels=labels)
    plain: Any = jax.jit(functools.partial(resnet20, params))
    rows = [row("ResNet-20, float32", dense)]
    targets = np.concatenate([plain(training[i : i + BATCH]) for i in range(0, len(training), BATCH)])
    for budget in BUDGETS:
        options = f"budget={budget},goal=smaller"
        for weigh in ("weigh=none", HESSIAN):
            model = lepton.compile(
                resnet20,
                params,
                x[:BATCH],
                passes=f"deploy,low-rank{{{options},{weigh}}}",
                calibration=calibration if weigh == HESSIAN else None,
            )
            rows.append(row(f"{budget:.0%}, {_words(weigh)}", model))
        f = lepton.trainable(
            resnet20,
            params,
            training[:BATCH],
            passes=f"deploy,low-rank{{{options},{HESSIAN},train=factors}}",
            frozen=FROZEN,
            calibration=calibration,
        )
        start = time.perf_counter()
        factors = train(f, training, targets, EPOCHS)
        model = f.compile(factors, x[:BATCH])
        rows.append(row(f"{budget:.0%}, trained", model, seconds=time.perf_counter() - start))
    return rows


def _words(weigh: str) -> str:
    return "error of the outputs" if weigh == HESSIAN else "error of the weights"


def _image_row(name: str, model: Any, *, dense: Any, x: Any, labels: Any, seconds: float = 0.0) -> Row:
    batch = jnp.asarray(x[:BATCH])
    runs = [functools.partial(each.jit, each.params, batch) for each in (dense, model)]
    faster, _ = in_turn(runs[0], runs[1], 7)
    return {
        "model": name,
        "percent right": percent(model, x, labels),
        "parameters": nbytes(model.params) / nbytes(dense.params),
        "flops": _flops(model, batch) / _flops(dense, batch),
        "times faster": faster,
        "seconds of training": seconds,
    }


def _flops(model: Any, *inputs: Any) -> float:
    found: Any = model.jit.lower(model.params, *inputs).compile().cost_analysis()
    return float(found["flops"])


def _characters(quick: bool) -> list[Row]:
    """Perplexity on held-out text."""
    if (known := shakespeare(quick)) is None:
        return []
    decoder, text, calibration = known.decoder, known.text, known.calibration
    dense = lepton.compile(decoder, calibration[0])
    row = functools.partial(_text_row, dense=dense, text=text, quick=quick)
    rows = [row("transformer, float32", dense)]
    for share in SHARES[1:] if quick else SHARES:
        options = f"budget={share},goal=smaller,ops=dot_general"
        for weigh in ("weigh=none", HESSIAN):
            model = lepton.compile(
                decoder,
                calibration[0],
                passes=f"deploy,low-rank{{{options},{weigh}}}",
                calibration=calibration if weigh == HESSIAN else None,
            )
            rows.append(row(f"{share:.0%}, {_words(weigh)}", model))
        f = lepton.trainable(
            decoder,
            calibration[0],
            passes=f"deploy,low-rank{{{options},{HESSIAN},train=factors}}",
            calibration=calibration,
        )
        start = time.perf_counter()
        factors = _train_text(f, known.training, known.recipe, 2 if quick else STEPS)
        model = f.compile(factors)
        rows.append(row(f"{share:.0%}, trained", model, seconds=time.perf_counter() - start))
    return rows


def _text_row(name: str, model: Any, *, dense: Any, text: Tokens, quick: bool, seconds: float = 0.0) -> Row:
    batch = jnp.asarray(text[:16, :-1])
    runs = [functools.partial(each.jit, each.params, batch) for each in (dense, model)]
    faster, _ = in_turn(runs[0], runs[1], 1 if quick else 7)
    return {
        "model": name,
        "perplexity": perplexity(model, text),
        "parameters": nbytes(model.params) / nbytes(dense.params),
        "flops": _flops(model, batch) / _flops(dense, batch),
        "times faster": faster,
        "seconds of training": seconds,
    }


def _train_text(f: lepton.Trainable, tokens: Tokens, recipe: Recipe, steps: int) -> Any:
    """AdamW on the next character, at a third of the rate that the model was trained with."""
    tx = optax.adamw(optax.cosine_decay_schedule(recipe.rate / 3, steps), weight_decay=0.0)

    def loss(params: Any, batch: Any) -> Any:
        logits = f(params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, f.params)
    state, rng = tx.init(params), np.random.default_rng(1)
    for _ in range(steps):
        places = rng.integers(0, len(tokens) - recipe.context - 1, recipe.batch)
        batch = np.stack([tokens[at : at + recipe.context + 1] for at in places])
        params, state = step(params, state, batch)
    return params
