"""Sums of products with a common matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._chains.labels import Labels, agrees, is_plain_dot, operand_labels
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome


@dataclass(frozen=True, slots=True)
class _Term:
    """A product in a sum, with the number that it is multiplied by and its sign."""

    dot: Node
    number: Value | None = None
    negative: bool = False


@movement_rule("add", "add_any", "sub", level="reassociate", must_pay=True)
def common_matrix(node: Node, ctx: PassContext) -> Outcome:
    """A @ B + A @ C → A @ (B + C), A @ B + C @ B → (A + C) @ B, and differences.

    Also where the terms are multiplied by numbers, s * (A @ B) - A @ C → A @ (s * B - C), and where one has
    the other matrix transposed. Only where nothing else reads the products. B + C might overflow where
    neither product does, only if its numbers come near the limit of float32; float16 is left alone.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only chains`.
    """
    first, second = _term(node.operands[0]), _term(node.operands[1])
    if first is None or second is None or first.dot is second.dot:
        return None
    if not (is_plain_dot(first.dot) and agrees(second.dot, first.dot)):
        return None
    if first.dot.result.shape != node.result.shape or second.dot.result.shape != node.result.shape:
        return None
    found = _common(first.dot, second.dot)
    if found is None:
        return None
    side, other, permutation = found
    common, own = first.dot.operands[side], first.dot.operands[1 - side]
    numbers = [term.number for term in (first, second) if term.number is not None]
    return rewrite(
        _factored,
        common,
        own,
        other,
        *numbers,
        side=side,
        permutation=permutation,
        numbered=(first.number is not None, second.number is not None),
        signs=(first.negative, second.negative != (node.op == "sub")),
        dimensions=first.dot.params["dimension_numbers"],
        precision=first.dot.params.get("precision"),
        accumulate=first.dot.params.get("preferred_element_type"),
    )


def _term(value: Value) -> _Term | None:
    """A product that only the sum reads, perhaps multiplied by a number."""
    node, number, negative = value.node, None, False
    while node is not None and len(node.results[0].uses) == 1:
        if node.op == "dot_general":
            return _Term(node, number, negative)
        if node.op == "neg":
            negative = not negative
            node = node.operands[0].node
        elif node.op == "mul" and number is None:
            a, b = node.operands
            number, rest = (a, b) if a.shape == () else (b, a)
            if number.shape != () or number.dtype != node.result.dtype:
                return None
            node = rest.node
        else:
            return None
    return None


def _common(first: Node, second: Node) -> tuple[int, Value, tuple[int, ...]] | None:
    """The side of the common operand in the first, the other one of the second, and how to turn it."""
    for side in (0, 1):
        for place in (0, 1):
            if first.operands[side] is not second.operands[place]:
                continue
            ours, theirs = _labels(first, side), _labels(second, place)
            if ours[0] != theirs[0] or sorted(ours[1]) != sorted(theirs[1]):
                continue
            permutation = tuple(theirs[1].index(label) for label in ours[1])
            return side, second.operands[1 - place], permutation
    return None


def _labels(dot: Node, side: int) -> tuple[Labels, Labels]:
    """The labels of an operand and of the other; sums are labelled by the operand's dimension."""
    rank = dot.result.ndim

    def fresh(left: int, right: int) -> int:
        return rank + (left, right)[side]

    found = operand_labels(dot, range(rank), fresh)
    return found[side], found[1 - side]


def _factored(
    common: jax.Array,
    own: jax.Array,
    other: jax.Array,
    *numbers: jax.Array,
    side: int,
    permutation: tuple[int, ...],
    numbered: tuple[bool, bool],
    signs: tuple[bool, bool],
    dimensions: Any,
    precision: Any,
    accumulate: Any,
) -> jax.Array:
    if permutation != tuple(range(other.ndim)):
        other = lax.transpose(other, permutation)
    scales = iter(numbers)
    first, second = (
        lax.mul(array, next(scales)) if scaled else array
        for array, scaled in zip((own, other), numbered, strict=True)
    )
    total = _signed_sum(first, second, signs)
    pair = (common, total) if side == 0 else (total, common)
    return lax.dot_general(*pair, dimensions, precision=precision, preferred_element_type=accumulate)


def _signed_sum(a: jax.Array, b: jax.Array, signs: tuple[bool, bool]) -> jax.Array:
    match signs:
        case (False, False):
            return lax.add(a, b)
        case (False, True):
            return lax.sub(a, b)
        case (True, False):
            return lax.sub(b, a)
        case _:
            return lax.neg(lax.add(a, b))


RULES: Final[tuple[Rule, ...]] = (common_matrix,)
