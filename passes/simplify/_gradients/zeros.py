"""Arrays padded with zeros: what is done to them is done to what is in the middle."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import bind, is_free, made_by, movement_rule, size
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

Widths = tuple[tuple[int, int], ...]
"""For each dimension how many zeros stand before and after."""


class Padded(NamedTuple):
    """An array with zeros around it."""

    inner: Value
    widths: Widths


def padded(value: Value, node: Node) -> Padded | None:
    """What a value pads with zeros on the outside."""
    pad = made_by(value, node, "pad")
    if pad is None or 0 in pad.operands[0].shape or not jnp.issubdtype(value.dtype, np.inexact):
        return None
    config = [tuple(map(int, widths)) for widths in pad.params["padding_config"]]
    if any(low < 0 or high < 0 or within for low, high, within in config):
        return None
    if not facts_of(pad.operands[1]).is_zero:
        return None
    return Padded(pad.operands[0], tuple((low, high) for low, high, _ in config))


def _may_drop(zeros: Value, other: Value) -> bool:
    """Whether what stands beside zeros need not be looked at: differentiation made them, or it is finite."""
    maker = zeros.node
    return (maker is not None and "transpose(" in maker.scope) or facts_of(other).finite


def pad(x: jax.Array, widths: Widths) -> jax.Array:
    """`x` with zeros around it."""
    if not any(map(any, widths)):
        return x
    return lax.pad(x, np.zeros((), x.dtype), [(low, high, 0) for low, high in widths])


def middle(x: jax.Array, widths: Widths) -> jax.Array:
    """The part of `x` that is not in the margins of these widths."""
    if not any(map(any, widths)):
        return x
    start = [low for low, _ in widths]
    limit = [length - high for length, (_, high) in zip(x.shape, widths, strict=True)]
    return lax.slice(x, start, limit)


@movement_rule("dot_general", level="reassociate", must_pay=True)
def dot_of_pad(node: Node, ctx: PassContext) -> Outcome:
    """pad(A) @ B → pad(A @ B), and over padded dimensions A @ (the middle of B)

    What a slice of a product leaves when it is differentiated: rows of zeros. What stands in B beside them
    is not looked at any more, as the slice did not; a NaN there would have made NaN of the zeros.
    So only where differentiation has made the zeros, or B is known to be finite.
    """
    if not is_free(node):
        return None
    for side in (0, 1):
        found = padded(node.operands[side], node)
        other = node.operands[1 - side]
        if found is not None and _may_drop(node.operands[side], other):
            params = tuple(sorted(node.params.items()))
            return rewrite(
                dot_of_middle,
                found.inner,
                other,
                widths=found.widths,
                side=side,
                primitive=node.primitive,
                params=params,
            )
    return None


def dot_of_middle(
    inner: jax.Array,
    other: jax.Array,
    *,
    widths: Widths,
    side: int,
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> jax.Array:
    """The product of `inner` with zeros around it and `other`, made of what is not zero."""
    contract, batch = dict(params)["dimension_numbers"]
    margins = [(0, 0)] * other.ndim
    for own in (contract, batch):
        for mine, theirs in zip(own[side], own[1 - side], strict=True):
            margins[theirs] = widths[mine]
    part = middle(other, tuple(margins))
    factors = (inner, part) if side == 0 else (part, inner)
    around = [widths[d] for d in batch[side]]
    for at, x in enumerate(factors):
        free = [d for d in range(x.ndim) if d not in contract[at] and d not in batch[at]]
        around += [widths[d] if at == side else (0, 0) for d in free]
    return pad(bind(*factors, primitive=primitive, params=params), tuple(around))


@movement_rule("mul", "div", level="reassociate")
def product_with_pad(node: Node, ctx: PassContext) -> Outcome:
    """pad(x) * y → pad(x * the middle of y), and pad(x) / y likewise

    Zeros that differentiation has made stay zeros; what stands in y beside x is not looked at any more.
    """
    for side in (0, 1) if node.op == "mul" else (0,):
        found = padded(node.operands[side], node)
        other = node.operands[1 - side]
        if (
            found is None
            or other.ndim not in (0, node.result.ndim)
            or not _may_drop(node.operands[side], other)
        ):
            continue
        if found.inner.ndim != node.result.ndim or node.operands[side].shape != node.result.shape:
            continue
        return rewrite(
            product_of_middle,
            found.inner,
            other,
            widths=found.widths,
            side=side,
            primitive=node.primitive,
            params=tuple(sorted(node.params.items())),
        )
    return None


def product_of_middle(
    inner: jax.Array,
    other: jax.Array,
    *,
    widths: Widths,
    side: int,
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> jax.Array:
    """The product or quotient of `inner` with zeros around it and `other`."""
    if other.ndim:
        wide = [length + low + high for length, (low, high) in zip(inner.shape, widths, strict=True)]
        pairs = zip(other.shape, wide, widths, strict=True)
        other = middle(other, tuple(own if length == full else (0, 0) for length, full, own in pairs))
    factors = (inner, other) if side == 0 else (other, inner)
    return pad(bind(*factors, primitive=primitive, params=params), widths)


@movement_rule("neg", "convert_element_type", "copy", "real", "imag", "transpose", level="reassociate")
def map_of_pad(node: Node, ctx: PassContext) -> Outcome:
    """f(pad(x)) → pad(f(x)) for what keeps zeros zero, transposes included"""
    found = padded(node.operands[0], node)
    if found is None or not is_free(node):
        return None
    if not jnp.issubdtype(node.result.dtype, np.inexact):
        return None
    params = tuple(sorted(node.params.items()))
    order = node.params["permutation"] if node.op == "transpose" else range(node.result.ndim)
    widths = tuple(found.widths[d] for d in order)
    return rewrite(mapped, found.inner, primitive=node.primitive, params=params, widths=widths)


def mapped(x: jax.Array, *, primitive: Any, params: tuple[tuple[str, Any], ...], widths: Widths) -> jax.Array:
    """The operation on `x`, with zeros around its result."""
    return pad(bind(x, primitive=primitive, params=params), widths)


@movement_rule("reduce_sum", level="reassociate")
def sum_of_pad(node: Node, ctx: PassContext) -> Outcome:
    """reduce_sum(pad(x), axes) → pad(reduce_sum(x, axes)): zeros add nothing"""
    found = padded(node.operands[0], node)
    if found is None or not is_free(node):
        return None
    axes = {int(axis) for axis in node.params["axes"]}
    widths = tuple(own for d, own in enumerate(found.widths) if d not in axes)
    params = tuple(sorted(node.params.items()))
    return rewrite(mapped, found.inner, primitive=node.primitive, params=params, widths=widths)


@movement_rule("select_n", level="exact")
def choice_of_pad(node: Node, ctx: PassContext) -> Outcome:
    """select(mask, zeros, pad(x)) → pad(select(the middle of mask, zeros, x)), as of a relu"""
    if len(node.operands) != 3 or node.operands[0].shape != node.result.shape:
        return None
    mask, *cases = node.operands
    for side in (0, 1):
        found = padded(cases[side], node)
        if found is None or not facts_of(cases[1 - side]).is_positive_zero:
            continue
        return rewrite(chosen, mask, found.inner, widths=found.widths, side=side)
    return None


def chosen(mask: jax.Array, x: jax.Array, *, widths: Widths, side: int) -> jax.Array:
    """`x` where the mask selects it, zero elsewhere, and zeros around it."""
    zero = lax.full_like(x, 0)
    return pad(lax.select_n(middle(mask, widths), *((x, zero) if side == 0 else (zero, x))), widths)


@movement_rule("add_any", "add", "sub", level="exact")
def sum_of_like_pads(node: Node, ctx: PassContext) -> Outcome:
    """pad(x) + pad(y) → pad(x + y) where both have the same margins"""
    a, b = (padded(v, node) for v in node.operands)
    if a is None or b is None or a.widths != b.widths or a.inner.shape != b.inner.shape:
        return None
    params = tuple(sorted(node.params.items()))
    return rewrite(added, a.inner, b.inner, primitive=node.primitive, params=params, widths=a.widths)


def added(
    x: jax.Array, y: jax.Array, *, primitive: Any, params: tuple[tuple[str, Any], ...], widths: Widths
) -> jax.Array:
    """The sum or difference of two arrays, with zeros around it."""
    return pad(bind(x, y, primitive=primitive, params=params), widths)


@movement_rule("broadcast_in_dim", "squeeze", "reshape", level="exact")
def view_of_pad(node: Node, ctx: PassContext) -> Outcome:
    """broadcast_in_dim(pad(x)) → pad(broadcast_in_dim(x)), and reshapes that keep what is padded"""
    found = None if len(node.operands) != 1 else padded(node.operands[0], node)
    dims = None if found is None or not is_free(node) else _places(node)
    if found is None or dims is None:
        return None
    wide, shape = node.operands[0].shape, list(node.result.shape)
    widths = [(0, 0)] * len(shape)
    for d, own in enumerate(found.widths):
        if not any(own):
            continue
        if d not in dims or wide[d] != shape[dims[d]]:
            return None
        widths[dims[d]] = own
        shape[dims[d]] = found.inner.shape[d]
    key = {"squeeze": None, "broadcast_in_dim": "shape", "reshape": "new_sizes"}[node.op]
    params = dict(node.params) if key is None else {**node.params, key: tuple(shape)}
    return rewrite(
        mapped,
        found.inner,
        primitive=node.primitive,
        params=tuple(sorted(params.items())),
        widths=tuple(widths),
    )


def _places(node: Node) -> dict[int, int] | None:
    """Where a view puts the dimensions of its operand that it keeps."""
    wide, shape = node.operands[0].shape, node.result.shape
    if node.op == "broadcast_in_dim":
        return {d: int(i) for d, i in enumerate(node.params["broadcast_dimensions"])}
    if node.op == "reshape" and node.params["dimensions"] is not None:
        return None
    known = {(size(shape[:i]), length): i for i, length in enumerate(shape) if length != 1}
    places = {d: known.get((size(wide[:d]), length)) for d, length in enumerate(wide)}
    return {d: i for d, i in places.items() if i is not None}


RULES: Final[tuple[Rule, ...]] = (
    dot_of_pad,
    product_with_pad,
    map_of_pad,
    sum_of_pad,
    choice_of_pad,
    sum_of_like_pads,
    view_of_pad,
)
