"""The demo's compressed models: what they cost in quality, and give in bytes, in the file, and in time."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lepton_jax as lepton
from lepton_jax.demo.measure import Timing, measure
from lepton_jax.demo.programs import Baseline, Say
from lepton_jax.demo.train import PyTree, Task, score

PASSES = {
    "W8A8": "quantize{activations=static}",
    "W4": "quantize{weights=int4,search=mse}",
    "W2": "quantize{weights=int2,search=mse}",
    "half pruned": "prune{sparsity=0.5}",
    "palettes of 16": "palettize{bits=4}",
}
"""Weights of 8, 4 and 2 bits, with activations in 8 bits or in floats; half zeros; 16 values for each."""

TRAINED = "W2, trained"
"""The row of the model that is trained in 2 bits."""

HALVED = "half the channels, taught"
"""The row of the model without half of its channels, which the whole one teaches."""

KINDS = {
    "LeptonNet": (HALVED, "W8A8", "half pruned", "palettes of 16", "W4"),
    "Decoder": (TRAINED, "W2", "W4", "W8A8"),
}
"""The rows of each task. The network for digits is not trained in few bits: 4 bits cost it nothing."""

RATE = 1e-3
"""The learning rate at the start of such a training; it falls to 0 along a cosine."""


@dataclass(frozen=True)
class CompressedRow:
    """A trained model, compressed.

    Attributes:
        program: the model and what was done to it.
        metric: "accuracy" (percent) or "perplexity".
        value_before: the metric in float32.
        value_after: the metric of the compressed model.
        bytes_before: of the parameters and running statistics in float32.
        bytes_after: of what the compressed model keeps in memory.
        file_bytes: of its `.lepton` file, program and all.
        seconds: to compress and compile, and to train where it is trained.
        timing: run times of `jax.jit` in float32 and of the compressed model, in turn.
    """

    program: str
    metric: str
    value_before: float
    value_after: float
    bytes_before: int
    bytes_after: int
    file_bytes: int
    seconds: float
    timing: Timing


def compressed_rows(
    baseline: Baseline, kinds: Sequence[str], say: Say, *, seconds: float, pairs: int
) -> Iterator[CompressedRow]:
    """The rows of one trained task: some of `PASSES`, `TRAINED` and `HALVED`."""
    task, state = baseline.task, baseline.trained.state
    bound, inputs = (state.params, state.statistics), task.tests[0][0]
    calibration = [batch for batch, _ in islice(task.batches(), 4)]

    def predict(bound: PyTree, inputs: Any) -> jax.Array:
        return task.predict(bound[0], bound[1], inputs)

    def row(name: str, make: Callable[[], lepton.Model]) -> CompressedRow:
        say(f"{task.name}: compressing, {name}")
        start = time.perf_counter()
        model = make()
        jax.block_until_ready(model(inputs))
        took = time.perf_counter() - start
        plain = functools.partial(baseline.predict.jitted, *jax.device_put(bound))
        return CompressedRow(
            program=f"{task.name} {name}",
            metric=task.metric,
            value_before=baseline.value,
            value_after=score(task, lambda params, statistics, inputs: model(inputs), state),
            bytes_before=sum(leaf.nbytes for leaf in jax.tree.leaves(bound)),
            bytes_after=model.nbytes,
            file_bytes=file_size(model),
            seconds=took,
            timing=measure(plain, model, (jax.device_put(inputs),), seconds=seconds, pairs=pairs),
        )

    def rounded(passes: str) -> lepton.Model:
        batches = calibration if "static" in passes else None
        return lepton.compile(predict, bound, inputs, passes=f"deploy,{passes}", calibration=batches)

    for name in kinds:
        if name == TRAINED:
            yield row(name, functools.partial(fine_tuned, task, predict, bound, say))
        elif name == HALVED:
            yield row(name, functools.partial(halved, task, predict, bound, say))
        else:
            yield row(name, functools.partial(rounded, PASSES[name]))


def file_size(model: lepton.Model) -> int:
    """The bytes of the file that a model is saved in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.lepton"
        model.save(path)
        return path.stat().st_size


def halved(task: Task, predict: Callable[..., Any], bound: PyTree, say: Say) -> lepton.Model:
    """The model without half of its channels, taught by the whole one for a fifth of the task's steps.

    It is taught the whole model's answers to the training inputs; running statistics stay as they are.
    """
    inputs, _ = next(task.batches())
    small = lepton.structured_prune(predict, bound, inputs, ratio=0.5)
    steps = max(2, task.steps // 5)
    taught = lepton.distill(
        (predict, bound),
        small,
        optax.adam(optax.cosine_decay_schedule(RATE, steps)),
        lambda epoch: (x for x, _ in task.batches()),
        steps=steps,
        frozen="bound/1" if jax.tree.leaves(bound[1]) else None,
    )
    say(f"  {task.name}, distillation: {steps} steps, loss {taught.history[-1].loss:.3f}")
    return lepton.compile(small.fun, taught.params, task.tests[0][0])


def fine_tuned(task: Task, predict: Callable[..., Any], bound: PyTree, say: Say) -> lepton.Model:
    """The model in 2 bits after training for a fifth of the task's steps, with learned step sizes (LSQ).

    The loss is that of the task, on its training batches; running statistics stay as they are. `quantize`
    comes before `default` here, whose choice of forms goes by the batch: in use it is another one.
    """
    passes = f"cleanup,movement,{PASSES['W2'].removesuffix('}')},train=lsq}},default"
    inputs, _ = next(task.batches())
    frozen = "bound/1" if jax.tree.leaves(bound[1]) else None
    f = lepton.trainable(predict, bound, inputs, passes=passes, frozen=frozen)
    steps = max(2, task.steps // 5)
    transform = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss_of(params: PyTree, inputs: Any, targets: Any) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(f(params, inputs), targets)
        return jnp.mean(losses)

    @jax.jit
    def step(params: PyTree, moments: PyTree, inputs: Any, targets: Any) -> tuple[PyTree, PyTree, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, inputs, targets)
        updates, moments = transform.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    params, moments = f.params, transform.init(f.params)
    for inputs, targets in islice(task.batches(), steps):
        params, moments, loss = step(params, moments, inputs, targets)
    say(f"  {task.name}, quantisation-aware training: {steps} steps, loss {float(loss):.3f}")
    return f.compile(params)
