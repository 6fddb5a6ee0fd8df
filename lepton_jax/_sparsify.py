"""`lepton.sparsify`: an optimiser that keeps weights sparse while it trains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax._sparse_masks import (
    ROOT,
    Chosen,
    Distribution,
    Importance,
    Method,
    Moment,
    Scope,
    Settings,
    check,
    masks_at,
    random_scores,
    regrown,
    remembered,
    scores_of,
)
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.numerics._states import the_one
from lepton_jax.numerics.masks import Pattern, Unstructured
from lepton_jax.numerics.sparsity_schedules import Schedule, one_shot

if TYPE_CHECKING:
    import optax


class SparseState(NamedTuple):
    """The state of `sparsify`, a pytree; masks and memory lie where the weights lie.

    Attributes:
        step: how many updates there were: int32, shape ().
        masks: which weights stay: a tree as that of the parameters, bool, `optax.MaskedNode` where nothing
            is pruned.
        memory: what importance remembers of gradients: such a tree, float32; or None.
        key: of random choices.
        inner: the state of the optimiser within.
    """

    step: jax.Array
    masks: Any
    memory: Any
    key: jax.Array
    inner: Any


def sparsify(
    tx: optax.GradientTransformation,
    sparsity: float | Schedule,
    *,
    method: Method = "prune",
    importance: Importance = "magnitude",
    scope: Scope = "layer",
    distribution: Distribution = "uniform",
    pattern: Pattern | None = None,
    every: int = 1,
    until: int | None = None,
    drop: float = 0.3,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser whose weights are zero where a mask says so, and whose masks change as it trains.

    Weights are arrays of floats with two dimensions or more; masks are part of the optimiser's state. What
    is gone stays exactly zero, and its gradients do not reach `tx`. Masks depend on parameters, gradients
    and the seed alone, so replicas that agree on these agree on masks.

    Args:
        tx: the optimiser.
        sparsity: the share of weights that goes, 0 to 1; or a function of the step, see
            `lepton_jax.numerics.sparsity_schedules`.
        method: `prune`: the least important go. `straight_through`: so they do, but the optimiser goes on
            with all weights: compute the loss of `masked(params, state)`; what was gone can come back.
            `rigl`: as many as at the start, every now and then the smallest go and those with the largest
            gradients come (Evci et al., arXiv:1911.11134). `set`: the same, and those that come are chosen
            at random (Mocanu et al., arXiv:1707.04780). `static`: chosen at random at the start.
        importance: `magnitude`; `saliency`, |w·g|; `movement`, the sum of -w·g (Sanh et al.,
            arXiv:2005.07683); `fisher`, w² times the mean of g², the diagonal of the second order
            (Theis et al., arXiv:1801.05787).
        scope: whether weights are ranked within each array, or over all of them.
        distribution: of `layer`: the same sparsity for all arrays, or that of Erdős and Rényi for kernels.
        pattern: what comes and goes together, see `lepton_jax.numerics.masks`; each weight on its own if
            None.
        every: masks change at every so many steps.
        until: masks stay from this step on; needed by `rigl` and `set`, whose changes become fewer until
            then.
        drop: of `rigl` and `set`: the share of what is there that goes at the first change.
        only: patterns of paths, as in `optimize(params=...)`: only these are pruned. The tree's own name is
            `params`.
        skip: patterns of paths: these are not.
        seed: of random choices.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose state is a `SparseState`; `update` needs `params`.

    Raises:
        ValueError: an argument out of range, or a pattern that chooses nothing.

    Example:
        >>> import optax
        >>> tx = sparsify(optax.sgd(0.1), 0.5)
        >>> params = jnp.array([[3.0, 1.0], [2.0, 4.0]])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.zeros((2, 2)), state, params)
        >>> optax.apply_updates(params, updates).tolist()
        [[3.0, 0.0], [0.0, 4.0]]
    """
    import optax

    schedule = sparsity if callable(sparsity) else one_shot(sparsity)
    settings = Settings(
        method,
        importance,
        scope,
        distribution,
        Unstructured() if pattern is None else pattern,
        every,
        until,
        drop,
        (only,) if isinstance(only, str) else tuple(only),
        (skip,) if isinstance(skip, str) else tuple(skip),
    )
    check(settings)
    within = optax.with_extra_args_support(tx)

    def init(params: Any) -> SparseState:
        chosen = Chosen.of(params, settings)
        weights = chosen.leaves(params)
        key, now = jax.random.split(jax.random.key(seed))
        if method in ("prune", "straight_through"):
            masks = [jnp.ones_like(weight, bool) for weight in weights]
        else:
            masks = masks_at(random_scores(now, weights), schedule(jnp.zeros((), jnp.int32)), settings)
        remembers = importance in ("movement", "fisher")
        memory = chosen.tree([jnp.zeros_like(w, jnp.float32) for w in weights]) if remembers else None
        return SparseState(jnp.zeros((), jnp.int32), chosen.tree(masks), memory, key, within.init(params))

    def update(updates: Any, state: SparseState, params: Any = None, **extra: Any) -> tuple[Any, SparseState]:
        if params is None:
            raise ValueError("sparsify needs the parameters: tx.update(grads, state, params)")
        chosen = Chosen.of(params, settings)
        weights, gradients = chosen.leaves(params), chosen.leaves(updates)
        masks = jax.tree.leaves(state.masks)
        key, drawn = jax.random.split(state.key)
        now = Moment(masks, weights, gradients, jax.tree.leaves(state.memory), state.step, drawn)
        memory = remembered(now, settings)
        through = method == "straight_through"
        reaching = updates if through else chosen.put(updates, _times(masks, gradients))
        found, inner = within.update(reaching, state.inner, params, **extra)
        steps = chosen.leaves(found)

        def changed() -> list[jax.Array]:
            weights_after = [weight + step for weight, step in zip(weights, steps, strict=True)]
            moved = replace(now, weights=weights_after, memory=memory)
            if through or method == "prune":
                return masks_at(scores_of(moved, settings), schedule(state.step), settings)
            return regrown(moved, settings)

        if method != "static":
            due = state.step % every == 0
            if until is not None:
                due &= state.step < until
            masks = lax.cond(due, changed, lambda: masks)
        kept = chosen.tree(memory) if memory else None
        after = SparseState(state.step + 1, chosen.tree(masks), kept, key, inner)
        return (found if through else chosen.put(found, _only(masks, steps, weights))), after

    return optax.GradientTransformationExtraArgs(init, update)


