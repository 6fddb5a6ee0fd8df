"""Weights as the matrices that patterns lie on, and what calibration has to see for their importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from lepton_jax.numerics.hessian import MatrixLayout, conv_layout
from lepton_jax.passes._weights.moments import MeanSeen, State
from lepton_jax.passes._weights.uses import WeightUse


@dataclass(frozen=True)
class Matrices:
    """A weight as matrices [groups, inputs, outputs].

    Attributes:
        shape: of the weight.
        layout: which axes are contracted.
        along: the one that runs fastest along the inputs: input channels, where there are several.
    """

    shape: tuple[int, ...]
    layout: MatrixLayout
    along: int

    def of(self, weight: jax.Array) -> jax.Array:
        """The matrices of a weight."""
        return self._within.to_matrix(weight)

    def back(self, matrices: jax.Array) -> jax.Array:
        """The weight of which these are the matrices."""
        return self._within.from_matrix(matrices, self.shape)

    def norms(self, squares: jax.Array, space: int) -> jax.Array:
        """The norms of the inputs, f32[groups, inputs], by their mean squares.

        Args:
            squares: of any shape, groups first, then inputs as the layout has them.
            space: kernel positions that read the same input channel.
        """
        groups, inputs, _ = self.layout.shape(self.shape)
        rows = jnp.repeat(squares.reshape(groups, inputs // space), space, 1)
        return jnp.sqrt(rows)[:, self.layout.order(self._within, self.shape)]

    @property
    def _within(self) -> MatrixLayout:
        return self.layout.fastest(self.along, len(self.shape))


def matrices_of(use: WeightUse) -> Matrices | str:
    """The weight of a use as matrices, or why it has none."""
    node, shape = use.node, use.weight.shape
    if node.op == "gather":
        return Matrices(shape, MatrixLayout(tuple(range(1, len(shape)))), len(shape) - 1)
    if node.op == "dot_general":
        contracted, batch = (dims[use.side] for dims in node.params["dimension_numbers"])
        if not contracted:
            return "an outer product has no inputs to choose from"
        layout = MatrixLayout(tuple(contracted), tuple(batch))
        return Matrices(shape, layout, max(contracted, key=lambda axis: shape[axis]))
    if use.side != 1:
        return "the weight is the image of the convolution"
    if node.params["batch_group_count"] != 1:
        return "convolutions with batch groups are the gradients of others"
    kernel = node.params["dimension_numbers"].rhs_spec
    return Matrices(shape, conv_layout(kernel, node.params["feature_group_count"]), kernel[1])


@dataclass(frozen=True)
class SquaresSeen(MeanSeen):
    """The mean squares of an input over all axes but some.

    Attributes:
        order: of the axes that stay, in the result.
    """

    order: tuple[int, ...] = ()
    kind: ClassVar[str] = "squares"

    def see(self, x: jax.Array) -> State:
        """See `MeanSeen`."""
        return super().see(jnp.square(x.astype(jnp.float32)))

    def result(self, state: State) -> tuple[jax.Array, ...]:
        """The mean squares, f32 of the sizes of the axes that stay."""
        (mean,) = super().result(state)
        others = [axis for axis in range(mean.ndim) if axis not in self.axes]
        return (mean.transpose(*self.order, *others).reshape([mean.shape[axis] for axis in self.order]),)


def squares_seen(use: WeightUse) -> SquaresSeen | None:
    """What calibration has to see for the norms of an input; None for tables."""
    params = use.node.params
    if use.node.op == "dot_general":
        summed, batch = (dims[1 - use.side] for dims in params["dimension_numbers"])
        order = (*batch, *summed)
        return SquaresSeen(tuple(sorted(order)), order)
    if use.node.op != "conv_general_dilated":
        return None
    feature = params["dimension_numbers"].lhs_spec[1]
    return SquaresSeen((feature,), (feature,))
