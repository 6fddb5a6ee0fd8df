"""A weight as codes of few bits and thin factors of what these lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from lepton_jax.ir.graph import Value
from lepton_jax.numerics import nbytes
from lepton_jax.numerics.quantize import decode
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes.compress._low_rank.choosing import Choice
from lepton_jax.passes.compress._low_rank.form import Form, apply_factors
from lepton_jax.passes.compress._low_rank.ranks import RULE
from lepton_jax.passes.quantize._quantize.choice import Plan, plan
from lepton_jax.passes.quantize._quantize.weights import Storage, coded
from lepton_jax.passes.quantize.quantize import Quantize
from lepton_jax.rewrite import PassContext, rewrite
from lepton_jax.rewrite.replacement import write, write_before

if TYPE_CHECKING:
    from lepton_jax.passes.compress.low_rank import LowRank


class Residual(NamedTuple):
    """How what factors leave is kept.

    Attributes:
        plan: of the product of codes.
        nbytes: of codes and scales, for one layer.
    """

    plan: Plan
    nbytes: int


def residual_of(use: WeightUse, settings: LowRank, ctx: PassContext) -> Residual | str:
    """How a use keeps what factors leave, or why it cannot."""
    if use.node.op == "gather":
        return "tables have no residual: take factors or codes"
    found = plan(use, Quantize(weights=settings.residual, group=settings.group), ctx)
    if isinstance(found, str):
        return found
    return Residual(found, nbytes(use.weight.shape, found.how.storage.scheme))


def write_residual(use: WeightUse, choice: Choice, found: Residual, hessian: Sequence[Value]) -> None:
    """Put a product of codes and one of factors in the place of an operation."""
    node, how = use.node, found.plan.how
    parts = rewrite(_parts, use.weight, *hessian, form=choice.form, rank=choice.rank, storage=how.storage)
    rest, *factors = write_before(parts, node, RULE)
    made = rewrite(
        _both,
        *node.operands,
        rest,
        *factors,
        side=use.side,
        form=choice.form,
        product=found.plan.fun,
        how=how,
    )
    write(made, node, RULE)


def _parts(
    weight: jax.Array, *hessian: jax.Array, form: Form, rank: int, storage: Storage
) -> tuple[jax.Array, ...]:
    """What is put into codes, and the factors of what these lose.

    Factors of the weight take its largest directions first, so that codes have little to cover (SVDQuant, Li
    et al., arXiv:2411.05007); once there are codes, factors are made anew of what they lose (LQ-LoRA, Guo et
    al., arXiv:2311.12023).
    """
    seen = hessian[0] if hessian else None
    rest = weight - form.weight(*form.factors(weight, seen, rank))
    kept = decode(*coded(rest, storage), storage.scheme, weight.dtype)
    return rest, *form.factors(weight - kept, seen, rank)


def _both(
    lhs: jax.Array,
    rhs: jax.Array,
    rest: jax.Array,
    *factors: jax.Array,
    side: int,
    form: Form,
    product: Any,
    how: Any,
) -> jax.Array:
    """The sum of both products."""
    pair, x = ((rest, rhs), rhs) if side == 0 else ((lhs, rest), lhs)
    whole: jax.Array = product(*pair, how=how)
    return whole + apply_factors(x, *factors, form=form)
