"""The arrays of the backward half of attention as sums of products of a few things.

They are the exponentials E, the product G of the result's gradient with the values, the sums L of the
exponentials, R of E·G, and the tanh H of capped scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import dot_axes, dot_numbers
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.shape import FEATURE, Axes
from lepton_jax.passes.fuse._attention.standard import NotStandardError, Standard
from lepton_jax.passes.fuse._attention.views import VIEWS, follow, moved, root

_MOST: Final = 256
_SAME: Final = frozenset({"convert_element_type", "copy", "copy_p", "stop_gradient"})

Monomial = tuple[int, int, int, int, int]
"""Powers of E, G, L, R and H."""

Terms = dict[Monomial, float]

ONE: Final[Monomial] = (0, 0, 0, 0, 0)
WEIGHTS: Final[Terms] = {(1, 0, -1, 0, 0): 1.0}
SLOPES: Final[Terms] = {(1, 1, -1, 0, 0): 1.0, (1, 0, -2, 1, 0): -1.0}
BEND: Final[Terms] = {ONE: 1.0, (0, 0, 0, 0, 2): -1.0}


def equal(found: Terms, wanted: Terms, factor: float) -> bool:
    if found.keys() != wanted.keys():
        return False
    return all(np.isclose(found[m], factor * c, rtol=1e-2) for m, c in wanted.items())


def result_of(node: Node, side: int, axes: Axes, others: Axes) -> Axes:
    """The axes of a product's result."""
    _, batch = dot_numbers(node)
    free = dot_axes(node)[:2]
    made = [axes[d] for d in batch[side]]
    for position in (0, 1):
        own = axes if position == side else others
        made += [own[d] for d in free[position]]
    return tuple(made)


@dataclass(eq=False)
class Reader:
    """Values as sums of products."""

    found: Found
    made: Standard
    change: tuple[Value, Axes] | None = None
    known: dict[Value, tuple[Terms, Axes]] = field(default_factory=dict)

    def of_weights(self, value: Value) -> tuple[Terms | None, Axes]:
        """The axes of a value if it is the weights."""
        try:
            terms, axes = self.of(value)
        except NotStandardError:
            return None, ()
        return (terms, axes) if equal(terms, WEIGHTS, 1.0) else (None, ())

    def of(self, value: Value) -> tuple[Terms, Axes]:
        """A value's terms and its axes."""
        if value not in self.known:
            if len(self.known) > _MOST:
                raise NotStandardError("too much depends on the scores")
            self.known[value] = self.find(value)
        return self.known[value]

    def find(self, value: Value) -> tuple[Terms, Axes]:
        node = value.node
        splat = facts_of(value).splat
        if node is self.found.exp:
            return {(1, 0, 0, 0, 0): 1.0}, self.made.axes[value]
        if node is not None and node.op == "tanh" and value in self.made.axes:
            return {(0, 0, 0, 0, 1): 1.0}, self.made.axes[value]
        if splat is not None and np.isrealobj(splat):
            return ({ONE: float(splat)} if float(splat) else {}), ((),) * value.ndim
        if node is None or not node.operands:
            raise NotStandardError("the backward half reads something unknown")
        return self.made_by(node)

    def made_by(self, node: Node) -> tuple[Terms, Axes]:
        if node in self.found.sums:
            return self.total(node)
        if node.op in _SAME:
            return self.of(node.operands[0])
        if node.op in VIEWS:
            return self.view(node)
        if node.op == "select_n" and node.operands[0] in self.made.conditions:
            return self.masked(node)
        readers = {"dot_general": self.product, "reduce_sum": self.sum_over_keys, "integer_pow": self.power}
        return readers.get(node.op, self.combined)(node)

    def combined(self, node: Node) -> tuple[Terms, Axes]:
        """Arithmetic, element by element."""
        parts = [self.of(v) for v in node.operands]
        axes = _joined([a for _, a in parts])
        first, last = parts[0][0], parts[-1][0]
        if node.op not in _ARITHMETIC:
            raise NotStandardError(f"the backward half goes through {node.op}")
        return _ARITHMETIC[node.op](first, last), axes

    def total(self, node: Node) -> tuple[Terms, Axes]:
        gone = {int(a) for a in node.params["axes"]}
        axes = self.of(node.operands[0])[1]
        return {(0, 0, 1, 0, 0): 1.0}, tuple(a for d, a in enumerate(axes) if d not in gone)

    def sum_over_keys(self, node: Node) -> tuple[Terms, Axes]:
        terms, axes = self.of(node.operands[0])
        gone = {int(a) for a in node.params["axes"]}
        summed = [a for d in sorted(gone) for a in axes[d]]
        rest = tuple(a for d, a in enumerate(axes) if d not in gone)
        if not summed and all(node.operands[0].shape[d] == 1 for d in gone):
            return terms, rest
        if summed != [self.made.key]:
            raise NotStandardError("the backward half sums over other axes")
        made: Terms = {}
        for (e, g, total, r, bend), factor in terms.items():
            if (e, g, bend) == (1, 1, 0):
                part: Terms = {(0, 0, total, r + 1, 0): factor}
            elif (e, g, bend) == (1, 0, 0):
                part = {(0, 0, total + 1, r, 0): factor}
            else:
                raise NotStandardError("the backward half sums something else than weights")
            made = _plus(made, part, 1.0)
        return made, rest

    def view(self, node: Node) -> tuple[Terms, Axes]:
        terms, axes = self.of(node.operands[0])
        if node.op == "broadcast_in_dim":
            places = [int(d) for d in node.params["broadcast_dimensions"]]
            return terms, tuple(axes[places.index(d)] if d in places else () for d in range(node.result.ndim))
        views = moved(node, axes, self.made.sizes)
        if views is None:
            raise NotStandardError("the backward half moves axes in a way that is not followed")
        return terms, views

    def masked(self, node: Node) -> tuple[Terms, Axes]:
        """Zeros where the scores are masked: there the exponentials are zero already."""
        parts = [self.of(v) for v in node.operands[1:]]
        terms, axes = parts[0] if parts[0][0] else parts[1]
        if (parts[0][0] and parts[1][0]) or not all(m[0] >= 1 for m in terms):
            raise NotStandardError("the backward half chooses between two things")
        return terms, axes

    def power(self, node: Node) -> tuple[Terms, Axes]:
        terms, axes = self.of(node.operands[0])
        return (times(terms, terms) if node.params["y"] == 2 else _power(terms, int(node.params["y"]))), axes

    def product(self, node: Node) -> tuple[Terms, Axes]:
        """The gradient of the result times the values: its axes follow from those of both."""
        if self.change is None:
            raise NotStandardError("the gradient of the result is not known yet")
        own = root(self.made.values, self.made.value_axes)
        for side in (0, 1):
            values, change = node.operands[side], node.operands[1 - side]
            axes, others = follow(values, own), follow(change, self.change)
            if axes is None or others is None:
                continue
            contract, batch = dot_numbers(node)
            pairs = [(axes[a], others[b]) for a, b in zip(contract[side], contract[1 - side], strict=True)]
            shared = [(axes[a], others[b]) for a, b in zip(batch[side], batch[1 - side], strict=True)]
            if pairs == [((FEATURE,), (FEATURE,))] and all(a == b for a, b in shared):
                return {(0, 1, 0, 0, 0): 1.0}, result_of(node, side, axes, others)
        raise NotStandardError("a product in the backward half is not that of values and gradient")


