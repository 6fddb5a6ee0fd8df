"""A student a quarter of its teacher's size, alone and taught, from the same start on the same batches.

On CIFAR-10 images: the teacher is the ResNet-20, which has seen 50,000 images; the student sees 4,000, each
as it is or mirrored. What the teacher says of these is computed once. On tiny Shakespeare: a character
transformer, and one of half the width that sees a tenth of the text.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import jax
import numpy as np
import optax
from flax import nnx

import lepton_jax as lepton
from benchmarks._common import Row, data
from benchmarks.compress_cases import _students
from benchmarks.quantise_cases._character_model import (
    HELD_OUT,
    QUICK,
    Recipe,
    Tokens,
    characters,
    trained,
    untrained,
    windows,
)
from benchmarks.quantise_cases.accuracy import percent, read, resnet20
from benchmarks.quantise_cases.shakespeare import perplexity
from lepton_jax.distill import Labels, Logits, Term

SEEDS: Final = 3

EPOCHS: Final = 20
BATCH: Final = 50
IMAGE_RATE: Final = 5e-3
IMAGE_TERMS: Final[dict[str, list[Term]]] = {
    "alone": [Labels()],
    "taught": [Logits(temperature=4.0, weight=0.25)],
}

TEACHER: Final = Recipe(layers=2, width=128, heads=4, context=64, steps=1500, rate=3e-3)
STEPS: Final = 1000
PIECES: Final = 16
TEXT: Final = 0.1
"""The part of the text, at its beginning, that the student sees."""
TEXT_RATE: Final = 3e-3
TEXT_TERMS: Final[dict[str, list[Term]]] = {"alone": [Labels()], "taught": [Logits(temperature=1.0)]}

Run = Callable[[list[Term], int], float]
"""From terms and a seed to the score of the student."""


def measure(quick: bool) -> list[Row]:
    """Percent of the images that are classified right, and the perplexity of text that was not seen."""
    return [*_images(quick), *_text(quick)]


def _images(quick: bool) -> list[Row]:
    if (found := read()) is None:
        return []
    params, x, labels, images, classes = found
    count, epochs = (200, 1) if quick else (len(images), EPOCHS)
    x, labels, images, classes = x[:count], labels[:count], images[:count], classes[:count]
    teacher: Any = jax.jit(functools.partial(resnet20, params))
    views = np.stack([images, images[:, :, ::-1]])
    taught = np.stack(
        [np.concatenate([teacher(view[i : i + 200]) for i in range(0, count, 200)]) for view in views]
    )
    make, evaluated = jax.jit(_students.make), jax.jit(_students.evaluated)
    steps = epochs * (count // BATCH)

    def batches(seed: int, epoch: int) -> Iterator[Any]:
        rng = np.random.default_rng((seed, epoch))
        order, view = rng.permutation(count), rng.integers(0, 2, count)
        for at in range(0, count - BATCH + 1, BATCH):
            which = order[at : at + BATCH]
            yield views[view[which], which], classes[which], taught[view[which], which]

    def run(terms: list[Term], seed: int) -> float:
        rate = optax.warmup_cosine_decay_schedule(0.0, IMAGE_RATE, steps // 10, steps)
        student = lepton.distill(
            lambda said: said,
            (_students.training, *make(jax.random.key(seed))),
            optax.adamw(rate, weight_decay=5e-2),
            functools.partial(batches, seed),
            teacher_inputs=lambda batch: batch[2],
            terms=terms,
            epochs=epochs,
        )
        return percent(lambda images: evaluated(student.params, student.state, images), x, labels)

    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(make, jax.random.key(0))[0]))
    share = size / sum(leaf.size for name, leaf in params.items() if "running" not in name)
    return _rows(
        "CIFAR-10, percent right", run, IMAGE_TERMS, percent(teacher, x, labels), share, quick, higher=True
    )


def _text(quick: bool) -> list[Row]:
    if (files := data("tinyshakespeare.txt")) is None:
        return []
    tokens, vocabulary = characters(files[0])
    cut = int(len(tokens) * (1 - HELD_OUT))
    recipe, steps = (QUICK, 10) if quick else (TEACHER, STEPS)
    teacher = trained(recipe, tokens[:cut], vocabulary)
    held = windows(tokens[cut:], recipe.context + 1, 16 if quick else 256)
    smaller = replace(recipe, width=recipe.width // 2)

    def score(model: nnx.Module, params: Any) -> float:
        split: Any = nnx.split
        definition, _, rest = split(model, nnx.Param, ...)
        call: Any = jax.jit(lambda params, x: nnx.merge(definition, params, rest)(x))
        return perplexity(lambda x: call(params, x), held)

    def run(terms: list[Term], seed: int) -> float:
        model = untrained(replace(smaller, seed=seed), vocabulary)
        rate = optax.warmup_cosine_decay_schedule(0.0, TEXT_RATE, steps // 20, steps, TEXT_RATE / 20)
        student = lepton.distill(
            teacher,
            model,
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.05)),
            _pieces(tokens[: int(cut * TEXT)], recipe.context + 1, seed),
            inputs=lambda batch: batch[:, :-1],
            labels=lambda batch: batch[:, 1:],
            terms=terms,
            steps=steps,
        )
        return score(model, student.params)

    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(each, nnx.Param)))
        for each in (nnx.eval_shape(lambda: untrained(smaller, vocabulary)), teacher)
    ]
    best = score(teacher, nnx.to_pure_dict(nnx.state(teacher, nnx.Param)))
    return _rows("Shakespeare, perplexity", run, TEXT_TERMS, best, sizes[0] / sizes[1], quick, higher=False)


def _pieces(text: Tokens, length: int, seed: int) -> Iterator[Tokens]:
    """Batches of pieces of the text from anywhere, without end."""
    rng = np.random.default_rng(seed)
    while True:
        places = rng.integers(0, len(text) - length, PIECES)
        yield np.stack([text[at : at + length] for at in places])


def _rows(
    name: str,
    run: Run,
    terms: dict[str, list[Term]],
    teacher: float,
    share: float,
    quick: bool,
    *,
    higher: bool,
) -> list[Row]:
    """Both arms with each seed: means, spread, and how much of the gap to the teacher teaching closes.

    Args:
        higher: whether higher scores are better.
    """
    scores: dict[str, list[float]] = {arm: [] for arm in terms}
    start = time.perf_counter()
    for seed in range(1 if quick else SEEDS):
        for arm, each in terms.items():
            scores[arm].append(run(each, seed))
            seconds = time.perf_counter() - start
            print(f"  {name}, seed {seed}, {arm}: {scores[arm][-1]:.2f}, {seconds:.0f} s", file=sys.stderr)
    rows: list[Row] = [_row(name, "teacher", [teacher], 1.0)]
    rows += [_row(name, f"student, {arm}", found, share) for arm, found in scores.items()]
    alone, taught = scores["alone"], scores["taught"]
    gaps = [(b - a) / (teacher - a) for a, b in zip(alone, taught, strict=True)]
    better = sum(b > a if higher else b < a for a, b in zip(alone, taught, strict=True))
    rows[-1] |= {
        "better in": f"{better} of {len(gaps)}",
        "gap closed": f"{100 * statistics.mean(gaps):.0f} %",
    }
    return rows


def _row(task: str, model: str, scores: list[float], size: float) -> Row:
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    row: Row = {"task": task, "model": model, "size": size, "mean": statistics.mean(scores)}
    return row | {"deviation": spread, "better in": "", "gap closed": ""}
