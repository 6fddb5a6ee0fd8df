"""Recognising attention that library kernels know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import dot_axes, dot_numbers
from lepton_jax.passes.fuse._attention.bands import band_of, within
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.shape import FEATURE, Axes
from lepton_jax.passes.fuse._attention.standard import NotStandardError, Standard
from lepton_jax.passes.fuse._attention.terms import result_of
from lepton_jax.passes.fuse._attention.views import VIEWS, moved, narrowed

_SAME: Final = frozenset({"convert_element_type", "copy", "copy_p"})
_LOW: Final = -1e4


def standard(found: Found) -> Standard | str:
    """What a kernel has to know, or why it cannot compute this attention."""
    try:
        made = _products(found)
        _scores(found, made)
        made.result_axes = _product(found, made)
    except NotStandardError as error:
        return str(error)
    return made


def _products(found: Found) -> Standard:
    if found.masked or found.rows:
        raise NotStandardError("the weights are masked or multiplied after the exponential")
    steps = [node for node, _, _ in found.builder.steps if node.op == "dot_general"]
    if len(steps) != 1:
        raise NotStandardError("the scores are made of several products")
    (score,) = steps
    contract, _ = dot_numbers(score)
    if len(contract[0]) != 1 or _precise(score) or _precise(found.dot):
        raise NotStandardError("a product has a precision or sums over several axes")
    labels = next(marks for node, marks, _ in found.builder.steps if node is score)
    origin = dot_axes(score)[2]
    query, key = labels
    assert query is not None and key is not None
    side = 0 if origin[query][0] is not None else 1
    sizes = score.result.shape
    axes: list[list[tuple[int, ...]]] = [[(FEATURE,)] * v.ndim for v in score.operands]
    for atom, places in enumerate(origin):
        for position, place in enumerate(places):
            if place is not None:
                axes[position][place] = (atom,) if sizes[atom] != 1 else ()
    if None in origin[query] and origin[query][1 - side] is not None:
        raise NotStandardError("queries and keys are on one side of the product")
    shared = [a for a, places in enumerate(origin) if None not in places]
    groups = [a for a, places in enumerate(origin) if places[1 - side] is None and a != query]
    if any(a != key and places[side] is None for a, places in enumerate(origin)):
        raise NotStandardError("each query has keys of its own")
    return Standard(
        score=score,
        queries=score.operands[side],
        keys=score.operands[1 - side],
        values=found.dot.operands[1 - found.side],
        axes={score.result: tuple((a,) if sizes[a] != 1 else () for a in range(len(sizes)))},
        query_axes=tuple(axes[side]),
        key_axes=tuple(axes[1 - side]),
        value_axes=(),
        result_axes=(),
        sizes=sizes,
        query=query,
        key=key,
        shared=tuple(a for a in shared if sizes[a] != 1),
        groups=tuple(a for a in groups if sizes[a] != 1),
    )


def _precise(dot: Node) -> bool:
    """Whether a product is to be more precise than its platform's usual; halves have no more to give."""
    if all(v.dtype.itemsize <= 2 for v in dot.operands):
        return False
    return any(x in str(dot.params.get("precision")) for x in ("HIGH", "F32", "F64"))


def _scores(found: Found, made: Standard) -> None:
    """Follow the products to the scores that are exponentiated, and from there to the weights."""
    for node, _, _ in found.builder.steps:
        inside = [v for v in node.operands if v in made.axes]
        if node is made.score or not inside:
            continue
        if len(inside) != 1:
            raise NotStandardError(f"{node.op} of two arrays of scores")
        _step(node, inside[0], made)
    if found.scores not in made.axes:
        raise NotStandardError("the scores do not come from the product alone")
    made.axes[found.exp.result] = made.axes[found.scores]


def _step(node: Node, value: Value, made: Standard) -> None:
    axes = made.axes[value]
    others = [v for v in node.operands if v is not value]
    if node.op in VIEWS:
        views = moved(node, axes, made.sizes)
        if views is None:
            raise NotStandardError(f"{node.op} repeats or cuts axes of the scores")
        axes = views
    elif node.op in ("mul", "div"):
        _scaled(node, value, others, made)
    elif node.op == "tanh" and not made.biases and not made.conditions and made.cap is None:
        made.cap = 1.0
    elif node.op in ("add", "sub", "add_any"):
        if node.op == "sub" and node.operands[0] is not value:
            raise NotStandardError("the scores are subtracted from something")
        _biased(others[0], axes, -1.0 if node.op == "sub" else 1.0, made)
    elif node.op == "select_n" and len(node.operands) == 3 and node.operands[0] is not value:
        _masked(node, value, axes, made)
    elif node.op not in _SAME:
        raise NotStandardError(f"{node.op} of the scores")
    made.axes[node.result] = axes


