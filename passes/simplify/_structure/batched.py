"""Batches of matrices of known form; see `operators` for the recipes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._chains.labels import can_reorder
from lepton_jax.passes.simplify._movement.common import is_free, movement_rule, spread_from
from lepton_jax.passes.simplify._structure.apply import times
from lepton_jax.passes.simplify._structure.operators import Reader, Recipe, may_cancel
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.profit import why_not_late
from lepton_jax.rewrite.rule import Outcome

_DEEPEST: Final = 5

_BUILT: Final = frozenset({"select_n", "mul", "neg", "add", "sub", "add_any", "transpose", "reshape"})


@movement_rule("dot_general", level="reassociate", must_pay=True)
def product_with_batched_structure(node: Node, ctx: PassContext) -> Outcome:
    """The same as `product_with_structure` under vmap: diag(d[b]) @ A[b] → d[b, :, None] * A[b], and so on

    For diagonal matrices, Kronecker products, low rank plus diagonal and what is composed of them, of which
    there is one for each example, times something for each example or the same for all.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only structure`.
    """
    contract, batch = node.params["dimension_numbers"]
    if len(contract[0]) != 1 or not is_free(node) or all(v.op not in _BUILT for v in node.operands):
        return None
    if any(v.dtype != node.result.dtype for v in node.operands) or not can_reorder(node.result.dtype):
        return None
    for side in (0, 1):
        matrix, other = node.operands[side], node.operands[1 - side]
        rank = matrix.ndim - 2
        at = int(contract[side][0]) - rank
        if matrix.op not in _BUILT or rank < 1 or at < 0:
            continue
        if tuple(batch[side]) not in (tuple(range(rank)), ()) or (not batch[side] and rank > 1):
            continue
        reader = BatchedReader(rank)
        recipe = reader.read(matrix)
        if recipe is None:
            continue
        made = rewrite(
            times_each,
            other,
            *reader.values,
            batched=tuple(reader.batched),
            batch=tuple(map(int, batch[1 - side])),
            rank=rank,
            recipe=recipe,
            axis=int(contract[1 - side][0]),
            turned=at == 0,
            first=side == 0,
            precision=node.params.get("precision"),
            accumulate=node.params.get("preferred_element_type"),
        )
        if reason := why_not_late(made, node, ctx):
            ctx.miss("product-with-batched-structure", node, reason)
            return None
        return made
    return None


class BatchedReader:
    """Finds the form of batches of matrices, whose first `rank` dimensions count them.

    Attributes:
        values: the arrays that the recipe needs.
        batched: for each of them, whether there is one for each matrix.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.values: list[Value] = []
        self.batched: list[bool] = []

    def number(self, value: Value, batched: bool = True) -> int:
        """The number of an array."""
        self.values.append(value)
        self.batched.append(batched)
        return len(self.values) - 1

    def read(self, value: Value, depth: int = _DEEPEST) -> Recipe | None:
        """The form of the matrices; None if it has none that would help."""
        node = value.node
        if depth == 0 or node is None or value.ndim != self.rank + 2 or value.dtype is None:
            return None
        if node.op == "broadcast_in_dim":
            return self.same(node)
        if node.op == "select_n":
            return self.masked(node)
        if node.op == "mul":
            return self.scaled(node, depth)
        if node.op == "reshape":
            return self.kron(node)
        if node.op == "transpose":
            swapped = (*range(self.rank), self.rank + 1, self.rank)
            inner = self.read(node.operands[0], depth - 1) if node.params["permutation"] == swapped else None
            return None if inner is None else ("transpose", inner)
        if node.op == "neg":
            inner = self.read(node.operands[0], depth - 1)
            return None if inner is None else ("neg", inner)
        return self.total(node, depth) if node.op in ("add", "add_any", "sub") else None

    def same(self, node: Node) -> Recipe | None:
        """One matrix for all: what is known of it."""
        source = self.spread(node.result, (self.rank, self.rank + 1))
        if source is None:
            return None
        reader = Reader()
        recipe = reader.read(source)
        if recipe is None:
            return None
        first = len(self.values)
        for value in reader.values:
            self.number(value, batched=False)
        return _renumbered(recipe, first)

    def spread(self, value: Value, places: tuple[int, ...]) -> Value | None:
        """What a value is spread from, if its dimensions go to these places, and none is stretched."""
        found = spread_from(value)
        return found[0] if found is not None and found[1] == places else None

    def masked(self, node: Node) -> Recipe | None:
        """Zero off the main diagonal."""
        if len(node.operands) != 3 or node.operands[0].ndim != node.result.ndim:
            return None
        mask = self.spread(node.operands[0], (self.rank, self.rank + 1))
        band = None if mask is None else facts_of(mask).band
        if band is None or (band.low, band.high, band.inside) != (0, 0, True):
            return None
        return self.along(node.operands[2]) if facts_of(node.operands[1]).is_zero else None

    def along(self, value: Value) -> Recipe | None:
        """Diagonal matrices with the main diagonals of a value that is spread from vectors or numbers."""
        if value.ndim == 0:
            return ("number", self.number(value, batched=False), ("identity",))
        each = tuple(range(self.rank))
        for place in (self.rank, self.rank + 1):
            if (source := self.spread(value, (*each, place))) is not None:
                return ("diagonal", self.number(source))
            if (source := self.spread(value, (place,))) is not None:
                return ("diagonal", self.number(source, batched=False))
        return self.factor(value, ("identity",))

    def factor(self, value: Value, inner: Recipe) -> Recipe | None:
        """A number for each matrix, or one for all, times what has a form."""
        if value.ndim == 0:
            return ("number", self.number(value, batched=False), inner)
        source = self.spread(value, tuple(range(self.rank)))
        return None if source is None else ("number", self.number(source), inner)

    def scaled(self, node: Node, depth: int) -> Recipe | None:
        for a, b in (node.operands, node.operands[::-1]):
            held = len(self.values)
            inner = self.read(b, depth - 1)
            if inner is None:
                continue
            found = self.along(a) if inner == ("identity",) else self.factor(a, inner)
            if found is not None:
                return found
            del self.values[held:], self.batched[held:]
        return self.outer(node)

    def outer(self, node: Node) -> Recipe | None:
        """Columns times rows."""
        each = tuple(range(self.rank))
        for a, b in (node.operands, node.operands[::-1]):
            column = self.spread(a, (*each, self.rank))
            row = self.spread(b, (*each, self.rank + 1))
            if column is not None and row is not None:
                return ("outer", self.number(column), self.number(row))
        return None

    def total(self, node: Node, depth: int) -> Recipe | None:
        if any(v.shape != node.result.shape for v in node.operands):
            return None
        held = len(self.values)
        found = [self.read(v, depth - 1) or self.product(v) for v in node.operands]
        if all(recipe is None for recipe in found):
            return None
        parts = [r or ("dense", self.number(v)) for r, v in zip(found, node.operands, strict=True)]
        if may_cancel(node.op, *parts):
            del self.values[held:], self.batched[held:]
            return None
        return ("sub" if node.op == "sub" else "add", *parts)

    def product(self, value: Value) -> Recipe | None:
        """Products of two matrices each, as a term of a sum."""
        node = value.node
        if node is None or node.op != "dot_general" or not is_free(node) or value.ndim != self.rank + 2:
            return None
        (left, right), batch = node.params["dimension_numbers"]
        each = tuple(range(self.rank))
        if len(left) != 1 or tuple(batch[0]) != each or tuple(batch[1]) != each:
            return None
        if any(v.ndim != self.rank + 2 or v.dtype != value.dtype for v in node.operands):
            return None
        first, second = (("dense", self.number(v)) for v in node.operands)
        return (
            "product",
            first if left[0] == self.rank + 1 else ("transpose", first),
            second if right[0] == self.rank else ("transpose", second),
        )

    def kron(self, node: Node) -> Recipe | None:
        """reshape(a[..., :, None, :, None] * b[..., None, :, None, :])"""
        inner, n = node.operands[0].node, self.rank
        if inner is None or inner.op != "mul" or inner.result.ndim != n + 4:
            return None
        each, (p, q, r, s) = inner.result.shape[:n], inner.result.shape[n:]
        if node.result.shape != (*each, p * q, r * s) or node.params.get("dimensions") is not None:
            return None
        sides: list[Recipe] = []
        for places in ((n, n + 2), (n + 1, n + 3)):
            for value in inner.operands:
                if (source := self.spread(value, (*range(n), *places))) is not None:
                    sides.append(("dense", self.number(source)))
                elif (source := self.spread(value, places)) is not None:
                    sides.append(("dense", self.number(source, batched=False)))
        return ("kron", *sides, (p, q, r, s)) if len(sides) == 2 else None


def _renumbered(recipe: Recipe, by: int) -> Recipe:
    """A recipe whose arrays are numbered from `by` on."""
    op, *rest = recipe
    counted = {"diagonal": 1, "main": 1, "number": 1, "outer": 2, "rows": 1, "dense": 1}.get(op, 0)
    found = [x + by for x in rest[:counted]]
    nested = op not in ("rows", "permutation")
    return (op, *found, *(_renumbered(x, by) if nested and _is_recipe(x) else x for x in rest[counted:]))


def _is_recipe(x: Any) -> bool:
    return isinstance(x, tuple) and bool(x) and isinstance(x[0], str)


def times_each(
    x: jax.Array,
    *arrays: jax.Array,
    batched: tuple[bool, ...],
    batch: tuple[int, ...],
    rank: int,
    recipe: Recipe,
    axis: int,
    turned: bool,
    first: bool,
    precision: Any,
    accumulate: Any,
) -> jax.Array:
    """The products with matrices of known form, one for each example.

    Args:
        batched: for each array, whether there is one for each example.
        batch: the dimensions of x that count the examples; none if x is the same for all.
    """
    x = jnp.moveaxis(x, batch, range(len(batch)))
    own = axis - sum(d < axis for d in batch)
    each: Callable[..., jax.Array] = functools.partial(
        times,
        recipe=recipe,
        axis=own,
        turned=turned,
        first=first,
        precision=precision,
        accumulate=accumulate,
    )
    places = (0 if batch else None, *(0 if b else None for b in batched))
    for _ in range(rank):
        each = jax.vmap(each, in_axes=places)
    made = each(x, *arrays)
    if batch or first:
        return made
    return lax.transpose(made, (*range(1, made.ndim - 1), 0, made.ndim - 1))


RULES: Final[tuple[Rule, ...]] = (product_with_batched_structure,)
