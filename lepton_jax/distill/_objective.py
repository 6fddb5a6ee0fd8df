"""The loss of a distillation, as a function of what is trained and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.distill._capture import Place, capture
from lepton_jax.distill._networks import Student, Teacher, as_student, as_teacher
from lepton_jax.distill._term import Batch, Side, Term
from lepton_jax.rewrite import UsageError

Trained = dict[str, Any]
"""What is trained: `{"student": its parameters, "projections": {term: {name: array}}}`."""


class Aux(NamedTuple):
    """What comes with the loss.

    Attributes:
        terms: of each term its value before it is weighted.
        state: the student's new state; None if it has none.
    """

    terms: dict[str, jax.Array]
    state: Any


@dataclass(frozen=True)
class Reading:
    """How batches and outputs are read.

    Attributes:
        inputs: from a batch to the inputs of the student, a tuple or one; without, the first of a batch that
            is a tuple or list, or the batch.
        teacher_inputs: from a batch to those of the teacher; the same, without.
        labels: from a batch to its labels; without, the second of a batch that is a tuple or list.
        where: from a batch to the weights of its examples or tokens; without, all count alike.
        logits: from what a model returns to the output that terms compare; without, that itself.
    """

    inputs: Callable[[Any], Any] | None = None
    teacher_inputs: Callable[[Any], Any] | None = None
    labels: Callable[[Any], Any] | None = None
    where: Callable[[Any], Any] | None = None
    logits: Callable[[Any], Any] | None = None

    def of_student(self, data: Any) -> tuple[Any, ...]:
        """The inputs of the student."""
        if self.inputs is None:
            return (data[0] if isinstance(data, tuple | list) else data,)
        return _as_tuple(self.inputs(data))

    def of_teacher(self, data: Any) -> tuple[Any, ...]:
        """The inputs of the teacher."""
        if self.teacher_inputs is None:
            return self.of_student(data)
        return _as_tuple(self.teacher_inputs(data))

    def batch(self, data: Any) -> Batch:
        """What terms look at of a batch."""
        if self.labels is not None:
            labels = self.labels(data)
        else:
            labels = data[1] if isinstance(data, tuple | list) and len(data) > 1 else None
        return Batch(data, labels, None if self.where is None else self.where(data))

    def output(self, result: Any) -> Any:
        """The output that terms compare."""
        return result if self.logits is None else self.logits(result)


class Loss:
    """A loss of what is trained and a batch; made by `loss`.

    Attributes:
        params: what to train, as it is at the start: `{"student": ..., "projections": ...}`.
        state: the student's state at the start; None if it has none.
        teacher: the parameters of the teacher; None if they are in its function.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        terms: Sequence[Term],
        reading: Reading,
        data: Any,
        seed: int,
    ) -> None:
        if not terms:
            raise UsageError("there are no terms: give terms=[Logits()], say")
        self._teacher, self._student, self._reading = teacher, student, reading
        self._terms = dict(zip(_labels(terms), terms, strict=True))
        mine, its = zip(*(term.places() for term in terms), strict=True)
        self._mine: list[Place] = list(dict.fromkeys(p for p in mine if p is not None))
        self._its: list[Place] = list(dict.fromkeys(p for p in its if p is not None))
        self.state = student.state
        self.teacher = teacher.params
        self.params: Trained = {"student": student.trained, "projections": self._projections(data, seed)}

    def __call__(
        self, params: Trained, data: Any, *, state: Any = None, step: Any = 0, teacher: Any = None
    ) -> tuple[jax.Array, Aux]:
        """The loss of a batch; the teacher runs once, and has no gradient.

        Args:
            params: as `self.params`.
            data: the batch.
            state: the student's, if it has one; that of the start if None.
            step: of weights that depend on it.
            teacher: the teacher's parameters. Large ones are better given than closed over, under `jax.jit`.

        Returns:
            The loss, a scalar, and what comes with it.
        """
        state = self.state if state is None else state
        side, taught = self._student_side(params["student"], state, data)
        model = self._teacher_side(self.teacher if teacher is None else teacher, data)
        batch = self._reading.batch(data)
        found: dict[str, jax.Array] = {}
        total = jnp.zeros((), jnp.float32)
        for name, term in self._terms.items():
            found[name] = term.loss(params["projections"].get(name, {}), side, model, batch)
            weight = term.weight(step) if callable(term.weight) else term.weight
            total += weight * found[name]
        return total, Aux(found, taught)

    def _student_side(self, trained: Any, state: Any, data: Any) -> tuple[Side, Any]:
        inputs = self._reading.of_student(data)
        if not self._mine:
            result, state = self._student.call(trained, state, *inputs)
            return Side(self._reading.output(result), {}), state
        run = capture(self._student.call, self._mine)
        (result, state), values = _of("the student", run, trained, state, *inputs)
        return Side(self._reading.output(result), dict(zip(self._mine, values, strict=True))), state

    def _teacher_side(self, params: Any, data: Any) -> Side:
        inputs = self._reading.of_teacher(data)
        if not self._its:
            result, values = self._teacher.call(params, *inputs), ()
        else:
            result, values = _of("the teacher", capture(self._teacher.call, self._its), params, *inputs)
        result, values = jax.lax.stop_gradient((self._reading.output(result), values))
        return Side(result, dict(zip(self._its, values, strict=True)))

    def _projections(self, data: Any, seed: int) -> dict[str, Any]:
        """What terms learn, at the start."""

        def student_shapes(data: Any) -> Any:
            side, _ = self._student_side(self._student.trained, self.state, data)
            return side.output, [side.values[place] for place in self._mine]

        def teacher_shapes(data: Any) -> Any:
            side = self._teacher_side(self.teacher, data)
            return side.output, [side.values[place] for place in self._its]

        output, values = jax.eval_shape(student_shapes, data)
        student = Side(output, dict(zip(self._mine, values, strict=True)))
        output, values = jax.eval_shape(teacher_shapes, data)
        teacher = Side(output, dict(zip(self._its, values, strict=True)))
        found = {}
        for number, (name, term) in enumerate(self._terms.items()):
            places = term.places()
            key = jax.random.fold_in(jax.random.key(seed), number)
            needs = type(term).init is not Term.init
            params = term.init(key, student.at(places[0]), teacher.at(places[1])) if needs else {}
            if params:
                found[name] = params
        return found


