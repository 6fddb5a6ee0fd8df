"""What a term of a distillation's loss is, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from lepton_jax.distill._capture import Place
from lepton_jax.rewrite import UsageError

Weight = float | Callable[[Any], Any]
"""A number, or a function of the step, such as an optax schedule."""

Params = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """What the student or the teacher computes of a batch.

    Attributes:
        output: what it returns, or what `logits` picks of that.
        values: what it computes at the places that terms name.
    """

    output: Any
    values: Mapping[Place, Any]

    def at(self, place: Place | None) -> Any:
        """The value at a place, or the output."""
        if place is not None:
            return self.values[place]
        if not hasattr(self.output, "shape"):
            raise UsageError("the model returns several arrays: say which with logits=lambda result: ...")
        return self.output


@dataclass(frozen=True)
class Batch:
    """A batch.

    Attributes:
        data: as the user gave it.
        labels: of it; None where there are none.
        where: the weights of its examples, positions or tokens; None for all alike.
    """

    data: Any
    labels: Any = None
    where: Any = None

    def wanted_labels(self) -> Any:
        """The labels.

        Raises:
            UsageError: there are none.
        """
        if self.labels is None:
            raise UsageError("a term wants labels: give batches (x, labels), or labels=lambda batch: ...")
        return self.labels


@dataclass(frozen=True, kw_only=True)
class Term:
    """A part of the loss. Derive from it for your own; they are frozen dataclasses.

    Attributes:
        weight: what it is multiplied with: a number, or a function of the step.
        name: of it in the history; its class and place if empty.
    """

    weight: Weight = 1.0
    name: str = ""

    def places(self) -> tuple[Place | None, Place | None]:
        """What it looks at in the student and in the teacher; None for their outputs."""
        return None, None

    def init(self, key: jax.Array, student: Any, teacher: Any) -> Params:
        """What it learns, at the start; of the shapes that it looks at."""
        return {}

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss, a scalar; `params` is what it learns."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Its name in the history."""
        place = self.places()[0]
        scope = place if isinstance(place, str | None) else place.scope
        kind = type(self).__name__.lower()
        return self.name or (kind if scope is None else f"{kind} {scope}")
