"""Products with matrices of known form."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import fill
from lepton_jax.passes.simplify._chains.labels import is_plain_dot
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.passes.simplify._structure.apply import times
from lepton_jax.passes.simplify._structure.operators import Reader
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.profit import why_not_late
from lepton_jax.rewrite.rule import Outcome


@movement_rule("dot_general", level="reassociate", must_pay=True)
def product_with_structure(node: Node, ctx: PassContext) -> Outcome:
    """Products with a matrix whose form is known, without forming it.

    eye(n) @ A → A, diag(v) @ A → v[:, None] * A, A @ diag(v) → A * v, eye(n)[p] @ A → A[p],
    kron(A, B) @ x → two small products, (diag(d) + U @ V.T) @ x → d * x + U @ (V.T @ x),
    (eye(n) - ones((n, n)) / n) @ x → x - sum(x) / n, and what is composed of these with sums, differences,
    transposes and numbers.

    For one matrix without batches, contracted along one dimension. What its zeros would have made
    of infinities and NaN in the other operand, does not happen. Where `prepare` makes the matrix, of
    parameters alone, it stays whole unless each call gains: W + A @ B stays one weight.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only structure`.
    """
    contract, batch = node.params["dimension_numbers"]
    if len(contract[0]) != 1 or batch[0] or not is_plain_dot(node):
        return None
    for side in (0, 1):
        matrix, other = node.operands[side], node.operands[1 - side]
        reader = Reader()
        recipe = reader.read(matrix)
        if recipe is None:
            continue
        made = rewrite(
            times,
            other,
            *reader.values,
            recipe=recipe,
            axis=contract[1 - side][0],
            turned=contract[side][0] == 0,
            first=side == 0,
            precision=node.params.get("precision"),
            accumulate=node.params.get("preferred_element_type"),
        )
        if reason := why_not_late(made, node, ctx):
            ctx.miss("product-with-structure", node, reason)
            return None
        return made
    return None


@movement_rule("dot_general", level="reassociate")
def product_with_zeros(node: Node, ctx: PassContext) -> Outcome:
    """zeros @ A → zeros, for A that is known to be finite (integers are)"""
    a, b = node.operands
    for zero, other in ((a, b), (b, a)):
        if (zero.is_const or zero.op == "broadcast_in_dim") and facts_of(zero).is_zero:
            return fill(node, 0) if _is_finite(other) else None
    return None


def _is_finite(value: Value) -> bool:
    return facts_of(value).finite


RULES: Final[tuple[Rule, ...]] = (product_with_zeros, product_with_structure)