def loss(
    teacher: Any,
    student: Any,
    terms: Sequence[Term],
    sample: Any,
    *,
    inputs: Callable[[Any], Any] | None = None,
    teacher_inputs: Callable[[Any], Any] | None = None,
    labels: Callable[[Any], Any] | None = None,
    where: Callable[[Any], Any] | None = None,
    logits: Callable[[Any], Any] | None = None,
    frozen: Any = None,
    seed: int = 0,
) -> Loss:
    """The loss of a distillation, for a training loop of your own; arguments are those of `distill`.

    Args:
        teacher: see `distill`.
        student: see `distill`.
        terms: see `distill`.
        sample: a batch, or its shapes, from which the sizes of projections come.
        inputs: see `distill`.
        teacher_inputs: see `distill`.
        labels: see `distill`.
        where: see `distill`.
        logits: see `distill`.
        frozen: see `distill`.
        seed: of the projections.

    Returns:
        A function of `(params, batch)` that returns `(loss, aux)`, and what to train in its `params`.

    Raises:
        UsageError: see `distill`.

    Example:
        >>> from lepton_jax.distill.terms import Logits
        >>> network = lambda w, x: x @ w
        >>> f = loss((network, jnp.eye(3)), (network, jnp.zeros((3, 3))), [Logits()], jnp.ones((2, 3)))
        >>> (value, aux), slopes = jax.value_and_grad(f, has_aux=True)(f.params, jnp.ones((2, 3)))
        >>> slopes["student"].shape, list(aux.terms)
        ((3, 3), ['logits'])
    """
    reading = Reading(inputs, teacher_inputs, labels, where, logits)
    return Loss(as_teacher(teacher), as_student(student, frozen), terms, reading, sample, seed)


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _labels(terms: Sequence[Term]) -> list[str]:
    """A name for each term; the second of one name gets a number."""
    found: list[str] = []
    for term in terms:
        name, number = term.label, 2
        while name in found:
            name, number = f"{term.label} #{number}", number + 1
        found.append(name)
    return found


def _of(who: str, run: Callable[..., Any], *args: Any) -> Any:
    try:
        return run(*args)
    except UsageError as error:
        raise UsageError(f"{who}: {error}") from error
