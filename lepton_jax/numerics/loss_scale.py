"""Loss scaling: gradients too small for float16 are computed multiplied, and divided before they are used.

The method is that of Micikevicius et al., "Mixed Precision Training" (ICLR 2018, arXiv:1710.03740), with the
scale found while training as in NVIDIA's apex, TensorFlow's `LossScaleOptimizer`, torch's `GradScaler` and
DeepMind's JMP: it grows after a number of good steps in a row, and shrinks when a gradient is not finite,
whose step is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.numerics._states import the_one

if TYPE_CHECKING:
    import optax


class LossScaleState(NamedTuple):
    """The state of `loss_scaled`, a pytree.

    Attributes:
        scale: what the loss is multiplied by: float32, shape ().
        good: how many steps in a row had finite gradients since the scale last changed: int32, shape ().
        skipped: how many steps were left out in all: int32, shape ().
        inner: the state of the optimiser within.
    """

    scale: jax.Array
    good: jax.Array
    skipped: jax.Array
    inner: Any


def loss_scaled(
    tx: optax.GradientTransformation,
    *,
    initial_scale: float = 2.0**15,
    growth_interval: int | None = 2000,
    factor: float = 2.0,
    least: float = 1.0,
    greatest: float = 2.0**24,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser for gradients of a scaled loss.

    It divides gradients by the scale and hands them to `tx`. Where one of them is not finite, it leaves the
    step out: the updates are zeros, the state of `tx` stays as it was, and the scale is divided by `factor`.
    Use `scale_loss` on the loss that is differentiated.

    Args:
        tx: the optimiser, any `optax.GradientTransformation`.
        initial_scale: the first scale. Powers of two lose no bit.
        growth_interval: after so many steps in a row with finite gradients the scale is multiplied by
            `factor`; None for a scale that never changes.
        factor: how much the scale grows and shrinks.
        least: the scale does not shrink below this.
        greatest: the scale does not grow beyond this.

    Returns:
        An `optax.GradientTransformationExtraArgs` whose state is a `LossScaleState`; it works under jit
        and scan.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import optax
        >>> tx = loss_scaled(optax.sgd(0.5), initial_scale=8.0)
        >>> state = tx.init(jnp.ones(2))
        >>> grads = jax.grad(lambda p: scale_loss(state, (p**2).sum()))(jnp.ones(2))
        >>> grads.tolist()
        [16.0, 16.0]
        >>> tx.update(grads, state)[0].tolist()
        [-1.0, -1.0]
    """
    import optax

    _check(initial_scale, growth_interval, factor, least, greatest)
    within = optax.with_extra_args_support(tx)

    def init(params: Any) -> LossScaleState:
        zero = jnp.zeros((), jnp.int32)
        return LossScaleState(jnp.asarray(initial_scale, jnp.float32), zero, zero, within.init(params))

    def update(
        updates: Any, state: LossScaleState, params: Any = None, **extra: Any
    ) -> tuple[Any, LossScaleState]:
        finite = _all_finite(updates)
        shapes = jax.eval_shape(lambda: within.update(updates, state.inner, params, **extra))

        def step() -> Any:
            unscaled = jax.tree.map(lambda g: _divided(g, state.scale), updates)
            return within.update(unscaled, state.inner, params, **extra)

        def skip() -> Any:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[0]), state.inner

        found, inner = lax.cond(finite, step, skip)
        skipped = state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
        if growth_interval is None:
            return found, LossScaleState(state.scale, state.good, skipped, inner)
        good = jnp.where(finite, state.good + 1, 0)
        grows = good >= growth_interval
        larger = jnp.where(grows, jnp.minimum(state.scale * factor, greatest), state.scale)
        scale = jnp.where(finite, larger, jnp.maximum(state.scale / factor, least))
        return found, LossScaleState(scale, jnp.where(grows, 0, good), skipped, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_loss(state: Any, loss: jax.Array) -> jax.Array:
    """The loss times the scale of the moment, to be differentiated.

    Args:
        state: the optimiser's state: a `LossScaleState`, or a tree that holds one.
        loss: a float of any shape and dtype.

    Returns:
        The scaled loss, float32 or wider. The scale itself has no gradient.

    Raises:
        TypeError: the state holds no `LossScaleState`, or several.

    Example:
        >>> import optax
        >>> state = loss_scaled(optax.sgd(0.1), initial_scale=1024.0).init(jnp.ones(2))
        >>> float(scale_loss(state, jnp.float16(0.5)))
        512.0
    """
    wanted = "scale_loss wants the state of an optimiser made by loss_scaled"
    return loss * lax.stop_gradient(the_one(state, LossScaleState, wanted).scale)


def _check(
    initial_scale: float, growth_interval: int | None, factor: float, least: float, greatest: float
) -> None:
    """Refuse arguments out of range.

    Raises:
        ValueError: the first of them, with what it may be.
    """
    if not 0.0 < least <= initial_scale <= greatest:
        raise ValueError(
            "a loss scale wants 0 < least <= initial_scale <= greatest, "
            f"not {least}, {initial_scale}, {greatest}"
        )
    if growth_interval is not None and growth_interval < 1:
        raise ValueError(
            "growth_interval is a number of steps, at least 1, or None for a fixed scale, "
            f"not {growth_interval}"
        )
    if factor <= 1.0:
        raise ValueError(f"factor must be greater than 1, not {factor}")


def _all_finite(tree: Any) -> jax.Array:
    """Whether all numbers of all inexact leaves are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return (
        jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        if leaves
        else jnp.asarray(True)
    )


def _divided(gradient: jax.Array, scale: jax.Array) -> jax.Array:
    """A gradient over the scale, divided in float32 and given in its own dtype."""
    if not jnp.issubdtype(gradient.dtype, jnp.inexact):
        return gradient
    return (gradient / scale).astype(gradient.dtype)
