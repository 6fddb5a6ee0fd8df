"""The backward half of attention in a program that does not need the forward one's result.

All that a gradient reads of the forward half are the weights, so the product of weights and values is
gone. It is put back: the blocked form makes it on its way to the sums of the exponentials, and the sums over
the keys in the backward half follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import ELEMENTWISE, dot_axes, dot_numbers
from lepton_jax.passes.fuse._attention.path import ancestors, drawn
from lepton_jax.passes.fuse._attention.region import Region
from lepton_jax.passes.fuse._attention.shape import FEATURE, Axes
from lepton_jax.passes.fuse._attention.views import VIEWS, moved, root
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import traced

_MOST: Final = 64
_FAR: Final = 16


def missing_product(exp: Node) -> Node | None:
    """The product of weights and values that a gradient implies, in no graph yet; None where none is.

    Args:
        exp: what exponentiates the scores.
    """
    summed = [user for user in exp.result.users() if user.op == "reduce_sum"]
    if len(summed) != 1 or len(summed[0].params["axes"]) != 1:
        return None
    key = int(summed[0].params["axes"][0])
    quotients = [u for u in exp.result.users() if u.op == "div" and u.operands[0] is exp.result]
    weights = quotients[0].result if quotients else exp.result
    for product, axes in _products(exp):
        values = _values(product, axes, key)
        if values is not None:
            return _product(weights, key, *values)
    return None


def withdraw(node: Node) -> None:
    """Forget a node that was put into no graph."""
    for position, operand in enumerate(node.operands):
        operand.uses.pop((node, position), None)


def is_random(region: Region) -> bool:
    """Whether random numbers meet the weights, as in dropout."""
    around = {v for value in region.labels for user in value.users() for v in user.operands}
    return any(drawn(v) for v in around - set(region.labels))


def _products(exp: Node) -> Iterator[tuple[Node, Axes]]:
    """Products that meet the exponentials, or what is made of them, element by element; with their axes."""
    start: Axes = tuple((d,) for d in range(exp.result.ndim))
    sizes = exp.result.shape
    known: dict[Value, Axes] = {exp.result: start}
    before = set(ancestors(exp.result, _MOST))
    queue = [exp.result]
    for value in queue:
        axes = known[value]
        for user in value.users() if len(known) < _MOST else ():
            if len(user.results) != 1 or user.result in known:
                continue
            if user.op in ELEMENTWISE and user.result.shape == value.shape:
                for other in user.operands:
                    if other is not value and other.shape == value.shape and other not in known:
                        yield from _behind(other, axes, before)
                views: Axes | None = axes
            else:
                views = moved(user, axes, sizes) if user.op in VIEWS else None
            if views is not None:
                known[user.result] = views
                queue.append(user.result)


def _behind(value: Value, axes: Axes, known: set[Node]) -> Iterator[tuple[Node, Axes]]:
    """The products that a value is made of element by element."""
    stack, seen = [(value, axes)], 0
    while stack and seen < _FAR:
        seen += 1
        source, places = root(*stack.pop())
        node = source.node
        if node is None or node in known:
            continue
        if node.op == "dot_general":
            yield node, places
        elif node.op in ELEMENTWISE:
            stack += [(v, places) for v in node.operands if v.shape == source.shape]


def _values(product: Node, axes: Axes, key: int) -> tuple[Value, Axes] | None:
    """The operand of a product that has the keys, with its axes, if the other one has not."""
    contract, _ = dot_numbers(product)
    if len(contract[0]) != 1:
        return None
    origin = dot_axes(product)[2]
    places = [(from_, part) for from_, part in zip(origin, axes, strict=True) if part == (key,)]
    for side in (0, 1):
        if len(places) != 1 or places[0][0][1 - side] is not None:
            continue
        operand = product.operands[side]
        found: list[tuple[int, ...]] = [(FEATURE,)] * operand.ndim
        for from_, part in zip(origin, axes, strict=True):
            place = from_[side]
            if place is not None:
                found[place] = part
        if all(len(part) <= 1 for part in found):
            return operand, tuple(found)
    return None


def _product(weights: Value, key: int, values: Value, axes: Axes) -> Node | None:
    """Weights times values, over the keys."""
    pairs = [(part[0], d) for d, part in enumerate(axes) if part not in ((), (FEATURE,), (key,))]
    narrow = [u.result for u in weights.users() if u.op == "convert_element_type"]
    same = [v for v in (weights, *narrow) if v.dtype == values.dtype]
    if not same:
        return None
    (weights, *_), maker = same, same[0].node
    assert maker is not None
    batch = (tuple(a for a, _ in pairs), tuple(d for _, d in pairs))
    made = rewrite(_multiply, weights, values, numbers=(((key,), (axes.index((key,)),)), batch))
    (equation,) = _jax.parts(traced(made, maker))[3]
    return Node(
        "dot_general",
        equation.primitive,
        [weights, values],
        [equation.outvars[0].aval],
        equation.params,
        source=maker.source,
        context=maker.context,
    )


def _multiply(weights: Any, values: Any, *, numbers: Any) -> Any:
    return lax.dot_general(weights, values, numbers, preferred_element_type=values.dtype)
