"""Single entries of products, picked by index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._demand.makers import ELEMENTWISE, is_relu
from lepton_jax.passes.simplify._gather.moves import is_position
from lepton_jax.passes.simplify._movement.common import bind, is_free, movement_rule, spread_from
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_STEPS: Final = 16

_FIRST: Final = ELEMENTWISE | {"dot_general", "custom_jvp_call"}

Dims = tuple[int, ...]
Recipe = tuple[Any, ...]
"""How to make the entries: ("dot", a, b, dims of a, dims of b), ("array", i, dims), ("number", i), or
("apply", primitive, parameters, recipes). Dims say which dimension of the whole each of the array's is;
-1 - j stands for the contracted dimension j. ("relu", recipe) has its own derivative."""


@dataclass(frozen=True)
class Entries:
    """Which entries a gather takes, hashable: one for each place of the index, whose last dimension counts
    the coordinates.

    Attributes:
        mapped: the dimensions that the coordinates are for.
        batched: dimensions that go with a dimension of the index: {dimension: dimension of the index}.
        shape: of the whole array.
        mode: what happens out of bounds.
        fill: the value for out of bounds, where the mode fills.
        units: the dimensions of the result that have size one, for those of the array that are kept.
    """

    mapped: Dims
    batched: tuple[tuple[int, int], ...]
    shape: Dims
    mode: Any
    fill: float | None
    units: Dims


@movement_rule("gather", level="reassociate", backends=("cpu", "gpu"), must_pay=True)
def entries_of_dot(node: Node, ctx: PassContext) -> Outcome:
    """(A @ B)[i, j] → Σₖ A[i, k] B[k, j] for each pair: `take_along_axis(h @ W, labels)`, `q[arange(n), a]`

    Also through what is done elementwise to the product: a bias, an activation. Where nothing else reads
    the product (`python benchmarks/rewrites.py --only demand`).
    """
    if node.operands[0].op not in _FIRST:
        return None
    entries = _entries(node)
    if entries is None:
        return None
    reader = _Reader(node)
    recipe = reader.read(node.operands[0], tuple(range(node.operands[0].ndim)))
    if recipe is None or not reader.products:
        return None
    return rewrite(picked, node.operands[1], *reader.values, entries=entries, recipe=recipe)


def _entries(node: Node) -> Entries | None:
    """What a gather of single entries takes, with nothing left of any dimension."""
    numbers, (x, index) = node.params["dimension_numbers"], node.operands
    if any(s != 1 for s in node.params["slice_sizes"]) or 0 in x.shape:
        return None
    mapped = tuple(map(int, numbers.start_index_map))
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    batched = tuple((int(d), int(at)) for d, at in pairs)
    if index.ndim == 0 or index.shape[-1] != len(mapped) or len(mapped) + len(batched) != x.ndim:
        return None
    fill: float | None = None
    if "FILL" in str(node.params["mode"]):
        given = node.params["fill_value"]
        if given is None and not jnp.issubdtype(x.dtype, jnp.inexact):
            return None
        fill = float("nan") if given is None else float(given)
    return Entries(
        mapped, batched, tuple(x.shape), node.params["mode"], fill, tuple(map(int, numbers.offset_dims))
    )


@dataclass
class _Reader:
    """Finds how entries are made, and numbers the arrays that the recipe needs."""

    root: Node
    values: list[Value] = field(default_factory=list)
    products: int = 0
    steps: int = 0

    def number(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def read(self, value: Value, dims: Dims) -> Recipe | None:
        """How to make the entries of a value whose dimensions are `dims` of the whole."""
        node, self.steps = value.node, self.steps + 1
        if self.steps > _MOST_STEPS:
            return None
        if value.ndim == 0:
            return ("number", self.number(value))
        alone = node is not None and len(value.uses) == 1 and node.context is self.root.context
        if node is None or not alone or not value.is_static:
            return self.array(value, dims)
        if node.op == "dot_general" and is_free(node):
            return self.product(node, dims)
        if node.op in ELEMENTWISE and not node.effects:
            return self.applied(node, dims)
        if is_relu(node):
            inner = self.read(node.operands[0], dims)
            return None if inner is None else ("relu", inner)
        return self.array(value, dims)

    def array(self, value: Value, dims: Dims) -> Recipe:
        spread = spread_from(value)
        if spread is None:
            return ("array", self.number(value), dims)
        source, places = spread
        return ("array", self.number(source), tuple(dims[d] for d in places))

    def applied(self, node: Node, dims: Dims) -> Recipe | None:
        parts = [self.read(v, dims) for v in node.operands]
        if any(part is None for part in parts):
            return None
        return ("apply", node.primitive, tuple(sorted(node.params.items())), tuple(parts))

    def product(self, node: Node, dims: Dims) -> Recipe | None:
        kind = node.result.dtype
        if not (jnp.issubdtype(kind, np.floating) or jnp.issubdtype(kind, np.integer)):
            return None
        if any(v.dtype != kind for v in node.operands) or kind.itemsize < 2:
            return None
        contract, batch = node.params["dimension_numbers"]
        sides: list[Dims] = []
        at = len(batch[0])
        for side, x in enumerate(node.operands):
            own = {int(d): dims[i] for i, d in enumerate(batch[side])}
            own |= {int(d): -1 - j for j, d in enumerate(contract[side])}
            for d in range(x.ndim):
                if d not in own:
                    own[d] = dims[at]
                    at += 1
            sides.append(tuple(own[d] for d in range(x.ndim)))
        self.products += 1
        a, b = (self.number(v) for v in node.operands)
        return ("dot", a, b, *sides, str(kind))


def picked(index: jax.Array, *arrays: jax.Array, entries: Entries, recipe: Recipe) -> jax.Array:
    """The entries of an array that is made by a recipe, one for each place of the index."""
    made = _Picker(index, arrays, entries).make(recipe)
    if entries.fill is not None:
        made = _filled(made, index, entries, entries.fill)
    return lax.expand_dims(made, entries.units) if entries.units else made


def _filled(made: jax.Array, index: jax.Array, entries: Entries, fill: float) -> jax.Array:
    """The entries, and the value for out of bounds where a coordinate is."""
    inside = lax.full(index.shape[:-1], True)
    for column, d in enumerate(entries.mapped):
        at = lax.index_in_dim(index, column, index.ndim - 1, keepdims=False)
        inside = inside & is_position(at, entries.shape[d])
    return lax.select(inside, made, lax.full_like(made, fill))


class _Picker:
    def __init__(self, index: jax.Array, arrays: tuple[jax.Array, ...], entries: Entries) -> None:
        self.index = index
        self.arrays = arrays
        self.entries = entries
        self.mode = lax.GatherScatterMode.CLIP if entries.fill is not None else entries.mode

    def make(self, recipe: Recipe) -> jax.Array:
        match recipe:
            case ("number", i):
                return self.arrays[i]
            case ("array", i, dims):
                return self.take(self.arrays[i], dims)
            case ("relu", part):
                return jax.nn.relu(self.make(part))
            case ("apply", primitive, params, parts):
                made: jax.Array = bind(*map(self.make, parts), primitive=primitive, params=params)
                return made
            case ("dot", i, j, left, right, kind):
                return self.product(self.take(self.arrays[i], left), self.take(self.arrays[j], right), kind)
        raise AssertionError(recipe)

    def product(self, a: jax.Array, b: jax.Array, kind: str) -> jax.Array:
        dtype = jnp.dtype(kind)
        wide = jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, np.floating) else dtype
        terms = lax.mul(a.astype(wide), b.astype(wide))
        rank = self.index.ndim - 1
        return lax.reduce_sum(terms, tuple(range(rank, terms.ndim))).astype(dtype)

    def take(self, x: jax.Array, dims: Dims) -> jax.Array:
        """The entries of x at the places of the index; its contracted dimensions, in order, come last."""
        entries, rank = self.entries, self.index.ndim - 1
        summed = sorted((d for d in range(x.ndim) if dims[d] < 0), key=lambda d: -dims[d])
        at = dict(entries.batched)
        together = [d for d in range(x.ndim) if dims[d] in at]
        mapped = [d for d in range(x.ndim) if dims[d] in entries.mapped]
        x = lax.transpose(x, (*together, *mapped, *summed))
        together, own = [dims[d] for d in together], [dims[d] for d in mapped]
        first, rest = len(together), x.shape[len(together) + len(own) :]
        if not own:
            order = sorted(range(first), key=lambda k: at[together[k]])
            x = lax.transpose(x, (*order, *range(first, x.ndim)))
            places = [at[together[k]] for k in order]
            return lax.broadcast_in_dim(
                x, (*self.index.shape[:-1], *rest), (*places, *range(rank, rank + len(rest)))
            )
        columns = [entries.mapped.index(d) for d in own]
        index = self.index
        if columns != list(range(len(entries.mapped))):
            index = lax.concatenate([lax.slice_in_dim(index, c, c + 1, axis=rank) for c in columns], rank)
        numbers = lax.GatherDimensionNumbers(
            offset_dims=tuple(range(rank, rank + len(rest))),
            collapsed_slice_dims=tuple(range(first, first + len(own))),
            start_index_map=tuple(range(first, first + len(own))),
            operand_batching_dims=tuple(range(first)),
            start_indices_batching_dims=tuple(at[d] for d in together),
        )
        return lax.gather(x, index, numbers, (*(1,) * (first + len(own)), *rest), mode=self.mode)


RULES: Final[tuple[Rule, ...]] = (entries_of_dot,)
