"""Exponentials of log-probabilities."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._losses.logs import behind, is_shifted, uncast
from lepton_jax.passes.simplify._algebra.operands import is_float, made_by
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Places = tuple[int, ...]
"""For each dimension of a value, the dimension of the logits that it goes with; -1 for those of size one."""


@movement_rule("exp", level="reassociate")
def exp_of_log_softmax(node: Node, ctx: PassContext) -> Outcome:
    """exp(x - logsumexp(x)) → exp(z) / sum(exp(z)), where z is x - max(x); also exp(log_softmax(x))

    One exponential for each element instead of two, and the rules for softmax apply, attention among them.
    1.1× (`python benchmarks/rewrites.py --only losses`).
    """
    minus = made_by(node.operands[0], "sub")
    if minus is None or not is_float(node.result) or minus.operands[1].ndim != node.result.ndim:
        return None
    x, norm = minus.operands
    view, top = _parts(behind(norm))
    logarithm = made_by(behind(view), "log")
    total = None if logarithm is None else made_by(behind(logarithm.operands[0]), "reduce_sum")
    power = None if total is None else made_by(uncast(total.operands[0]), "exp")
    if logarithm is None or total is None or power is None or power.result.aval != node.result.aval:
        return None
    z = power.operands[0]
    shift = made_by(z, "sub")
    if shift is None or not is_shifted(z):
        ctx.miss("exp-of-log-softmax", node, "the sum of exponentials is not stabilised")
        return None
    whole = tuple(d if length != 1 else -1 for d, length in enumerate(z.shape))
    inner = _places(norm, behind(norm), whole)
    axes = tuple(map(int, total.params["axes"]))
    rows = tuple(d for d in whole if d not in axes and d >= 0)
    at_log = _places(view, logarithm.result, inner)
    at_sum = _places(logarithm.operands[0], total.result, at_log)
    if at_sum is None or tuple(d for d in at_sum if d >= 0) != rows:
        return None
    if top is None:
        return rewrite(quotient, power.result, total.result, axes=axes) if x is z else None
    base = behind(top)
    if x is not shift.operands[0] or base is not behind(shift.operands[1]):
        return None
    if _places(top, base, inner) != _places(shift.operands[1], base, whole):
        return None
    return rewrite(quotient, power.result, total.result, axes=axes)


def quotient(power: jax.Array, total: jax.Array, *, axes: tuple[int, ...]) -> jax.Array:
    """Exponentials divided by their sums over some axes."""
    sums = lax.expand_dims(total.astype(power.dtype), axes)
    return lax.div(power, jnp.broadcast_to(sums, power.shape))


def _parts(base: Value) -> tuple[Value, Value | None]:
    """The logarithm in a normaliser, or a view of it, and what is added to it, of the same shape."""
    added = made_by(base, "add")
    if added is not None and added.operands[0].shape == added.operands[1].shape:
        for one, other in (added.operands, added.operands[::-1]):
            if made_by(behind(one), "log") is not None:
                return one, other
    return base, None


def _places(value: Value, source: Value, places: Places | None) -> Places | None:
    """Where the dimensions of `source` are, if a value is a view of it whose own are at `places`."""
    while value is not source and places is not None:
        node = value.node
        assert node is not None
        below = node.operands[0]
        if node.op == "broadcast_in_dim":
            dims = tuple(map(int, node.params["broadcast_dimensions"]))
            found = zip(dims, below.shape, strict=True)
            places = tuple(places[d] if length != 1 else -1 for d, length in found)
        elif node.op not in ("stop_gradient", "convert_element_type"):
            places = _reshaped(below.shape, value.shape, places)
        value = below
    return places


def _reshaped(below: tuple[int, ...], above: tuple[int, ...], places: Places) -> Places | None:
    """Places through a reshape that only adds or takes away dimensions of size one."""
    kept = [place for place, length in zip(places, above, strict=True) if length != 1]
    if [n for n in below if n != 1] != [n for n in above if n != 1]:
        return None
    rest = iter(kept)
    return tuple(next(rest) if length != 1 else -1 for length in below)


RULES: Final[tuple[Rule, ...]] = (exp_of_log_softmax,)
