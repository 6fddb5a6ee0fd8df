"""Products of an activation with a weight: which axes of the weight stand where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import jax.numpy as jnp

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._absorb.known import Known, is_float
from lepton_jax.passes.simplify._absorb.steps import Shape

_OPS: Final = frozenset({"dot_general", "conv_general_dilated"})


@dataclass(frozen=True)
class Product:
    """A product of an activation with a weight.

    Attributes:
        node: the operation.
        side: which operand is the weight.
        axes: for each axis of the weight: the axis of the result that it becomes, or None.
        inner: for each axis of the weight: the axis of the activation that goes with it, or None.
        groups: feature groups of a convolution; its output channels are the first entry of `axes` that is
            not None.
    """

    node: Node
    side: int
    axes: tuple[int | None, ...]
    inner: tuple[int | None, ...]
    groups: int

    @property
    def weight(self) -> Value:
        """The weight."""
        return self.node.operands[self.side]

    @property
    def late(self) -> Value:
        """The activation."""
        return self.node.operands[1 - self.side]

    @property
    def layout(self) -> Layout:
        """What a traced function needs of it."""
        params = tuple(self.node.params.items())
        return Layout(self.node.primitive, params, self.side, self.axes, self.inner, self.groups)

    def takes_outside(self, shape: Shape) -> bool:
        """Whether a coefficient of this shape on the result varies along axes of the weight alone."""
        return all(length == 1 or axis in self.axes for axis, length in enumerate(shape))

    def takes_inside(self, shape: Shape) -> bool:
        """Whether a coefficient of this shape on the activation varies along axes of the weight alone."""
        if self.node.op == "conv_general_dilated" and self.node.params["batch_group_count"] != 1:
            return all(length == 1 for length in shape)
        return all(length == 1 or axis in self.inner for axis, length in enumerate(shape))

    def sees_all(self) -> bool:
        """Whether a constant added to the activation adds a constant to the result: nothing is padded."""
        params = self.node.params
        if self.node.op == "dot_general":
            return True
        is_padded = any(tuple(pair) != (0, 0) for pair in params["padding"])
        return (
            not is_padded and all(d == 1 for d in params["lhs_dilation"]) and params["batch_group_count"] == 1
        )


@dataclass(frozen=True)
class Layout:
    """A product as traced functions see it; see `Product`."""

    primitive: Any
    params: tuple[tuple[str, Any], ...]
    side: int
    axes: tuple[int | None, ...]
    inner: tuple[int | None, ...]
    groups: int

    def multiply(self, late: Any, weight: Any) -> Any:
        """The product."""
        operands = (late, weight) if self.side == 1 else (weight, late)
        return self.primitive.bind(*operands, **dict(self.params))

    def outside(self, coefficient: Any) -> Any:
        """A coefficient on the result, as one on the weight."""
        return _placed(coefficient, self.axes)

    def inside(self, coefficient: Any, weight: Any) -> Any:
        """A coefficient on the activation, as one on the weight."""
        if self.groups == 1 or coefficient.ndim == 0:
            return _placed(coefficient, self.inner)
        channels = next(axis for axis, out in enumerate(self.axes) if out is not None)
        (within,) = (axis for axis, late in enumerate(self.inner) if late is not None)
        table = coefficient.reshape(self.groups, weight.shape[within])
        table = jnp.repeat(table, weight.shape[channels] // self.groups, axis=0)
        table = table if channels < within else table.T
        shape = [1] * weight.ndim
        shape[channels], shape[within] = weight.shape[channels], weight.shape[within]
        return table.reshape(shape)

    def summed(self, weight: Any, rank: int) -> Any:
        """The sum over all axes of a weight that the result does not have, as a coefficient on the result."""
        gone = tuple(axis for axis, out in enumerate(self.axes) if out is None)
        left = [(out, axis) for axis, out in enumerate(self.axes) if out is not None]
        shape = [1] * rank
        for out, axis in left:
            shape[out] = weight.shape[axis]
        kept = sorted(axis for _, axis in left)
        order = [kept.index(axis) for _, axis in sorted(left)]
        return jnp.transpose(jnp.sum(weight, gone), order).reshape(shape)


def _placed(coefficient: Any, axes: tuple[int | None, ...]) -> Any:
    """A coefficient whose axes go where a weight has them; those that go nowhere have size one."""
    if coefficient.ndim == 0:
        return coefficient
    used = [axis for axis in axes if axis is not None]
    rest = [axis for axis in range(coefficient.ndim) if axis not in used]
    shape = [1 if axis is None else coefficient.shape[axis] for axis in axes]
    if used != sorted(used):
        coefficient = jnp.transpose(coefficient, [*used, *rest])
    return coefficient.reshape(shape)


def product_of(node: Node, known: Known) -> Product | None:
    """The product of an activation with a weight that a node is, if it is one."""
    if node.op not in _OPS or known.misplaced(node) or not is_float(node.result):
        return None
    early = [known.is_early(v) for v in node.operands]
    if early[0] == early[1] or not all(map(is_float, node.operands)):
        return None
    side = early.index(True)
    if math.prod(node.operands[side].shape) == 0 or not _has_range(node.operands[side]):
        return None
    return _dot(node, side) if node.op == "dot_general" else _convolution(node, side)


def _has_range(weight: Value) -> bool:
    """Whether scaled weights surely stay finite, as far as those of 32 bits do."""
    return int(jnp.finfo(weight.dtype).maxexp) >= int(jnp.finfo(jnp.bfloat16).maxexp)


def _dot(node: Node, side: int) -> Product:
    contract, batch = node.params["dimension_numbers"]
    ranks = [v.ndim for v in node.operands]
    free = [[d for d in range(ranks[s]) if d not in (*contract[s], *batch[s])] for s in (0, 1)]
    start = len(batch[0]) + (len(free[0]) if side == 1 else 0)
    axes: list[int | None] = [None] * ranks[side]
    inner: list[int | None] = [None] * ranks[side]
    for place, d in enumerate(free[side]):
        axes[d] = start + place
    for place, (mine, other) in enumerate(zip(batch[side], batch[1 - side], strict=True)):
        axes[mine], inner[mine] = place, other
    for mine, other in zip(contract[side], contract[1 - side], strict=True):
        inner[mine] = other
    return Product(node, side, tuple(axes), tuple(inner), 1)


def _convolution(node: Node, side: int) -> Product | None:
    if side == 0:
        return None
    numbers = node.params["dimension_numbers"]
    axes: list[int | None] = [None] * node.operands[1].ndim
    inner: list[int | None] = [None] * node.operands[1].ndim
    axes[numbers.rhs_spec[0]] = numbers.out_spec[1]
    inner[numbers.rhs_spec[1]] = numbers.lhs_spec[1]
    return Product(node, 1, tuple(axes), tuple(inner), node.params["feature_group_count"])
