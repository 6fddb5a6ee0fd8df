"""What each operation of an e-graph takes on the target, and in which forms it can be written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lepton_jax.ir.cost import Cost, dtype_name
from lepton_jax.passes.simplify._saturate.egraph import EGraph, ENode
from lepton_jax.rewrite import PassContext


class Variant(NamedTuple):
    """A way to compute a class.

    Attributes:
        op: an operation of the language; or `Sub`; or `ScaledMul s a b`, which multiplies the smaller factor.
        children: the classes that it reads.
        seconds: its own time.
        payload: as in `ENode`.
        turned: for a product, which of its operands it reads transposed.
    """

    op: str
    children: tuple[int, ...]
    seconds: float
    payload: int | float | None = None
    turned: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Pricing:
    """What an island's operations cost.

    Attributes:
        shapes: the rows and columns of the leaves.
        fixed: which leaves are the same on every iteration of the loop around.
        trips: how often that loop goes round; 1 outside of loops.
        batch: how many matrices each array holds.
        dtype: of all arrays.
        ctx: knows the target.
    """

    shapes: Sequence[tuple[int, int]]
    fixed: Sequence[bool]
    trips: int
    batch: int
    dtype: Any
    ctx: PassContext

    def variants(self, egraph: EGraph) -> tuple[list[list[Variant]], list[tuple[int, int]]]:
        """For each class the ways to compute it, and its rows and columns."""
        shapes, fixed = self._known(egraph)
        found: list[list[Variant]] = []
        for number, nodes in enumerate(egraph.classes):
            share = self.trips if fixed[number] else 1
            made: dict[tuple[object, ...], Variant] = {}
            for node in nodes:
                for variant in self._forms(node, egraph, shapes):
                    if number in variant.children:
                        continue
                    priced = variant._replace(seconds=self._seconds(variant, shapes) / share)
                    made.setdefault(_key(priced), priced)
            found.append(list(made.values()))
        return found, shapes

    def _known(self, egraph: EGraph) -> tuple[list[tuple[int, int]], list[bool]]:
        """The shape of each class, and whether it is the same on every iteration."""
        shapes: dict[int, tuple[int, int]] = {}
        fixed: dict[int, bool] = {}
        while len(shapes) < len(egraph.classes):
            before = len(shapes)
            for number, nodes in enumerate(egraph.classes):
                node = next((n for n in nodes if all(child in shapes for child in n.children)), None)
                if number not in shapes and node is not None:
                    shapes[number] = self._shape(node, [shapes[child] for child in node.children])
                    fixed[number] = self._is_fixed(node, [fixed[child] for child in node.children])
            assert len(shapes) > before, "a class without a finite term"
        count = range(len(egraph.classes))
        return [shapes[i] for i in count], [fixed[i] for i in count]

    def _shape(self, node: ENode, children: list[tuple[int, int]]) -> tuple[int, int]:
        match node.op:
            case "Leaf":
                assert isinstance(node.payload, int)
                return self.shapes[node.payload]
            case "Num":
                return 1, 1
            case "Mul":
                return children[0][0], children[1][1]
            case "T":
                return children[0][1], children[0][0]
            case _:
                return children[-1]

    def _is_fixed(self, node: ENode, children: list[bool]) -> bool:
        if node.op == "Leaf":
            assert isinstance(node.payload, int)
            return self.fixed[node.payload]
        return all(children)

    def _forms(self, node: ENode, egraph: EGraph, shapes: list[tuple[int, int]]) -> list[Variant]:
        """An operation, and itself merged with transposes, numbers or a change of sign of what it reads."""
        found = [Variant(node.op, node.children, 0.0, node.payload)]
        if node.op == "Mul" and shapes[node.children[0]][1] != 1:
            lefts, rights = (_views(egraph, child, shapes) for child in node.children)
            found = [Variant("Mul", (x, y), 0.0, None, (s, t)) for x, s in lefts for y, t in rights]
        elif node.op == "Add":
            found += [Variant("Sub", (node.children[0], b), 0.0) for b in _negated(egraph, node.children[1])]
        elif node.op == "Scale":
            number, scaled = node.children
            for product in egraph.classes[scaled]:
                if product.op == "Mul":
                    forms = self._forms(product, egraph, shapes)
                    found += [Variant("ScaledMul", (number, *f.children), 0.0, None, f.turned) for f in forms]
        return found

    def _seconds(self, variant: Variant, shapes: list[tuple[int, int]]) -> float:
        """The time of an operation, as `lepton_jax.ir.cost` has it; vectors turn for nothing."""
        sizes = [math.prod(shapes[child]) for child in variant.children]
        match variant.op:
            case "Leaf" | "Num":
                return 0.0
            case "T":
                return (
                    0.0
                    if 1 in shapes[variant.children[0]]
                    else self._elementwise(sizes[0], 2 * sizes[0], 0.0)
                )
            case "Mul":
                return self._product(variant.children, variant.turned, shapes)
            case "ScaledMul":
                least = min(sizes[1:])
                product = self._product(variant.children[1:], variant.turned, shapes)
                return product + self._elementwise(least, 2 * least)
            case _:
                return self._elementwise(sizes[-1], sum(sizes) + sizes[-1])

    def _product(
        self, operands: Sequence[int], turned: tuple[bool, bool], shapes: list[tuple[int, int]]
    ) -> float:
        left, right = (shapes[child] for child in operands)
        rows, inner = left[::-1] if turned[0] else left
        columns = right[0] if turned[1] else right[1]
        elements = rows * inner + inner * columns + rows * columns
        if inner == 1:
            return self._elementwise(rows * columns, elements)
        flops = 2.0 * self.batch * rows * inner * columns
        moved = float(self.batch * elements * self.dtype.itemsize)
        return self.ctx.seconds(Cost(flops, moved, ((dtype_name(self.dtype), flops),), 1.0))

    def _elementwise(self, written: int, moved: int, weight: float = 1.0) -> float:
        flops, bytes_ = weight * self.batch * written, float(self.batch * moved * self.dtype.itemsize)
        return self.ctx.seconds(Cost(flops, bytes_, (), 1.0))


def _key(variant: Variant) -> tuple[object, ...]:
    """What tells ways apart: the order of a sum does not."""
    children = variant.children
    if variant.op in ("Add", "Had"):
        children = tuple(sorted(children))
    return variant.op, children, variant.payload, variant.turned


def _views(egraph: EGraph, number: int, shapes: list[tuple[int, int]]) -> list[tuple[int, bool]]:
    """The classes that a product can read for a class, and whether transposed; vectors need not be."""
    if 1 in shapes[number]:
        return [(number, False)]
    turned = [(node.children[0], True) for node in egraph.classes[number] if node.op == "T"]
    return [(number, False), *turned]


def _negated(egraph: EGraph, number: int) -> list[int]:
    """The classes that a class is the negative of."""
    found = []
    for node in egraph.classes[number]:
        if node.op == "Scale" and any(n == ENode("Num", (), -1.0) for n in egraph.classes[node.children[0]]):
            found.append(node.children[1])
    return found
