"""Stacks of what is computed of masked sums, as computed of the stacks."""

from __future__ import annotations

from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.structure import operand_key, params_key
from lepton_jax.passes.simplify._gather.classes import is_masked_sum
from lepton_jax.passes.simplify._movement.common import bind, is_free, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_FEWEST: Final = 3
_DEEPEST: Final = 4

_PLAIN: Final = frozenset(
    {"add", "sub", "mul", "div", "max", "min", "neg", "sqrt", "rsqrt", "log", "exp", "convert_element_type"}
)


@movement_rule("concatenate", level="exact", backends=("cpu", "gpu"))
def stack_of_units(node: Node, ctx: PassContext) -> Outcome:
    """jnp.array([sum(where(i == k, x, 0)) for k in range(n)]) → jnp.stack([...])

    Of masked sums and what is computed of them alone, so that the rules for stacks see it.
    """
    axis = int(node.params["dimension"])
    if len(node.operands) < _FEWEST or node.result.shape[axis] != len(node.operands) or not is_free(node):
        return None
    parts = [_without_unit(value, axis) for value in node.operands]
    if not all(part is not None and _is_of_masked_sums(part) for part in parts):
        return None
    return rewrite(stack, *(part for part in parts if part is not None), axis=axis)


def _without_unit(value: Value, axis: int) -> Value | None:
    """What a value is but for its dimension `axis`, of size one."""
    node = value.node
    if node is None or node.op not in ("broadcast_in_dim", "reshape") or len(value.uses) != 1:
        return None
    inner = node.operands[0]
    return inner if inner.shape == value.shape[:axis] + value.shape[axis + 1 :] else None


def stack(*parts: jax.Array, axis: int) -> jax.Array:
    """The parts, one after the other along a new axis."""
    return jax.numpy.stack(parts, axis)


@movement_rule("stack", level="exact", backends=("cpu", "gpu"))
def stack_of_arithmetic(node: Node, ctx: PassContext) -> Outcome:
    """stack([sum(where(i == k, x, 0)) / sum(i == k) for k in range(n)]) → stack([...]) / stack([...])

    Of masked sums alone, as in means by class, so that the sums can be made together. Every part must be
    computed alike; what all have in common stays as it is.
    """
    first = node.operands[0].node
    if first is None or first.op not in _PLAIN or len(node.operands) < _FEWEST or not is_free(node):
        return None
    makers = [_maker(value, first, node) for value in node.operands]
    if not all(makers):
        return None
    columns = list(zip(*(m.operands for m in makers if m is not None), strict=True))
    common = [_is_same(column) for column in columns]
    if all(common) or not all(
        same or all(map(_is_of_masked_sums, c)) for same, c in zip(common, columns, strict=True)
    ):
        return None
    if any(same and column[0].ndim for same, column in zip(common, columns, strict=True)):
        return None
    values = [v for same, c in zip(common, columns, strict=True) for v in (c[:1] if same else c)]
    return rewrite(
        arithmetic_of_stacks,
        *values,
        common=tuple(common),
        count=len(makers),
        axis=int(node.params["axis"]),
        shape=node.result.shape,
        primitive=first.primitive,
        params=tuple(sorted(first.params.items())),
    )


def _maker(value: Value, first: Node, node: Node) -> Node | None:
    """What makes a part, if it is the same operation and nothing else reads the part."""
    made = value.node
    if made is None or made.op != first.op or made.context is not node.context or len(value.uses) != 1:
        return None
    same = made is first or params_key(made.params) == params_key(first.params)
    return made if same and params_key(first.params) is not None else None


def _is_same(column: tuple[Value, ...]) -> bool:
    first = column[0]
    if all(value is first for value in column):
        return True
    return first.is_const and all(v.is_const and operand_key(v) == operand_key(first) for v in column)


def _is_of_masked_sums(value: Value, depth: int = _DEEPEST) -> bool:
    """Whether a value is computed of nothing but masked sums and numbers."""
    node = value.node
    if node is None or depth == 0 or len(value.uses) != 1:
        return value.is_const and value.ndim == 0
    if node.op == "reduce_sum":
        return is_masked_sum(value)
    if node.op not in _PLAIN:
        return False
    own = [v for v in node.operands if not (v.is_const and v.ndim == 0)]
    return bool(own) and all(_is_of_masked_sums(v, depth - 1) for v in own)


def arithmetic_of_stacks(
    *values: jax.Array,
    common: tuple[bool, ...],
    count: int,
    axis: int,
    shape: tuple[int, ...],
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> Any:
    """An elementwise operation on stacks along an axis; numbers are spread."""
    operands, rest = [], list(values)
    for same in common:
        if same:
            operands.append(rest.pop(0))
            continue
        parts, rest = rest[:count], rest[count:]
        if parts[0].ndim == len(shape) - 1:
            operands.append(jax.numpy.stack(parts, axis))
        else:
            operands.append(lax.broadcast_in_dim(jax.numpy.stack(parts), shape, (axis,)))
    return bind(*operands, primitive=primitive, params=params)


RULES: Final[tuple[Rule, ...]] = (stack_of_units, stack_of_arithmetic)