def _joined(parts: list[Axes]) -> Axes:
    """The axes of an elementwise result; operands agree where they have any."""
    made: list[tuple[int, ...]] = []
    rank = max(map(len, parts))
    for column in zip(*(p or ((),) * rank for p in parts), strict=True):
        full = {a for a in column if a}
        if len(full) > 1:
            raise NotStandardError("the backward half mixes axes")
        made.append(full.pop() if full else ())
    return tuple(made)


def _plus(a: Terms, b: Terms, sign: float) -> Terms:
    made = dict(a)
    for monomial, factor in b.items():
        made[monomial] = made.get(monomial, 0.0) + sign * factor
    return {m: f for m, f in made.items() if f}


def times(a: Terms, b: Terms) -> Terms:
    made: Terms = {}
    for left, x in a.items():
        for right, y in b.items():
            both = tuple(i + j for i, j in zip(left, right, strict=True))
            made[both] = made.get(both, 0.0) + x * y  # type: ignore[index, arg-type]
    return {m: f for m, f in made.items() if f}


def _power(terms: Terms, power: int) -> Terms:
    if len(terms) != 1:
        raise NotStandardError("the backward half divides by a sum")
    ((monomial, factor),) = terms.items()
    return {tuple(power * n for n in monomial): factor**power}  # type: ignore[dict-item]


_ARITHMETIC: Final[dict[str, Callable[[Terms, Terms], Terms]]] = {
    "neg": lambda a, b: times(a, {ONE: -1.0}),
    "add": lambda a, b: _plus(a, b, 1.0),
    "add_any": lambda a, b: _plus(a, b, 1.0),
    "sub": lambda a, b: _plus(a, b, -1.0),
    "mul": times,
    "div": lambda a, b: times(a, _power(b, -1)),
    "square": times,
    "one_minus_square": lambda a, b: _plus({ONE: 1.0}, times(a, a), -1.0),
}
