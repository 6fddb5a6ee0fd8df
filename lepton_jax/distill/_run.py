"""A run of a distillation: its step, and how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.distill._checkpoint import Checkpoints
from lepton_jax.distill._networks import Student
from lepton_jax.distill._objective import Loss
from lepton_jax.distill._result import Best, Distilled, Record


@dataclass
class Run:
    """A run, and how far it is.

    Attributes:
        carry: what a step takes and returns: a tree of arrays.
        best: such a tree: the best parameters and state.
        best_value: what the validation found of them; None before the first.
        best_step: after how many steps.
        worse: validations in a row since.
        position: the epoch and number in it of the next batch.
    """

    pupil: Student
    make_loss: Callable[[Any], Loss]
    tx: Any
    projection_tx: Any
    view: Callable[[Any, Any], Any] | None
    validate: Callable[..., Any] | None
    sign: int
    patience: int | None
    tell: Callable[[Record], None] | None
    checkpoints: Checkpoints | None
    carry: Any = None
    best: Any = None
    best_value: float | None = None
    best_step: int = 0
    worse: int = 0
    steps: int = 0
    told: int = 0
    position: tuple[int, int] = (0, 0)
    stopped: str = ""
    history: list[Record] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def start(self, batch: Any) -> tuple[Any, Any]:
        """The jitted step and the teacher's parameters; fills `carry`."""
        import optax

        tx = optax.with_extra_args_support(self.tx)
        within = optax.adam(1e-3) if self.projection_tx is None else self.projection_tx
        loss = self.make_loss(batch)

        def step(carry: Any, teacher: Any, batch: Any) -> Any:
            def value(trained: Any) -> Any:
                student = trained["student"]
                seen = student if self.view is None else self.view(student, carry["opt"])
                params = {**trained, "student": seen}
                return loss(params, batch, state=carry["state"], step=carry["step"], teacher=teacher)

            trained = carry["trained"]
            (total, aux), slopes = jax.value_and_grad(value, has_aux=True)(trained)
            found, opt = tx.update(slopes["student"], carry["opt"], trained["student"], value=total)
            inner, projection_opt = within.update(
                slopes["projections"], carry["projection_opt"], trained["projections"]
            )
            return {
                "trained": optax.apply_updates(trained, {"student": found, "projections": inner}),
                "opt": opt,
                "projection_opt": projection_opt,
                "state": aux.state,
                "step": carry["step"] + 1,
                "loss": carry["loss"] + total,
                "terms": jax.tree.map(jnp.add, carry["terms"], aux.terms),
            }

        sizes = jax.eval_shape(loss, loss.params, batch)
        carry = {
            "trained": loss.params,
            "opt": tx.init(loss.params["student"]),
            "projection_opt": within.init(loss.params["projections"]),
            "state": loss.state,
            "step": jnp.zeros((), jnp.int32),
            "loss": jnp.zeros((), sizes[0].dtype),
            "terms": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sizes[1].terms),
        }
        self.carry = jax.tree.map(jnp.copy, carry)  # what is donated is nobody else's
        if self.validate is not None:
            self.best = jax.tree.map(jnp.copy, self._student())
        return jax.jit(step, donate_argnums=0), loss.teacher

    def _student(self) -> tuple[Any, Any]:
        return self.carry["trained"]["student"], self.carry["state"]

    def parts(self, student: tuple[Any, Any]) -> tuple[Any, ...]:
        """The student's parameters, as the user gave them, and its state, if it has one."""
        trained, state = student
        whole = self.pupil.whole(trained)
        return (whole,) if self.pupil.state is None else (whole, state)

    def look(self) -> float:
        """Validate, and keep the student if it is the best."""
        assert self.validate is not None
        value = float(self.validate(*self.parts(self._student())))
        if math.isfinite(value) and (
            self.best_value is None or self.sign * value < self.sign * self.best_value
        ):
            self.best, self.best_value = jax.tree.map(jnp.copy, self._student()), value
            self.best_step, self.worse = self.steps, 0
            return value
        self.worse += 1
        if self.patience is not None and self.worse >= self.patience:
            self.stopped = f"no better in {self.worse} validations than after {self.best_step} steps"
        return value

    def record(self, epoch: int, validation: float | None) -> None:
        """Fetch what the losses were, and tell it.

        Raises:
            FloatingPointError: they are not finite.
        """
        count = max(self.steps - self.told, 1)
        sums = self.carry["loss"], self.carry["terms"]
        total, means = jax.tree.map(lambda value: float(value) / count, jax.device_get(sums))
        self.carry["loss"], self.carry["terms"] = jax.tree.map(jnp.zeros_like, sums)
        self.told = self.steps
        if not math.isfinite(total):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            raise FloatingPointError(f"the loss is {total} by step {self.steps}: {shown}")
        seconds = time.perf_counter() - self.began
        self.history.append(Record(self.steps, epoch, total, means, validation, seconds))
        if self.tell is not None:
            self.tell(self.history[-1])

    def save(self) -> None:
        """Write a checkpoint."""
        if self.checkpoints is None:
            return
        facts = {
            "history": [asdict(record) for record in self.history],
            "best_value": self.best_value,
            "best_step": self.best_step,
            "worse": self.worse,
            "told": self.told,
            "steps": self.steps,
            "position": list(self.position),
            "stopped": self.stopped,
        }
        self.checkpoints.save(self.steps, (self.carry, self.best), facts)

    def resume(self, facts: dict[str, Any]) -> None:
        """Go on from the latest checkpoint, of which `save` noted these facts."""
        assert self.checkpoints is not None
        self.carry, self.best = self.checkpoints.restore((self.carry, self.best))
        self.history = [Record(**record) for record in facts["history"]]
        self.best_value, self.best_step = facts["best_value"], facts["best_step"]
        self.worse, self.told, self.stopped = facts["worse"], facts["told"], facts["stopped"]
        self.steps, self.position = facts["steps"], (facts["position"][0], facts["position"][1])

    def result(self) -> Distilled:
        """What has come of it."""
        params, *state = self.parts(self._student())
        best = None
        if self.best_value is not None:
            kept, *kept_state = self.parts(self.best)
            best = Best(self.best_value, self.best_step, kept, kept_state[0] if kept_state else None)
        return Distilled(
            params=params,
            state=state[0] if state else None,
            best=best,
            history=tuple(self.history),
            steps=self.steps,
            stopped=self.stopped,
            projections=self.carry["trained"]["projections"],
            opt_state=self.carry["opt"],
        )