def _scaled(node: Node, value: Value, others: list[Value], made: Standard) -> None:
    splat = facts_of(others[0]).splat if others else None
    if splat is None or np.iscomplexobj(splat) or (node.op == "div" and node.operands[0] is not value):
        raise NotStandardError(f"{node.op} of the scores by something that is no constant")
    factor = 1 / float(splat) if node.op == "div" else float(splat)
    if not math.isfinite(factor) or factor <= 0 or made.conditions:
        raise NotStandardError("the masked scores are scaled")
    if made.cap is not None:
        made.cap *= factor
    else:
        made.scale *= factor
    made.biases = [(v, axes, f * factor) for v, axes, f in made.biases]


def _biased(bias: Value, axes: Axes, factor: float, made: Standard) -> None:
    splat = facts_of(bias).splat
    if splat is not None and np.isfinite(splat):
        return  # softmax does not see it
    mask = _masking(bias, axes, made) if factor > 0 else None
    if mask is None:
        made.biases.append((*narrowed(bias, axes), factor))


def _masking(bias: Value, axes: Axes, made: Standard) -> bool | None:
    """Take a bias of nothing and very low numbers as a mask."""
    node = bias.node
    while node is not None and node.op in ("broadcast_in_dim", "convert_element_type"):
        if node.op == "broadcast_in_dim":
            narrow: list[tuple[int, ...]] = [()] * node.operands[0].ndim
            for d, place in enumerate(int(d) for d in node.params["broadcast_dimensions"]):
                narrow[d] = axes[place] if node.operands[0].shape[d] != 1 else ()
            axes = tuple(narrow)
        node = node.operands[0].node
    if node is None or node.op != "select_n" or len(node.operands) != 3:
        return None
    low, high = (facts_of(v) for v in node.operands[1:])
    for one, other, negated in ((low, high, False), (high, low, True)):
        if one.splat is not None and float(one.splat) < _LOW and other.is_zero:
            _take(node.operands[0], axes, negated, float(one.splat), made)
            return True
    return None


def _masked(node: Node, value: Value, axes: Axes, made: Standard) -> None:
    condition, off, on = node.operands
    fill = facts_of(on if off is value else off).splat
    if fill is None or not float(fill) < _LOW:
        raise NotStandardError("masked scores are not very low")
    if condition.ndim != value.ndim:
        raise NotStandardError("the mask is a single number")
    _take(condition, axes, off is value, float(fill), made)


def _take(condition: Value, axes: Axes, negated: bool, fill: float, made: Standard) -> None:
    if made.conditions and fill != made.fill:
        raise NotStandardError("masks fill the scores with different numbers")
    made.fill = fill
    made.conditions.append(condition)
    for part, places, opposite in _parts(condition, axes, negated, 0):
        labels = tuple(places.index((a,)) if (a,) in places else None for a in (made.query, made.key))
        band = band_of(part, (labels[0], labels[1]), opposite)
        if band is None:
            made.masks.append((part, places, opposite))
        else:
            made.band = within(made.band, band)


def _parts(mask: Value, axes: Axes, negated: bool, depth: int) -> Iterator[tuple[Value, Axes, bool]]:
    """The masks that a mask is the conjunction of."""
    mask, axes = narrowed(mask, axes)
    node = mask.node
    if node is not None and depth < 16:
        if node.op == "not":
            yield from _parts(node.operands[0], axes, not negated, depth + 1)
            return
        if node.op == ("or" if negated else "and"):
            for part in node.operands:
                own = tuple(a if n != 1 else () for a, n in zip(axes, part.shape, strict=True))
                yield from _parts(part, own, negated, depth + 1)
            return
    yield mask, axes, negated


def _product(found: Found, made: Standard) -> Axes:
    """The axes of the product of weights and values; those of the values are set."""
    axes = made.axes[found.exp.result]
    value = found.exp.result
    for node in found.moves:
        if node.op in VIEWS:
            views = moved(node, axes, made.sizes)
            if views is None:
                raise NotStandardError("the weights are moved in a way that is not followed")
            axes = views
        made.axes[node.result] = axes
        value = node.result
    dot = found.dot
    weights, values = dot.operands[found.side], dot.operands[1 - found.side]
    if value.shape != weights.shape:
        raise NotStandardError("the weights are moved in a way that is not followed")
    own: list[tuple[int, ...]] = [(FEATURE,)] * values.ndim
    contract, batch = dot_numbers(dot)
    own[contract[1 - found.side][0]] = axes[contract[found.side][0]]
    for mine, theirs in zip(batch[found.side], batch[1 - found.side], strict=True):
        own[theirs] = axes[mine]
    made.value_axes = tuple(own)
    if axes[contract[found.side][0]] != (made.key,) or own.count((FEATURE,)) != 1:
        raise NotStandardError("the values have other axes than the keys")
    if sorted(a for part in own for a in part) != sorted((FEATURE, made.key, *made.shared)):
        raise NotStandardError("keys and values belong to different heads")
    return result_of(dot, found.side, axes, made.value_axes)
