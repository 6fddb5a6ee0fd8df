"""Weights of dots and convolutions as matrices [groups, contracted, outputs], and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class MatrixLayout:
    """Which axes of a weight are contracted with the input, in the order in which Hessians flatten them.

    Attributes:
        axes: the contracted axes. Of a dot's weight [K, N]: `(0,)`; of a convolution's: input channels first,
            then space (`hessian.conv_layout` makes it).
        batch: axes that batch the dot; the input has them too, so each index has its own Hessian.
        groups: into how many equal parts the outputs split of which each reads inputs of its own
            (`feature_group_count` of a convolution). Groups come after batches.

    Raises:
        ValueError: if an axis is named twice, or both batches and groups are given.

    Example:
        >>> MatrixLayout((1,))  # for x @ w.T
        MatrixLayout(axes=(1,), batch=(), groups=1)
    """

    axes: tuple[int, ...] = (0,)
    batch: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        if len({*self.axes, *self.batch}) < len(self.axes) + len(self.batch):
            raise ValueError(f"an axis is named twice: axes={self.axes}, batch={self.batch}")
        if self.groups != 1 and self.batch:
            raise ValueError("a weight has either batch axes or groups, not both")

    def outputs(self, rank: int) -> tuple[int, ...]:
        """The axes of a weight of this rank that are neither contracted nor batched.

        Raises:
            ValueError: if the weight has no such axis as the layout names.
        """
        named = [*self.axes, *self.batch]
        if any(not -rank <= axis < rank for axis in named):
            raise ValueError(f"the weight has {rank} axes, the layout names {named}")
        taken = {axis % rank for axis in named}
        return tuple(axis for axis in range(rank) if axis not in taken)

    def shape(self, weight: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape [groups or batches, contracted, outputs] of the matrices of a weight of this shape.

        Raises:
            ValueError: if the outputs do not split into the groups.
        """
        outputs = math.prod(weight[axis] for axis in self.outputs(len(weight)))
        batch = math.prod(weight[axis] for axis in self.batch) * self.groups
        inputs = math.prod(weight[axis] for axis in self.axes)
        if outputs % self.groups:
            raise ValueError(f"{outputs} outputs do not split into {self.groups} groups")
        return batch, inputs, outputs // self.groups

    def fastest(self, axis: int, rank: int) -> MatrixLayout:
        """The layout in which a contracted axis of a weight of this rank comes last.

        Raises:
            ValueError: if the axis is not contracted.
        """
        axes = [each % rank for each in self.axes]
        if axis % rank not in axes:
            raise ValueError(f"axis {axis} is not contracted: {self.axes} are")
        return replace(self, axes=(*(each for each in axes if each != axis % rank), axis % rank))

    def order(self, other: MatrixLayout, weight: tuple[int, ...]) -> np.ndarray:
        """Which row of a matrix of a weight of this shape each row of another layout's is: int[K]."""
        rank = len(weight)
        mine, others = ([axis % rank for axis in layout.axes] for layout in (self, other))
        rows = np.arange(math.prod(weight[axis] for axis in mine)).reshape([weight[axis] for axis in mine])
        return rows.transpose([mine.index(axis) for axis in others]).reshape(-1)

    def to_matrix(self, weight: jax.Array) -> jax.Array:
        """The weight as matrices."""
        batch, inputs, outputs = self.shape(weight.shape)
        order = (*self.batch, *self.axes, *self.outputs(weight.ndim))
        moved = weight.transpose([axis % weight.ndim for axis in order])
        if self.groups == 1:
            return moved.reshape(batch, inputs, outputs)
        return jnp.swapaxes(moved.reshape(inputs, batch, outputs), 0, 1)

    def from_matrix(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The weight of this shape that `to_matrix` made into matrices."""
        order = [axis % len(shape) for axis in (*self.batch, *self.axes, *self.outputs(len(shape)))]
        if self.groups > 1:
            matrix = jnp.swapaxes(matrix, 0, 1)
        moved = matrix.reshape([shape[axis] for axis in order])
        return moved.transpose([order.index(axis) for axis in range(len(shape))])
