"""What calibration sees of the inputs of weights: means, channels, second moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lepton_jax.numerics.hessian import (
    Hessian,
    empty_hessian,
    merge_hessians,
    update_conv_hessian,
    update_hessian,
)
from lepton_jax.numerics.observers import Moments, Sums, check
from lepton_jax.passes._weights.uses import GEOMETRY, WeightUse
from lepton_jax.passes._weights.watching import Watcher, saw_all

State = dict[str, jax.Array]


@dataclass(frozen=True)
class MeanSeen(Watcher):
    """The mean of an input over all axes but some.

    Attributes:
        axes: that stay.
    """

    axes: tuple[int, ...]
    kind: ClassVar[str] = "mean"

    def see(self, x: jax.Array) -> State:
        """The state after one array: the sum, f32 of the rank of x, the count, and the bad ones."""
        others = tuple(i for i in range(x.ndim) if i not in self.axes)
        count = jnp.asarray(math.prod(x.shape[i] for i in others), jnp.float32)
        wide = x.astype(jnp.float32)
        finite = jnp.isfinite(wide)
        total = jnp.sum(jnp.where(finite, wide, 0.0), others, keepdims=True)
        return {"bad": jnp.sum(~finite, dtype=jnp.float32), "count": count, "total": total}

    def merge(self, left: State, right: State) -> State:
        """The state after both."""
        return {name: left[name] + right[name] for name in left}

    def check(self, state: State, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        if bad := float(state["bad"].sum()):
            raise ValueError(f"{name}: calibration saw {bad:.0f} inputs with NaN or infinities")
        if not float(state["count"].min()):
            raise ValueError(f"{name}: calibration saw no input; give it batches that reach this place")

    def result(self, state: State) -> tuple[jax.Array, ...]:
        """The mean, f32 of the input's rank."""
        return (state["total"] / state["count"],)

    def empty(self, shape: tuple[int, ...]) -> State:
        """The state before any array of this shape."""
        return self.see(jnp.zeros(tuple(n if i in self.axes else 0 for i, n in enumerate(shape))))

    def saw(self, state: State) -> bool:
        """Whether each place has seen an array."""
        return bool((state["count"] > 0).all())


@dataclass(frozen=True)
class ChannelsSeen(Watcher):
    """How large the inputs of a product are, for each input channel.

    Attributes:
        axis: of the channels.
    """

    axis: int
    kind: ClassVar[str] = "channels"

    def see(self, x: jax.Array) -> Any:
        """The state after one array."""
        observer = Moments(axes=(self.axis,))
        return observer.update(observer.init(x.shape), x)

    def merge(self, left: Any, right: Any) -> Any:
        """The state after both."""
        return Moments(axes=(self.axis,)).merge(left, right)

    def check(self, state: Any, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        check(state, name)

    def result(self, state: Sums) -> tuple[jax.Array, ...]:
        """The greatest magnitudes, the mean ones, and the mean squares."""
        return state.largest, state.magnitude, state.second

    def empty(self, shape: tuple[int, ...]) -> Any:
        """The state before any array of this shape."""
        return Moments(axes=(self.axis,)).init(shape)

    def saw(self, state: Any) -> bool:
        """Whether each place has seen an array."""
        return saw_all(state)


@dataclass(frozen=True)
class HessianSeen(Watcher):
    """The second moments of the inputs of a product or convolution.

    Attributes:
        axes: contracted axes of the input, in the order of the weight's.
        batch: its batch axes.
        size: the number of contracted elements.
        batches: the sizes of the batch axes, or the number of groups of a convolution.
        convolution: the kernel's shape and the parameters, of a convolution.
    """

    axes: tuple[int, ...]
    batch: tuple[int, ...]
    size: int
    batches: tuple[int, ...]
    convolution: tuple[tuple[int, ...], tuple[tuple[str, Any], ...]] | None = None
    kind: ClassVar[str] = "hessian"

    def see(self, x: jax.Array) -> Hessian:
        """The state after one array."""
        empty = self.empty(x.shape)
        if self.convolution is None:
            return update_hessian(empty, x, axes=self.axes, batch=self.batch)
        shape, params = self.convolution
        return update_conv_hessian(empty, x, shape, **dict(params))

    def merge(self, left: Hessian, right: Hessian) -> Hessian:
        """The state after both."""
        return merge_hessians(left, right)

    def check(self, state: Hessian, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        if bad := float(state.nonfinite.sum()):
            raise ValueError(f"{name}: calibration saw {bad:.0f} inputs with NaN or infinities")
        if not float(state.rows.sum()):
            raise ValueError(f"{name}: calibration saw no input; give it batches that reach this place")

    def result(self, state: Hessian) -> tuple[jax.Array, ...]:
        """The matrix of second moments."""
        return (state.matrix,)

    def empty(self, shape: tuple[int, ...]) -> Hessian:
        """The state before any array."""
        return empty_hessian(self.size, self.batches)

    def saw(self, state: Hessian) -> bool:
        """Whether each place has seen an array."""
        return bool((state.rows > 0).all())


def hessian_seen(use: WeightUse) -> HessianSeen | None:
    """What calibration has to see for the second moments of an input; None for tables."""
    node, side = use.node, use.side
    if node.op == "conv_general_dilated":
        return conv_hessian(use, tuple((name, node.params[name]) for name in GEOMETRY))
    if node.op != "dot_general":
        return None
    (contracted, batch), shape = node.params["dimension_numbers"], use.weight.shape
    sizes = tuple(shape[i] for i in batch[side])
    return HessianSeen(
        contracted[1 - side], batch[1 - side], math.prod(shape[i] for i in contracted[side]), sizes
    )


def conv_hessian(use: WeightUse, params: tuple[tuple[str, Any], ...]) -> HessianSeen:
    """The same for a convolution with these parameters, see `GEOMETRY`."""
    known = dict(params)
    groups = known.pop("feature_group_count")
    del known["batch_group_count"]
    shape = use.weight.shape
    size = math.prod(shape[i] for i in known["dimension_numbers"].rhs_spec[1:])
    batches = (groups,) if groups > 1 else ()
    return HessianSeen((), (), size, batches, (shape, tuple({**known, "groups": groups}.items())))
