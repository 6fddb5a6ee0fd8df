"""What a distillation gives, and what it tells on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """Some steps of a distillation.

    Attributes:
        step: how many steps there were by then.
        epoch: the epoch that the last of them is in, from 0.
        loss: the mean of the weighted sum of terms, since the last record.
        terms: of each term the mean before it is weighted.
        validation: what the validation found, if there was one here.
        seconds: since the run began or was resumed.
    """

    step: int
    epoch: int
    loss: float
    terms: dict[str, float]
    validation: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"step {self.step}, epoch {self.epoch}: loss {self.loss:.4g}"]
        if len(self.terms) > 1:
            parts.append("(" + ", ".join(f"{name} {value:.4g}" for name, value in self.terms.items()) + ")")
        if self.validation is not None:
            parts.append(f"validation {self.validation:.6g}")
        return " ".join([*parts, f"{self.seconds:.0f} s"])


@dataclass(frozen=True)
class Best:
    """The student with the best validation.

    Attributes:
        value: what the validation found.
        step: after how many steps.
        params: its parameters.
        state: its state; None if it has none.
    """

    value: float
    step: int
    params: Any
    state: Any


@dataclass(frozen=True)
class Distilled:
    """A student that was taught. Print it for a summary.

    Attributes:
        params: its parameters after the last step, as the user gave them.
        state: its state; None if it has none.
        best: the student with the best validation; None without a validation.
        history: what happened, in order.
        steps: how many there were, those before a checkpoint among them.
        stopped: why it ended before its time; empty if it did not.
        projections: what the terms learned.
        opt_state: of the optimiser.
    """

    params: Any
    state: Any
    best: Best | None
    history: tuple[Record, ...]
    steps: int
    stopped: str
    projections: dict[str, Any]
    opt_state: Any

    def __repr__(self) -> str:
        return f"<Distilled after {self.steps} steps>"

    def __str__(self) -> str:
        lines = [f"distilled in {self.steps} steps" + (f": {self.stopped}" if self.stopped else "")]
        if self.history:
            first, last = self.history[0], self.history[-1]
            lines.append(f"  {'loss':<24} {first.loss:.4g} → {last.loss:.4g}")
            lines += [
                f"  {name:<24} {first.terms[name]:.4g} → {value:.4g}" for name, value in last.terms.items()
            ]
        if self.best is not None:
            lines.append(f"  {'best validation':<24} {self.best.value:.6g} after {self.best.step} steps")
        return "\n".join(lines)
