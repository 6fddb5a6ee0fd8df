"""A scale by parameters, from what is scaled into the gains, biases and weights that make it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._absorb.after import compacted
from lepton_jax.passes.simplify._absorb.known import Known, compact_shape, wide
from lepton_jax.passes.simplify._absorb.product import product_of
from lepton_jax.passes.simplify._absorb.steps import Step, moved, moved_shape, reverse, step_of
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import write_before

_DEEPEST: Final = 12

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Leaf:
    """An operand made of parameters that takes the scale in."""

    node: Node
    position: int
    steps: tuple[Step, ...]
    axes: tuple[int | None, ...] | None


@dataclass
class _Makers:
    """What makes a value, as far as a positive scale can be taken through it."""

    known: Known
    leaves: list[_Leaf] = field(default_factory=list)

    def why_not(self, value: Value, shape: Shape, steps: tuple[Any, ...], depth: int = 0) -> str | None:
        """Why a scale on a value cannot be taken into what makes it, or None.

        Args:
            shape: of the scale, one where it is the same.
            steps: from the scaled value back to this one: moves, or maps of axes.
        """
        node = value.node
        if node is None or depth > _DEEPEST or node.regions or len(node.results) != 1:
            return "it is an input"
        if depth and len(value.uses) != 1:
            return f"the result of the {node.op} is also read elsewhere"
        if self.known.misplaced(node):
            return "it is sharded"
        if node.op in ("mul", "div"):
            return self._factor(node, shape, steps, depth)
        if node.op in ("add", "sub"):
            return self._every(node, (0, 1), shape, steps, depth)
        if node.op == "neg":
            return self._every(node, (0,), shape, steps, depth)
        if node.op == "max" and any(map(_is_zero, node.operands)):
            return self._every(node, (int(_is_zero(node.operands[0])),), shape, steps, depth)
        if node.op in ("dot_general", "conv_general_dilated"):
            return self._product(node, shape, steps, depth)
        step = step_of(node)
        if step is None:
            return f"{node.op} makes it"
        back = reverse(step)
        return self.why_not(node.operands[0], moved_shape(shape, back), (*steps, back), depth + 1)

    def _every(
        self, node: Node, positions: tuple[int, ...], shape: Shape, steps: tuple[Any, ...], depth: int
    ) -> str | None:
        for position in positions:
            operand = node.operands[position]
            if self.known.is_early(operand):
                self.leaves.append(_Leaf(node, position, steps, None))
                continue
            if operand.shape != node.result.shape:
                return f"an operand of the {node.op} is spread out"
            reason = self.why_not(operand, shape, steps, depth + 1)
            if reason is not None:
                return reason
        return None

    def _factor(self, node: Node, shape: Shape, steps: tuple[Any, ...], depth: int) -> str | None:
        """One factor takes it: the one made of parameters first."""
        positions = (0,) if node.op == "div" else (0, 1)
        early = [i for i in positions if self.known.is_early(node.operands[i])]
        if early and not node.operands[early[0]].is_const:
            return self._every(node, (early[0],), shape, steps, depth)
        reason: str | None = "no factor takes it"
        for position in [i for i in positions if i not in early]:
            kept = len(self.leaves)
            reason = self._every(node, (position,), shape, steps, depth)
            if reason is None:
                return None
            del self.leaves[kept:]
        return reason

    def _product(self, node: Node, shape: Shape, steps: tuple[Any, ...], depth: int) -> str | None:
        product = product_of(node, self.known)
        if product is not None:
            if not product.takes_outside(shape):
                return "it varies along other axes than the weight's"
            reason = self.known.why_not(product.weight, node)
            if reason is None:
                self.leaves.append(_Leaf(node, product.side, steps, product.axes))
            return reason
        if node.op != "dot_general":
            return f"{node.op} makes it"
        for side in (0, 1):
            axes = _result_axes(node, side)
            if all(length == 1 or axis in axes for axis, length in enumerate(shape)):
                inner = tuple(1 if axis is None else shape[axis] for axis in axes)
                return self.why_not(node.operands[side], inner, (*steps, ("place", axes, None)), depth + 1)
        return "it varies along axes of both operands"


def _result_axes(node: Node, side: int) -> tuple[int | None, ...]:
    """For each axis of an operand of a dot the axis of the result that it becomes, or None."""
    contract, batch = node.params["dimension_numbers"]
    free = [
        [i for i in range(v.ndim) if i not in (*contract[s], *batch[s])] for s, v in enumerate(node.operands)
    ]
    start = len(batch[0]) + (len(free[0]) if side == 1 else 0)
    axes: list[int | None] = [None] * node.operands[side].ndim
    for place, axis in enumerate(batch[side]):
        axes[axis] = place
    for place, axis in enumerate(free[side]):
        axes[axis] = start + place
    return tuple(axes)


def scale_into_makers(value: Value, scale: Value, axis: int, known: Known, rule: str) -> str | None:
    """Multiply a value by a positive scale along one axis, by multiplying the parameters that make it.

    Gains of norms, biases, and weights of products take it in, through moves of elements, sums, one of the
    factors of a product, ReLU, and products with other activations.

    Args:
        value: what is to be scaled; all that read it must want it scaled.
        scale: f32[n], made of parameters and calibration.
        axis: of the value, of length n.

    Returns:
        None if it was done; otherwise why not, and nothing is changed.
    """
    shape = tuple(n if i == axis else 1 for i, n in enumerate(value.shape))
    makers = _Makers(known)
    reason = makers.why_not(value, shape, ())
    if reason is not None:
        return reason
    for leaf in makers.leaves:
        operand = leaf.node.operands[leaf.position]
        compact = compact_shape(operand, leaf.node.result.ndim) if leaf.axes is None else None
        made = rewrite(
            _scaled, operand, scale, shape=shape, steps=leaf.steps, axes=leaf.axes, compact=compact
        )
        (fresh,) = write_before(made, leaf.node, rule)
        leaf.node.set_operand(leaf.position, fresh)
        known.early[fresh] = known.early.get(operand, frozenset())
    return None


def _scaled(
    x: jax.Array,
    scale: jax.Array,
    *,
    shape: Shape,
    steps: tuple[Any, ...],
    axes: tuple[int | None, ...] | None,
    compact: Shape | None,
) -> jax.Array:
    dtype = wide(x)
    each = scale.astype(dtype).reshape(shape)
    for step in steps:
        each = _placed(each, step[1]) if step[0] == "place" else moved(each, step)
    if axes is not None:
        return (x.astype(dtype) * _placed(each, axes)).astype(x.dtype)
    assert compact is not None
    short = compacted(x, compact) if x.ndim else x
    both = short.astype(dtype) * each
    whole = jnp.broadcast_shapes(x.shape, both.shape)
    return jnp.broadcast_to(store(both.astype(x.dtype)), whole)


def _placed(coefficient: jax.Array, axes: tuple[int | None, ...]) -> jax.Array:
    """A coefficient on a result, where an operand has its axes."""
    used = [axis for axis in axes if axis is not None]
    rest = [axis for axis in range(coefficient.ndim) if axis not in used]
    sizes = [1 if axis is None else coefficient.shape[axis] for axis in axes]
    return jnp.transpose(coefficient, [*used, *rest]).reshape(sizes)


def _is_zero(value: Value) -> bool:
    return value.is_const and not np.any(np.asarray(value.const))
