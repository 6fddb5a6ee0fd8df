"""Sums of several terms in the gradients of layer norms, each added up in the way that is cheapest for it."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._gradients.weighted import Axes, bare, exists, is_candidate, scaled, weighted
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_TERMS: Final = 4
_VIEWS: Final = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims")
_SUMS: Final = ("add", "add_any", "sub", "neg")


@movement_rule("reduce_sum", level="reassociate", backends=("cpu",))
def sum_of_terms(node: Node, ctx: PassContext) -> Outcome:
    """sum(g * w * r + (x - mean) * k, columns) → sum(g * w * r, columns) + sum((x - mean) * k, columns)

    This is what a layer norm's gradient hands on to the mean: as it stands, everything is read and computed
    once more before the result can be. Alone, the first term is a product with a vector (`sum-of-weighted`)
    and the second takes no sum at all (`sum-of-centred`). It fires where every term is one of these.

    Measured on a 2-core CPU with `python benchmarks/rewrites.py --only losses`.
    """
    (source,) = node.operands
    if source.node is None or source.node.op not in _SUMS or not is_candidate(node):
        return None
    axes, terms = tuple(node.params["axes"]), _terms(source)
    if terms is None or len(terms) < 2:
        return None
    kinds = {_kind(value, axes) for value, _ in terms}
    if "other" in kinds or "product" not in kinds:
        return None
    signs = tuple(negative for _, negative in terms)
    return rewrite(added, *(value for value, _ in terms), signs=signs, axes=axes)


@movement_rule("reduce_sum", level="reassociate", backends=("cpu",))
def sum_of_centred(node: Node, ctx: PassContext) -> Outcome:
    """sum((x - mean) * k, columns) → (sum(x, columns) - n * mean) * k, where sum(x, columns) is there

    It is nothing but rounding, or NaN where x is.
    """
    if not is_candidate(node):
        return None
    (source,), axes = node.operands, tuple(node.params["axes"])
    found = weighted(source, axes)
    if found is None or found.weights or len(found.full) != 1:
        return None
    parts = _sum_and_mean(found.full[0], axes)
    if parts is None:
        return None
    return rewrite(
        centred,
        *parts,
        *found.apart,
        under=found.divisors[1],
        axes=axes,
        shape=source.shape,
        negative=found.negative,
    )


def added(*terms: jax.Array, signs: tuple[bool, ...], axes: Axes) -> jax.Array:
    """The sums over axes of several terms, the signed ones taken off."""
    total: Any = None
    for term, negative in zip(terms, signs, strict=True):
        part = lax.reduce_sum(-term if negative and total is None else term, axes)
        total = part if total is None else total - part if negative else total + part
    result: jax.Array = total
    return result


def centred(
    total: Any, mean: Any, *apart: Any, under: int, axes: Axes, shape: tuple[int, ...], negative: bool
) -> jax.Array:
    """What is left of a sum when its mean is taken off each element, times what stands apart."""
    count = jnp.asarray(math.prod(shape[d] for d in axes), total.dtype)
    rest = total - count * lax.reshape(mean, total.shape)
    result: jax.Array = scaled(
        rest, apart, under, tuple(d for d in range(len(shape)) if d not in axes), shape
    )
    return -result if negative else result


def _terms(source: Value) -> list[tuple[Value, bool]] | None:
    """The terms of a sum, and whether each is taken off; None where there are too many."""
    found: list[tuple[Value, bool]] = []
    stack = [(source, False)]
    while stack:
        value, negative = stack.pop()
        node = value.node
        if node is not None and node.op in _SUMS and all(v.shape == source.shape for v in node.operands):
            if node.op != "neg":
                stack.append((node.operands[1], negative != (node.op == "sub")))
            stack.append((node.operands[0], negative != (node.op == "neg")))
        else:
            found.append((value, negative))
        if len(found) + len(stack) > _MOST_TERMS:
            return None
    return found


def _kind(term: Value, axes: Axes) -> str:
    """Whether a term is a `product` with weights of an array that is there, `centred`, or `other`."""
    found = weighted(term, axes)
    if found is None or len(found.full) != 1:
        return "other"
    if found.weights:
        return "product" if exists(found.full[0]) else "other"
    return "other" if _sum_and_mean(found.full[0], axes) is None else "centred"


def _sum_and_mean(value: Value, axes: Axes) -> tuple[Value, Value] | None:
    """Of x - mean(x, axes), the sum of x over the axes and the mean."""
    node = value.node
    if node is None or node.op != "sub" or node.operands[0].shape != value.shape:
        return None
    x, mean = node.operands[0], bare(node.operands[1], value.ndim)
    if mean.shape != tuple(1 if d in axes else n for d, n in enumerate(value.shape)):
        return None  # a mean along other axes, such as that of rows taken off columns
    if mean.dtype != x.dtype:
        return None
    scale, at = 1.0, mean
    while (maker := at.node) is not None and maker.op != "reduce_sum":
        if maker.op in ("mul", "div"):
            first, second = maker.operands
            by, at = (first, second) if maker.op == "mul" and first.is_const else (second, first)
            number = facts_of(by).splat
            if number is None or not float(number):
                return None
            scale = scale * float(number) if maker.op == "mul" else scale / float(number)
        elif maker.op in _VIEWS and len(maker.operands) == 1 and maker.operands[0].aval.size == at.aval.size:
            at = maker.operands[0]
        else:
            return None
    if maker is None or maker.operands[0] is not x or tuple(maker.params["axes"]) != axes:
        return None
    number_of = math.prod(value.shape[d] for d in axes)
    return (at, mean) if abs(scale * number_of - 1) < 1e-3 else None


RULES: Final[tuple[Rule, ...]] = (sum_of_terms, sum_of_centred)