def masked(params: Any, state: Any) -> Any:
    """The parameters with zeros where masks say so: what `straight_through` computes the loss of.

    Masks have no gradient; the parameters have all of it.

    Args:
        params: the parameters.
        state: the optimiser's state: a `SparseState`, or a tree that holds one.

    Returns:
        A tree as that of the parameters.

    Raises:
        TypeError: the state holds no `SparseState`, or several.
    """
    import optax

    def leaf(mask: Any, param: Any) -> Any:
        if isinstance(mask, optax.MaskedNode):
            return param
        return param + lax.stop_gradient(jnp.where(mask, param, 0) - param)

    masks = sparse_state(state).masks
    return jax.tree.map(leaf, masks, params, is_leaf=lambda each: isinstance(each, optax.MaskedNode))


def sparse_state(state: Any) -> SparseState:
    """The one `SparseState` in an optimiser's state.

    Raises:
        TypeError: there is none, or there are several.
    """
    return the_one(state, SparseState, "the state of an optimiser made by sparsify is wanted")


def sparsity_of(state: Any) -> dict[str, float]:
    """The share of weights that is gone, by path, and of all together as `total`.

    Args:
        state: the optimiser's state: a `SparseState`, or a tree that holds one.

    Example:
        >>> import optax
        >>> tx = sparsify(optax.sgd(0.1), 0.5, method="static")
        >>> sparsity_of(tx.init({"w": jnp.ones((4, 8))}))
        {'params/w': 0.5, 'total': 0.5}
    """
    masks = sparse_state(state).masks
    paths, leaves = leaf_paths(ROOT, masks), jax.tree.leaves(masks)
    found = {
        path: 1 - float(jnp.mean(mask)) if mask.size else 0.0
        for path, mask in zip(paths, leaves, strict=True)
    }
    size = max(sum(mask.size for mask in leaves), 1)
    return found | {"total": sum(mask.size - int(jnp.sum(mask)) for mask in leaves) / size}


def _times(masks: Sequence[jax.Array], gradients: Sequence[jax.Array]) -> list[jax.Array]:
    return [jnp.where(mask, grad, 0) for mask, grad in zip(masks, gradients, strict=True)]


def _only(
    masks: Sequence[jax.Array], steps: Sequence[jax.Array], weights: Sequence[jax.Array]
) -> list[jax.Array]:
    """Steps that end in zero where masks say so."""
    each = zip(masks, steps, weights, strict=True)
    return [jnp.where(mask, step, -weight.astype(step.dtype)) for mask, step, weight in each]
