"""`lepton.distill`: the loop."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lepton_jax.distill._checkpoint import Checkpoints
from lepton_jax.distill._data import Data, batches
from lepton_jax.distill._networks import as_student, as_teacher
from lepton_jax.distill._objective import Loss, Reading
from lepton_jax.distill._result import Distilled, Record
from lepton_jax.distill._run import Run
from lepton_jax.distill._term import Term
from lepton_jax.distill.terms import Logits
from lepton_jax.rewrite import UsageError

if TYPE_CHECKING:
    import optax


def distill(
    teacher: Any,
    student: Any,
    tx: optax.GradientTransformation,
    data: Data,
    *,
    terms: Sequence[Term] = (Logits(),),
    epochs: int | None = None,
    steps: int | None = None,
    inputs: Callable[[Any], Any] | None = None,
    teacher_inputs: Callable[[Any], Any] | None = None,
    labels: Callable[[Any], Any] | None = None,
    where: Callable[[Any], Any] | None = None,
    logits: Callable[[Any], Any] | None = None,
    frozen: str | Sequence[str] | None = None,
    projection_tx: optax.GradientTransformation | None = None,
    view: Callable[[Any, Any], Any] | None = None,
    validate: Callable[..., Any] | None = None,
    better: Literal["lower", "higher"] = "lower",
    validate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep: int = 1,
    progress: bool | Callable[[Record], None] = False,
    report_every: int = 50,
    seed: int = 0,
) -> Distilled:
    """Train a student to compute what a teacher computes.

    Each step runs the teacher once, without gradients, and the student, in one jitted program. What the
    student was given is not written to; results lie where it lies.

    Args:
        teacher: a function of inputs, `(fun, params)`, `(linen_module, variables)`, an NNX or Equinox module
            in its form for evaluation, a `lepton.Model`, or a `Trainable`. Functions that close over large
            parameters are slow to compile: give `(fun, params)`.
        student: `(fun, params)`; `(fun, params, state)` with `fun(params, state, *inputs)` that returns
            `(output, new state)`; `(linen_module, variables)`; an NNX module, whose running means and keys of
            dropout are its state; an Equinox module; a `lepton.Trainable`, which is quantised; or what has a
            `fun` and `params`, as pruned programs do.
        tx: the optimiser of the student's parameters, from optax or `lepton.sparsify`.
        data: batches: any iterable that can be read once for each epoch, or a function from the number of the
            epoch to one. A batch is `(x, labels)` or `x`, or what `inputs` and `labels` can read.
        terms: of the loss, see `lepton_jax.distill`: their weighted sum is trained.
        epochs: how often the data is read. Give it or `steps`.
        steps: how many batches are trained on.
        inputs: from a batch to the inputs of both models, a tuple or one.
        teacher_inputs: from a batch to the teacher's inputs, where they are others: another resolution, or
            what the teacher computed before (then the teacher is `lambda taught: taught`).
        labels: from a batch to its labels.
        where: from a batch to weights of its examples, [batch], or tokens, [batch, length]: 0 for padding.
        logits: from what the models return to the array that terms compare.
        frozen: patterns of paths of the student's parameters that are not trained, as in
            `lepton.trainable`.
        projection_tx: the optimiser of what terms learn; Adam at 1e-3 if None.
        view: from the parameters and the optimiser's state to the parameters that the student computes with,
            such as `lepton.masked`.
        validate: a function of the student's parameters (and its state, if it has one) that returns a number.
            It does not keep them: they are overwritten.
        better: whether lower or higher numbers are better.
        validate_every: steps; at the end of each epoch if None.
        patience: stop after so many validations in a row that were not better than the best one.
        checkpoint: a folder; a run that finds a checkpoint there goes on from it as if it had not been
            interrupted, provided that the data comes in the same order again.
        checkpoint_every: steps; at the end of each epoch if None. One is written at the end in any case.
        keep: how many of the latest checkpoints stay.
        progress: True for lines on stderr, or a function that is told each record.
        report_every: steps between records of the history. Numbers come from the device only then.
        seed: of projections.

    Returns:
        The student's parameters, the best ones, and the history.

    Raises:
        UsageError: neither or both of `epochs` and `steps`; data that is empty, or an iterator that would be
            read twice; a scope that is not there; shapes that do not fit; a checkpoint of another run.
        FloatingPointError: the loss is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> network, tx = lambda w, x: x @ w, optax.adam(0.1)
        >>> x = jax.random.normal(jax.random.key(0), (8, 3))
        >>> found = distill((network, jnp.eye(3)), (network, jnp.zeros((3, 3))), tx, [x], steps=100)
        >>> bool(found.history[-1].loss < 0.01 * found.history[0].loss)
        True
    """
    if (epochs is None) == (steps is None):
        raise UsageError("say how long: epochs=... or steps=...")
    if patience is not None and validate is None:
        raise UsageError("patience wants a validation: validate=function of the parameters")
    if better not in ("lower", "higher"):
        raise UsageError(f"better is lower or higher, not {better!r}")
    for name, value in {
        "epochs": epochs,
        "steps": steps,
        "validate_every": validate_every,
        "patience": patience,
        "checkpoint_every": checkpoint_every,
        "keep": keep,
        "report_every": report_every,
    }.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is 1 or more, not {value}")
    pupil = as_student(student, frozen)
    run = Run(
        pupil=pupil,
        make_loss=lambda batch: Loss(
            as_teacher(teacher),
            pupil,
            terms,
            Reading(inputs, teacher_inputs, labels, where, logits),
            batch,
            seed,
        ),
        tx=tx,
        projection_tx=projection_tx,
        view=view,
        validate=validate,
        sign=1 if better == "lower" else -1,
        patience=patience,
        tell=_print if progress is True else progress or None,
        checkpoints=None if checkpoint is None else Checkpoints(checkpoint, keep),
    )
    try:
        return _train(run, data, epochs, steps, validate_every, checkpoint_every, report_every)
    finally:
        if run.checkpoints is not None:
            run.checkpoints.close()


def _train(
    run: Run,
    data: Data,
    epochs: int | None,
    steps: int | None,
    validate_every: int | None,
    checkpoint_every: int | None,
    report_every: int,
) -> Distilled:
    """All steps, those before the latest checkpoint left out."""
    facts = None if run.checkpoints is None else run.checkpoints.facts()
    if facts is not None:
        run.position = (facts["position"][0], facts["position"][1])
    is_over = facts is not None and (
        bool(facts["stopped"])
        or (steps is not None and facts["steps"] >= steps)
        or (epochs is not None and run.position[0] >= epochs)
    )
    stream = batches(data, epochs, steps, (0, 0) if is_over else run.position)
    first = next(stream)
    step, teacher = run.start(first[-1])
    if facts is not None:
        run.resume(facts)
    for epoch, number, last, batch in () if is_over else itertools.chain([first], stream):
        run.carry = step(run.carry, teacher, batch)
        run.steps += 1
        run.position = (epoch + 1, 0) if last else (epoch, number + 1)
        ends = run.steps == steps or (last and epoch + 1 == epochs)
        looks = run.validate is not None and (ends or _due(run.steps, validate_every, last))
        found = run.look() if looks else None
        ends = ends or bool(run.stopped)
        if ends or looks or run.steps - run.told >= report_every:
            run.record(epoch, found)
        if ends or _due(run.steps, checkpoint_every, last):
            run.save()
        if ends:
            break
    return run.result()


def _due(step: int, every: int | None, last: bool) -> bool:
    return last if every is None else step % every == 0


def _print(record: Record) -> None:
    print(f"  distill: {record}", file=sys.stderr, flush=True)
