"""Scales and shifts after a product, into its weight and one bias."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import RETURN, Node, Value
from lepton_jax.passes.simplify._absorb.known import Known, compact_shape, wide
from lepton_jax.passes.simplify._absorb.product import Layout, Product
from lepton_jax.passes.simplify._absorb.steps import (
    Shape,
    Step,
    moved,
    moved_shape,
    replayed,
    reverse,
    step_of,
)

_RULE: Final = "scale-and-shift-into-weight"
_SCALES: Final = frozenset({"mul", "div", "neg"})

Link = tuple[str, int, tuple[Shape, ...]]
"""An operation with a coefficient: `mul`, `div`, `neg`, `add`, `sub` or `from` (the coefficient minus the
value); how many steps stand before it; and the coefficient's compact shape, if it has one."""


@dataclass
class Chain:
    """What is done to a product, one operation after the other, each of them read by the next one alone.

    Attributes:
        links: operations with coefficients.
        nodes: their nodes.
        steps: those that move elements, in between.
        coefficients: of the links, in order.
        stop: why it ends where more could be taken in, or None.
    """

    links: list[Link] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    coefficients: list[Value] = field(default_factory=list)
    stop: str | None = None

    @property
    def scales(self) -> int:
        """How many of the links scale."""
        return sum(kind in _SCALES or kind == "from" for kind, _, _ in self.links)

    def without_scales(self) -> Chain:
        """What stands before the first scale."""
        count = next(
            (i for i, link in enumerate(self.links) if link[0] not in ("add", "sub")), len(self.links)
        )
        return Chain(self.links[:count], self.nodes[:count], self.steps, self.coefficients[:count])


def chain_after(product: Product, known: Known) -> Chain:
    """The scales, shifts and moves of elements that follow a product."""
    chain = Chain()
    value = product.node.result
    while True:
        users = value.users()
        if len(value.uses) != 1:
            if len(users) > 1 and any(_coefficient(user, value, known) is not None for user in users):
                chain.stop = f"the result of the {product.node.op} is also read elsewhere"
            return chain
        node = users[0]
        if node.op == RETURN or node.context is not product.node.context or known.misplaced(node):
            return chain
        step = step_of(node)
        if step is not None:
            chain.steps.append(step)
        elif not _take(node, value, product, chain, known):
            return chain
        value = node.result


def _take(node: Node, value: Value, product: Product, chain: Chain, known: Known) -> bool:
    """Add a scale or shift to a chain, if it is along axes of the weight."""
    if node.op == "neg":
        chain.links.append(("neg", len(chain.steps), ()))
        chain.nodes.append(node)
        return True
    found = _coefficient(node, value, known)
    if found is None or node.result.shape != value.shape:
        return False
    kind, coefficient = found
    shape = whole = compact_shape(coefficient, value.ndim)
    for step in reversed(chain.steps):
        shape = moved_shape(shape, reverse(step))
    if not product.takes_outside(shape):
        chain.stop = "the coefficient varies along other axes than the weight's"
        return False
    chain.links.append((kind, len(chain.steps), (whole,)))
    chain.nodes.append(node)
    chain.coefficients.append(coefficient)
    return True


def _coefficient(node: Node, value: Value, known: Known) -> tuple[str, Value] | None:
    """The early coefficient that a value is scaled or shifted by, and how."""
    if node.op not in ("add", "sub", "mul", "div"):
        return None
    left, right = node.operands
    if left is value and known.is_early(right):
        return node.op, right
    if right is not value or not known.is_early(left) or node.op == "div":
        return None
    return ("from" if node.op == "sub" else node.op), left


def absorb_after(product: Product, known: Known) -> bool:
    """Put one product, its weight scaled, and one bias in place of a product and what follows it.

    (x @ W + b) * s + t → x @ (W * s) + (b * s + t)

    Returns:
        Whether it was done.
    """
    chain = chain_after(product, known)
    if chain.stop is not None:
        known.ctx.miss(_RULE, product.node, chain.stop)
    if chain.scales:
        reason = known.why_not(product.weight, product.node)
        if reason is not None:
            known.ctx.miss(_RULE, product.node, reason)
            chain = chain.without_scales()
    if not chain.scales and len(chain.links) < 2:
        return False
    if not known.from_params(product.weight, *chain.coefficients):
        return False
    if not known.ctx.fire(_RULE, product.node):
        return False
    steps = tuple(chain.steps[: chain.links[-1][1]])
    known.write(
        _RULE,
        chain.nodes[-1],
        _scaled,
        product.late,
        product.weight,
        *chain.coefficients,
        layout=product.layout,
        links=tuple(chain.links),
        steps=steps,
    )
    return True


def _scaled(
    late: Any,
    weight: Any,
    *coefficients: Any,
    layout: Layout,
    links: tuple[Link, ...],
    steps: tuple[Step, ...],
) -> Any:
    dtype = wide(weight, *coefficients)
    scale, shift = _combined([each.astype(dtype) for each in coefficients], links, steps)
    if scale is not None:
        weight = (weight.astype(dtype) * layout.outside(scale)).astype(weight.dtype)
    result = layout.multiply(late, weight)
    dtypes = [result.dtype, *(after for kind, _, after in steps if kind == "convert")]
    if shift is not None:
        largest = max(dtypes, key=lambda each: int(jnp.finfo(each).bits))
        result = result.astype(largest) + shift.astype(largest)
    result = result.astype(dtypes[-1])
    for step in steps:
        result = replayed(result, step)
    return result


def _combined(coefficients: list[Any], links: tuple[Link, ...], steps: tuple[Step, ...]) -> tuple[Any, Any]:
    """The scale and the shift of a chain, for the product itself; None where there is none."""
    scale: Any = None
    shift: Any = None
    rest = [*coefficients]
    for kind, depth, shapes in links:
        if kind == "neg":
            scale, shift = (-1.0 if scale is None else -scale), None if shift is None else -shift
            continue
        each = compacted(rest.pop(0), *shapes)
        for step in reversed(steps[:depth]):
            each = moved(each, reverse(step))
        if kind == "mul":
            scale, shift = (each if scale is None else scale * each), None if shift is None else shift * each
        elif kind == "div":
            scale, shift = (
                (1 / each if scale is None else scale / each),
                None if shift is None else shift / each,
            )
        elif kind == "add":
            shift = each if shift is None else shift + each
        elif kind == "sub":
            shift = -each if shift is None else shift - each
        else:
            scale, shift = (-1.0 if scale is None else -scale), each if shift is None else each - shift
    return (None if scale is None else jnp.asarray(scale)), shift


def compacted(coefficient: Any, shape: Shape) -> Any:
    """A coefficient without what it repeats, a scalar if it is the same everywhere."""
    if coefficient.ndim != 0 and coefficient.shape != shape:
        coefficient = lax.slice(coefficient, (0,) * len(shape), shape)
    return coefficient.reshape(()) if coefficient.ndim and math.prod(shape) == 1 else coefficient
