"""The demo's two learning tasks, as plain functions over pytrees: a start, a train step, a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lepton_jax.demo.data import Digits, Text, digit_batches, text_batches
from lepton_jax.models import Decoder, DecoderConfig, LeptonNet, LeptonNetConfig, create

PyTree = Any
Batch = tuple[Any, Any]
Predict = Callable[[PyTree, PyTree, Any], jax.Array]


class TrainState(NamedTuple):
    """All that a train step changes: parameters, running statistics, optimizer state."""

    params: PyTree
    statistics: PyTree
    optimizer: PyTree


Step = Callable[[TrainState, Any, Any], tuple[TrainState, jax.Array]]


@dataclass(frozen=True)
class Task:
    """One model on one data set.

    Attributes:
        name: name of the model.
        start: state at the first step.
        step: (state, inputs, targets) to (new state, loss); a plain function, not jitted.
        predict: (params, statistics, inputs) to float32 logits [..., classes]; plain as well.
        batches: makes the endless training batches, the same ones at each call.
        tests: test batches of one shape.
        metric: "accuracy" (percent) or "perplexity", what `score` returns.
        steps: length of the training.
    """

    name: str
    start: TrainState
    step: Step
    predict: Predict
    batches: Callable[[], Iterator[Batch]]
    tests: tuple[Batch, ...]
    metric: str
    steps: int


@dataclass(frozen=True)
class Trained:
    """The state after training and the loss of each step."""

    state: TrainState
    losses: tuple[float, ...]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of `targets` (integers, the shape of `logits` less its last axis)."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def digits_task(digits: Digits, *, fast: bool = False) -> Task:
    """LeptonNet on handwritten digits; `fast` makes it small and its training a handful of steps."""
    config = LeptonNetConfig(widths=(8, 16)) if fast else LeptonNetConfig(widths=(16, 32, 64))
    steps = 12 if fast else 250

    def train_logits(model: LeptonNet, images: jax.Array) -> jax.Array:
        return model(images, train=True)

    start, step, predict = functional(
        lambda: LeptonNet(config, rngs=nnx.Rngs(0)), train_logits, optimizer(3e-3, steps)
    )
    return Task(
        name="LeptonNet",
        start=start,
        step=step,
        predict=predict,
        batches=lambda: digit_batches(digits, size=16 if fast else 64),
        tests=((digits.test_images, digits.test_labels),),
        metric="accuracy",
        steps=steps,
    )


def text_task(text: Text, *, fast: bool = False) -> Task:
    """The decoder on characters; `fast` makes it small and its training a handful of steps."""
    width, layers, batch = (32, 1, 8) if fast else (96, 2, 32)
    config = DecoderConfig(vocabulary=len(text.alphabet), width=width, layers=layers)
    steps = 12 if fast else 300
    windows = text_windows(text, config.context, batch=64, most=2 if fast else 14)
    start, step, predict = functional(lambda: Decoder(config, rngs=nnx.Rngs(0)), call, optimizer(5e-3, steps))
    return Task(
        name="Decoder",
        start=start,
        step=step,
        predict=predict,
        batches=lambda: text_batches(text.train, batch, config.context),
        tests=windows,
        metric="perplexity",
        steps=steps,
    )


def text_windows(text: Text, context: int, batch: int, most: int) -> tuple[Batch, ...]:
    """At most `most` test batches of disjoint windows: tokens and next tokens, int32 [batch, context]."""
    rows = min(most, (len(text.test) - 1) // (context * batch)) * batch
    inputs = text.test[: rows * context].reshape(-1, batch, context)
    targets = text.test[1 : rows * context + 1].reshape(-1, batch, context)
    return tuple(zip(inputs, targets, strict=True))


def optimizer(peak: float, steps: int) -> optax.GradientTransformation:
    """AdamW under a short warm-up and a cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 12), steps)
    return optax.adamw(schedule, b2=0.98)


def call(model: Any, inputs: jax.Array) -> jax.Array:
    """The logits of a model that is the same in training and in use."""
    logits: jax.Array = model(inputs)
    return logits


def other_state(model: nnx.Module) -> PyTree:
    """All state of `model` but its parameters."""
    return nnx.state(model, nnx.Not(nnx.Param))


def functional(
    build: Callable[[], nnx.Module],
    train_logits: Callable[[Any, jax.Array], jax.Array],
    transform: optax.GradientTransformation,
) -> tuple[TrainState, Step, Predict]:
    """Splits the NNX model that `build` makes into its state at the first step and plain functions.

    Returns:
        The state at the first step; the train step; the prediction.
    """
    model = create(build)
    graphdef, params, statistics = nnx.graphdef(model), nnx.state(model, nnx.Param), other_state(model)

    def step(state: TrainState, inputs: Any, targets: Any) -> tuple[TrainState, jax.Array]:
        def loss_of(params: PyTree) -> tuple[jax.Array, PyTree]:
            merged = nnx.merge(graphdef, params, state.statistics, copy=True)
            loss = cross_entropy(train_logits(merged, inputs), targets)
            return loss, other_state(merged)

        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, moments = transform.update(gradients, state.optimizer, state.params)
        return TrainState(optax.apply_updates(state.params, updates), statistics, moments), loss

    def predict(params: PyTree, statistics: PyTree, inputs: Any) -> jax.Array:
        return call(nnx.merge(graphdef, params, statistics), inputs)

    return TrainState(params, statistics, jax.jit(transform.init)(params)), step, predict


def train(task: Task, step: Step, say: Callable[[str], None], label: str) -> Trained:
    """Runs the whole training of `task` with `step`, which is `task.step` or a compiled form of it."""
    state = task.start
    losses: list[jax.Array] = []
    every = max(1, task.steps // 4)
    for number, (inputs, targets) in zip(range(1, task.steps + 1), task.batches(), strict=False):
        state, loss = step(state, inputs, targets)
        losses.append(loss)
        if number % every == 0:
            say(f"  {task.name}, {label}: step {number} of {task.steps}, loss {float(loss):.3f}")
    return Trained(state, tuple(float(loss) for loss in losses))


def score(task: Task, predict: Predict, state: TrainState) -> float:
    """Accuracy in percent or perplexity of `state` over the test batches, predicted with `predict`."""
    logits = [np.asarray(predict(state.params, state.statistics, inputs)) for inputs, _ in task.tests]
    targets = [np.asarray(targets) for _, targets in task.tests]
    if task.metric == "accuracy":
        return 100.0 * float(np.mean(np.argmax(np.concatenate(logits), -1) == np.concatenate(targets)))
    return float(np.exp(jax.jit(cross_entropy)(np.concatenate(logits), np.concatenate(targets))))
