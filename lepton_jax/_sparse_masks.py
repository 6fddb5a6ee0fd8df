"""Which weights `lepton.sparsify` lets go: the arrays that are pruned, how weights are ranked, the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import jax
import jax.numpy as jnp

from lepton_jax.ir.paths import choose, leaf_paths
from lepton_jax.numerics.masks import Pattern, Unstructured, erdos_renyi_at, global_masks, ranks

Method = Literal["prune", "straight_through", "rigl", "set", "static"]
Importance = Literal["magnitude", "saliency", "movement", "fisher"]
Scope = Literal["layer", "global"]
Distribution = Literal["uniform", "erk"]

ROOT: Final = "params"
"""What the tree of parameters is called in paths."""

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "method": get_args(Method),
    "importance": get_args(Importance),
    "scope": get_args(Scope),
    "distribution": get_args(Distribution),
}

_KEPT: Final = 0.99
"""Of the mean of squared gradients, what stays at each step."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `sparsify` under their names; see there."""

    method: Method
    importance: Importance
    scope: Scope
    distribution: Distribution
    pattern: Pattern
    every: int
    until: int | None
    drop: float
    only: tuple[str, ...]
    skip: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """Which leaves of the parameters are pruned.

    Attributes:
        structure: of the parameters.
        places: of the leaves.
    """

    structure: Any
    places: tuple[int, ...]

    @classmethod
    def of(cls, params: Any, settings: Settings) -> Chosen:
        """Those with two dimensions or more, of floats, that patterns do not leave out."""
        leaves, structure = jax.tree.flatten(params)
        paths = leaf_paths(ROOT, params)
        chosen = choose(settings.only, paths, "sparsify") if settings.only else set(range(len(paths)))
        chosen -= choose(settings.skip, paths, "sparsify") if settings.skip else set()
        places = [i for i in sorted(chosen) if _is_weight(leaves[i])]
        if not places:
            raise ValueError(
                "sparsify: nothing is left to prune; weights are floats of two dimensions or more"
            )
        return cls(structure, tuple(places))

    def leaves(self, tree: Any) -> list[jax.Array]:
        """The chosen leaves of a tree as that of the parameters."""
        found = self.structure.flatten_up_to(tree)
        return [found[i] for i in self.places]

    def put(self, tree: Any, leaves: Sequence[jax.Array]) -> Any:
        """The tree with other leaves at the chosen places."""
        found = self.structure.flatten_up_to(tree)
        for i, leaf in zip(self.places, leaves, strict=True):
            found[i] = leaf
        return jax.tree.unflatten(self.structure, found)

    def tree(self, leaves: Sequence[jax.Array]) -> Any:
        """A tree with leaves at the chosen places alone."""
        import optax

        found: list[Any] = [optax.MaskedNode()] * self.structure.num_leaves
        for i, leaf in zip(self.places, leaves, strict=True):
            found[i] = leaf
        return jax.tree.unflatten(self.structure, found)


@dataclass(frozen=True)
class Moment:
    """What masks are chosen by at one step, of each pruned leaf.

    Attributes:
        masks: which weights stay so far: bool.
        weights: the weights.
        gradients: theirs.
        memory: what importance remembers of gradients: float32; empty where it remembers nothing.
        step: how many updates there were: int32, shape ().
        key: of random choices.
    """

    masks: Sequence[jax.Array]
    weights: Sequence[jax.Array]
    gradients: Sequence[jax.Array]
    memory: Sequence[jax.Array]
    step: jax.Array
    key: jax.Array


def _is_weight(leaf: Any) -> bool:
    return jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def masks_at(scores: Sequence[jax.Array], sparsity: jax.Array, settings: Settings) -> list[jax.Array]:
    """Which weights stay at a sparsity of all together."""
    if settings.scope == "global":
        return global_masks(scores, sparsity, settings.pattern)
    if settings.distribution == "uniform":
        return [settings.pattern.mask(score, sparsity) for score in scores]
    shares = erdos_renyi_at([score.shape for score in scores], sparsity)
    return [settings.pattern.mask(score, share) for score, share in zip(scores, shares, strict=True)]


def scores_of(now: Moment, settings: Settings) -> list[jax.Array]:
    """How important each weight is: the least go."""
    match settings.importance:
        case "magnitude":
            return [jnp.abs(weight) for weight in now.weights]
        case "saliency":
            return [jnp.abs(weight * grad) for weight, grad in zip(now.weights, now.gradients, strict=True)]
        case "movement":
            return list(now.memory)
        case "fisher":
            return [weight**2 * mean for weight, mean in zip(now.weights, now.memory, strict=True)]


def remembered(now: Moment, settings: Settings) -> list[jax.Array]:
    """What importance remembers after one more step; nothing, where it remembers nothing."""
    if not now.memory:
        return []
    if settings.importance == "movement":
        each = zip(now.memory, now.weights, now.gradients, strict=True)
        return [m - (w * g).astype(m.dtype) for m, w, g in each]
    return [
        _KEPT * m + (1 - _KEPT) * jnp.square(g.astype(m.dtype))
        for m, g in zip(now.memory, now.gradients, strict=True)
    ]


def regrown(now: Moment, settings: Settings) -> list[jax.Array]:
    """Masks with as many weights as before: the smallest have gone, and others come in their place."""
    assert settings.until is not None
    share = settings.drop / 2 * (1 + jnp.cos(jnp.pi * now.step / settings.until))
    if settings.method == "rigl":
        grown = [jnp.abs(gradient) for gradient in now.gradients]
    else:
        grown = random_scores(now.key, now.weights)
    found = []
    for mask, weight, gradient in zip(now.masks, now.weights, grown, strict=True):
        there = jnp.sum(mask)
        leaving = jnp.round(share * there).astype(jnp.int32)
        by_size = ranks(jnp.where(mask, jnp.abs(weight).astype(jnp.float32), -1.0))
        stays = mask & (by_size >= mask.size - there + leaving)
        by_gradient = ranks(jnp.where(mask, -1.0, gradient.astype(jnp.float32)))
        comes = ~mask & (by_gradient >= mask.size - leaving)
        missing = leaving - jnp.sum(comes)  # fewer are gone than are to come
        back = mask & ~stays & (by_size >= mask.size - there + leaving - missing)
        found.append(stays | comes | back)
    return found


def random_scores(key: jax.Array, weights: Sequence[jax.Array]) -> list[jax.Array]:
    """Scores that choose at random: uniform, 0 to 1."""
    keys = jax.random.split(key, len(weights))
    return [jax.random.uniform(each, weight.shape) for each, weight in zip(keys, weights, strict=True)]


def check(settings: Settings) -> None:
    """Refuse arguments out of range.

    Raises:
        ValueError: the first of them, with what it may be.
    """
    for name, known in _CHOICES.items():
        if getattr(settings, name) not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(settings, name)!r}")
    if settings.every < 1 or not 0 < settings.drop <= 1:
        raise ValueError(f"every is 1 or more and drop 0 to 1, not {settings.every} and {settings.drop}")
    moving = settings.method in ("rigl", "set")
    if moving and settings.until is None:
        raise ValueError(f"{settings.method} wants until=: the step from which on masks stay")
    if moving and not isinstance(settings.pattern, Unstructured):
        raise ValueError(f"{settings.method} chooses weights one by one: leave pattern out")
