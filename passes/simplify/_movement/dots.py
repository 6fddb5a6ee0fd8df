"""Transposes around matrix products, taken in by the product's dimension numbers."""

from __future__ import annotations

from typing import Any, Final

from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import (
    bind,
    changed,
    is_free,
    made_by,
    movement_rule,
    used_once,
)
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Batches = tuple[tuple[int, ...], tuple[int, ...]]

_MOST_DOTS: Final = 64


@movement_rule("dot_general")
def dot_of_transpose(node: Node, ctx: PassContext) -> Outcome:
    """dot_general(transpose(a), b) → dot_general(a, b) with a's own dimensions

    Where the free dimensions stay in order, so that the result needs no transpose, and where only
    products read the transpose, so that it goes. The same products are summed in the same order.
    """
    if not is_free(node):
        return None
    contract, batch = (list(sides) for sides in node.params["dimension_numbers"])
    operands = list(node.operands)
    found = False
    for side in (0, 1):
        inner = made_by(operands[side], node, "transpose")
        if inner is None or not _only_in_dots(inner.result):
            continue
        permutation = inner.params["permutation"]
        free = [d for i, d in enumerate(permutation) if i not in (*contract[side], *batch[side])]
        if free != sorted(free):
            continue
        contract[side] = tuple(permutation[d] for d in contract[side])
        batch[side] = tuple(permutation[d] for d in batch[side])
        operands[side] = inner.operands[0]
        found = True
    if not found:
        return None
    numbers = (tuple(map(tuple, contract)), tuple(map(tuple, batch)))
    return rewrite(bind, *operands, **changed(node, dimension_numbers=numbers))


def _only_in_dots(value: Value) -> bool:
    """Whether products, and not too many of them to look at, are all that reads a value."""
    return len(value.uses) <= _MOST_DOTS and all(user.op == "dot_general" for user, _ in value.uses)


@movement_rule("transpose")
def transpose_of_dot(node: Node, ctx: PassContext) -> Outcome:
    """transpose(dot_general(a, b)) → dot_general(b, a) where it swaps the free dimensions of a and b

    Also where it reorders batch dimensions. Only where nothing else reads the product.
    """
    inner = made_by(node.operands[0], node, "dot_general")
    if inner is None or not used_once(inner.result) or not is_free(inner):
        return None
    (left, right), (left_batch, right_batch) = inner.params["dimension_numbers"]
    a, b = inner.operands
    batch = len(left_batch)
    middle = a.ndim - len(left)
    permutation = node.params["permutation"]
    order = permutation[:batch]
    if sorted(order) != list(range(batch)):
        return None
    batches = (tuple(left_batch[d] for d in order), tuple(right_batch[d] for d in order))
    rest = [*permutation[batch:]]
    free, swapped = [*range(batch, middle)], [*range(middle, inner.result.ndim)]
    if rest == free + swapped:
        numbers = ((tuple(left), tuple(right)), batches)
        return rewrite(bind, a, b, **changed(inner, dimension_numbers=numbers))
    product = swapped_product(inner, batches)
    return None if rest != swapped + free or product is None else rewrite(bind, b, a, **product)


def swapped_product(node: Node, batches: Batches | None = None) -> dict[str, Any] | None:
    """How to `bind` dot_general(b, a) in place of a node dot_general(a, b); None where precision forbids.

    Args:
        batches: the batch dimensions of a and of b, in the order wanted; in theirs otherwise.
    """
    precision = node.params.get("precision")
    if precision is not None and not isinstance(precision, (lax.Precision, tuple)):
        return None
    if isinstance(precision, tuple):
        precision = precision[::-1]
    (left, right), own = node.params["dimension_numbers"]
    first, second = own if batches is None else batches
    numbers = ((tuple(right), tuple(left)), (tuple(second), tuple(first)))
    return changed(node, dimension_numbers=numbers, precision=precision)


RULES: Final[tuple[Rule, ...]] = (dot_of_transpose, transpose_of_dot)
