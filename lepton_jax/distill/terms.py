"""The terms of a distillation's loss: what of the student is to be like what of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.distill import losses, relations
from lepton_jax.distill._arrays import clean
from lepton_jax.distill._capture import Place
from lepton_jax.distill._shapes import example_vectors, fitted, of_examples, token_weights
from lepton_jax.distill._term import Batch, Params, Side, Term
from lepton_jax.rewrite import UsageError


@dataclass(frozen=True)
class Labels(Term):
    """The loss of the labels: cross-entropy of integers, or your own.

    Attributes:
        fun: a function of the output and the labels that returns a scalar.
    """

    fun: Callable[[Any, Any], Any] | None = None

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of the student alone."""
        labels = batch.wanted_labels()
        if self.fun is not None:
            return jnp.asarray(self.fun(student.output, labels))
        return losses.cross_entropy(student.at(None), labels, where=batch.where)


@dataclass(frozen=True)
class Logits(Term):
    """Outputs, [..., classes]: see `losses.kl`, `losses.cosine` and `losses.mse`.

    Attributes:
        kind: `kl`, `reverse` and `jensen` are divergences at a temperature.
        temperature: of these.
    """

    kind: Literal["kl", "reverse", "jensen", "cosine", "mse"] = "kl"
    temperature: float = 4.0

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of both outputs."""
        pair = student.at(None), teacher.at(None)
        match self.kind:
            case "cosine":
                return losses.cosine(*pair, where=batch.where)
            case "mse":
                return losses.mse(*pair, where=batch.where)
            case "kl":
                return losses.kl(*pair, temperature=self.temperature, where=batch.where)
            case "reverse" | "jensen":
                direction = self.kind
                return losses.kl(*pair, temperature=self.temperature, direction=direction, where=batch.where)
        raise UsageError(f"Logits: kind is kl, reverse, jensen, cosine or mse, not {self.kind!r}")


@dataclass(frozen=True)
class Decoupled(Term):
    """Outputs, with the label apart from the other classes; see `losses.decoupled`.

    Attributes:
        temperature: logits are divided by it.
        alpha: the weight of the label against all others.
        beta: the weight of the others among themselves.
    """

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of both outputs and the labels."""
        return losses.decoupled(
            student.at(None),
            teacher.at(None),
            batch.wanted_labels(),
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
            where=batch.where,
        )


@dataclass(frozen=True)
class _Pair(Term):
    """Something of the student's and something of the teacher's insides.

    Attributes:
        student: a scope of the student, or `At(...)`; None for its output.
        teacher: of the teacher; the same as the student's if left out.
    """

    student: Place | None = field(default=None, kw_only=False)
    teacher: Place | None = field(default=None, kw_only=False)

    def places(self) -> tuple[Place | None, Place | None]:
        """What it looks at."""
        return self.student, self.student if self.teacher is None else self.teacher

    def both(self, student: Side, teacher: Side) -> tuple[Any, Any]:
        """What it compares."""
        mine, its = self.places()
        return student.at(mine), teacher.at(its)


@dataclass(frozen=True)
class Features(_Pair):
    """Hidden values, with a learned projection where widths differ (FitNets, Romero et al., arXiv:1412.6550).

    The projection is a matrix from the student's channels to the teacher's: of images a 1×1 convolution.
    Images, [batch, *positions, channels], are averaged down to the smaller one's positions.

    Attributes:
        kind: `mse` or `cosine`.
        project: whether to project; where the widths differ if None.
        axis: of the channels; -1, or 1 for images with channels first.
    """

    kind: Literal["mse", "cosine"] = "mse"
    project: bool | None = None
    axis: int = -1

    def init(self, key: jax.Array, student: Any, teacher: Any) -> Params:
        """The projection."""
        mine, its = student.shape[self.axis], teacher.shape[self.axis]
        if self.project is False and mine != its:
            raise UsageError(f"{self.label}: widths {mine} and {its} differ, so project cannot be False")
        if not (mine != its if self.project is None else self.project):
            return {}
        return {"kernel": jax.nn.initializers.lecun_normal()(key, (mine, its), jnp.float32)}

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of the projected values."""
        mine, its = (jnp.moveaxis(x, self.axis, -1) for x in self.both(student, teacher))
        mine, its = fitted(mine, its, self.label)
        where = token_weights(batch.where, mine)
        if params:
            (mine,), _ = clean((mine,), where, mine.ndim - 1)
            mine = mine @ params["kernel"]
        return (losses.cosine if self.kind == "cosine" else losses.mse)(mine, its, where=where)


@dataclass(frozen=True)
class Contrastive(_Pair):
    """Each example's vectors are to be told from those of the batch's others; see `relations.contrastive`.

    What has more dimensions than [batch, channels] is averaged over those in between.

    Attributes:
        width: of the space that both are projected to.
        temperature: cosines are divided by it.
    """

    width: int = 128
    temperature: float = 0.1

    def init(self, key: jax.Array, student: Any, teacher: Any) -> Params:
        """Both projections."""
        make = jax.nn.initializers.lecun_normal()
        keys = jax.random.split(key)
        return {
            name: make(each, (x.shape[-1], self.width), jnp.float32)
            for name, each, x in zip(("student", "teacher"), keys, (student, teacher), strict=True)
        }

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of the projected vectors."""
        mine, its = (example_vectors(x, batch.where) for x in self.both(student, teacher))
        pair = mine @ params["student"], its @ params["teacher"]
        return relations.contrastive(*pair, temperature=self.temperature, where=of_examples(batch.where))


@dataclass(frozen=True)
class AttentionMaps(_Pair):
    """Where images are active; see `losses.attention_maps`. Widths may differ, positions are averaged down.

    Attributes:
        power: larger ones look at the strongest channels.
    """

    power: float = 2.0

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of both maps."""
        mine, its = fitted(*self.both(student, teacher), self.label)
        return losses.attention_maps(mine, its, power=self.power, where=of_examples(batch.where))


@dataclass(frozen=True)
class Attention(_Pair):
    """Attention weights of transformers; see `losses.attention_probabilities`."""

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of both."""
        return losses.attention_probabilities(*self.both(student, teacher), where=batch.where)


@dataclass(frozen=True)
class Relations(_Pair):
    """How examples stand to each other; see `relations.distances` and `relations.angles`.

    What has more dimensions than [batch, channels] is averaged over those in between.

    Attributes:
        distance: the weight of the distances.
        angle: the weight of the angles.
    """

    distance: float = 1.0
    angle: float = 2.0

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of both."""
        pair = [example_vectors(x, batch.where) for x in self.both(student, teacher)]
        where = of_examples(batch.where)
        found = jnp.zeros((), pair[0].dtype)
        if self.distance:
            found += self.distance * relations.distances(*pair, where=where)
        return found + self.angle * relations.angles(*pair, where=where) if self.angle else found


@dataclass(frozen=True)
class TokenRelations(_Pair):
    """How the tokens of a sequence stand to each other; see `relations.token_relations`.

    Attributes:
        heads: in how many parts the widths are cut.
    """

    heads: int = 1

    def loss(self, params: Params, student: Side, teacher: Side, batch: Batch) -> jax.Array:
        """The loss of both."""
        pair = self.both(student, teacher)
        return relations.token_relations(*pair, heads=self.heads, where=batch.where)
