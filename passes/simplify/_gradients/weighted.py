"""Weighted sums in the gradients of norms, as products with vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._demand.makers import ELEMENTWISE
from lepton_jax.passes.simplify._movement.common import is_free, movement_rule
from lepton_jax.rewrite import PassContext, Rule, profit, rewrite
from lepton_jax.rewrite.rule import Outcome

_LEAST: Final = 1 << 15
_MOST_FACTORS: Final = 8
_SEARCH: Final = 24
_TYPES: Final = (np.dtype(np.float32), np.dtype(np.float64))

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Weighted:
    """A sum over axes of a product.

    Attributes:
        full: the factors that vary along summed and other axes.
        weights: those that vary along summed axes alone, then the divisors that do.
        apart: those that vary along other axes alone, then the divisors that do.
        divisors: how many divisors there are among weights, and among those apart.
        negative: whether it is minus the sum.
    """

    full: tuple[Value, ...]
    weights: tuple[Value, ...]
    apart: tuple[Value, ...]
    divisors: tuple[int, int] = (0, 0)
    negative: bool = False


@movement_rule("reduce_sum", level="reassociate", backends=("cpu",))
def sum_of_weighted(node: Node, ctx: PassContext) -> Outcome:
    """sum(x * y * r, rows) beside sum(x * y * w, columns) → r @ (x * y) and (x * y) @ w

    This is what differentiation makes of the scale and of a row of an RMS or layer norm: both read one
    product. sum(x * w, columns) of an array that is there anyway is x @ w. XLA for CPUs stores weights spread
    over all rows before it adds up; on a GPU it fuses them, and the sums stay. The product of two is part of
    the one that the sum over columns has.

    Measured on a 2-core CPU with `python benchmarks/rewrites.py --only losses`.
    """
    found = _weighted(node)
    if found is None or not found.weights or not 1 <= len(found.full) <= 2:
        return None
    if len(found.full) == 1 and (not exists(found.full[0]) or _is_only_summed(found.full[0])):
        return None
    if len(found.full) == 2 and not _is_shared(node, found.full):
        return None
    return rewrite(
        products,
        *found.full,
        *found.weights,
        *found.apart,
        counts=(len(found.full), len(found.weights)),
        divisors=found.divisors,
        axes=tuple(node.params["axes"]),
        ndim=node.operands[0].ndim,
        negative=found.negative,
    )


def products(
    *args: Any, counts: tuple[int, int], divisors: tuple[int, int], axes: Axes, ndim: int, negative: bool
) -> jax.Array:
    """Weights times a product of full factors, summed over axes, times what stands apart."""
    full, rest = args[: counts[0]], args[counts[0] :]
    weights, apart = rest[: counts[1]], rest[counts[1] :]
    shared = math.prod(full[1:], start=full[0])
    kept = tuple(d for d in range(ndim) if d not in axes)

    ones = jnp.ones((), shared.dtype) if divisors[0] == len(weights) else None
    by = scaled(ones, weights, divisors[0], axes, shared.shape)
    dims = (tuple(range(len(axes))), axes)
    swapped = axes[-1] == ndim - 1
    left, right = (shared, by) if swapped else (by, shared)
    numbers = (dims[::-1] if swapped else dims, ((), ()))
    total = lax.dot_general(left, right, numbers, precision=lax.Precision.HIGHEST)
    total = scaled(total, apart, divisors[1], kept, shared.shape)
    signed: jax.Array = -total if negative else total
    return signed


def scaled(start: Any, by: Sequence[Any], under: int, dims: Axes, shape: tuple[int, ...]) -> Any:
    """`start` times arrays that vary along some dimensions of a shape alone; the last `under` divide."""
    for i, x in enumerate(by):
        bare = lax.squeeze(x, [d for d in range(len(shape)) if d not in dims]) if x.ndim else x
        value = jnp.broadcast_to(bare, tuple(shape[d] for d in dims))
        start = start / value if i >= len(by) - under else value if start is None else start * value
    return start


def is_candidate(node: Node) -> bool:
    """Whether a sum is over rows or columns, of floats that a CPU multiplies, and large enough."""
    (source,), axes = node.operands, tuple(node.params["axes"])
    if source.dtype not in _TYPES or not 0 < len(axes) < source.ndim or not is_free(node):
        return False
    if source.aval.size < _LEAST and not profit.is_disregarded():
        return False
    last = source.ndim - 1
    return axes in ((last,), tuple(range(last)))


def _weighted(node: Node) -> Weighted | None:
    return weighted(node.operands[0], tuple(node.params["axes"])) if is_candidate(node) else None


def weighted(source: Value, axes: Axes) -> Weighted | None:
    """A product as the sum over some axes sees it; None if a factor is none that it knows."""
    negative = source.node is not None and source.node.op == "neg"
    parts = factors_of(source.node.operands[0] if negative and source.node is not None else source)
    if parts is None:
        return None
    full: list[Value] = []
    sides: list[list[Value]] = [[], [], [], []]
    for value, under in sorted(parts, key=_is_divisor):
        varying = varies(value, source.ndim)
        if varying & {*axes} and not varying <= {*axes}:
            if under or value.shape != source.shape:
                return None
            full.append(value)
        else:
            sides[2 * (not varying & {*axes}) + under].append(bare(value, source.ndim))
    by, over, apart, below = sides
    return Weighted(tuple(full), (*by, *over), (*apart, *below), (len(over), len(below)), negative)


def _is_divisor(part: tuple[Value, bool]) -> bool:
    return part[1]


def factors_of(source: Value) -> list[tuple[Value, bool]] | None:
    """The factors of a product, and whether each is a divisor; None where there are too many."""
    found: list[tuple[Value, bool]] = []
    stack = [source]
    while stack:
        value = stack.pop()
        node = value.node
        if node is not None and node.op in ("mul", "div") and value.shape == source.shape:
            stack.append(node.operands[0])
            if node.op == "mul":
                stack.append(node.operands[1])
            else:
                found.append((node.operands[1], True))
        else:
            found.append((value, False))
        if len(found) + len(stack) > _MOST_FACTORS:
            return None
    return found


def varies(value: Value, ndim: int) -> set[int]:
    """The axes along which a factor varies."""
    return {d for d, n in enumerate(bare(value, ndim).shape) if n != 1}


def bare(value: Value, ndim: int) -> Value:
    """What is broadcast along axes that it has with size one, of the same rank."""
    node = value.node
    if node is None or node.op != "broadcast_in_dim" or not is_free(node) or len(node.operands) != 1:
        return value
    same = tuple(node.params["broadcast_dimensions"]) == tuple(range(ndim))
    return node.operands[0] if same else value


def exists(value: Value) -> bool:
    """Whether a value is in memory in any case."""
    return value.node is None or value.node.op not in ELEMENTWISE


def _is_only_summed(value: Value) -> bool:
    """Whether a value is a product of matrices that nothing else reads: its factors can be summed instead."""
    return value.op == "dot_general" and len(value.uses) == 1


def _is_shared(node: Node, full: tuple[Value, ...]) -> bool:
    """Whether a sum over the other axes reads the same product, or it is there as a factor of a dot."""
    axes = {*node.params["axes"]}
    others = tuple(d for d in range(node.operands[0].ndim) if d not in axes)
    for user in _readers(full[0]):
        if user.op == "reduce_sum" and tuple(user.params["axes"]) == others:
            also = _weighted(user)
            if also is not None and also.weights and {*also.full} == {*full}:
                return True
        if user.op == "dot_general":
            for v in user.operands:
                if v.node is not None and v.node.op == "mul" and {*v.node.operands} == {*full}:
                    return True
    return False


def _readers(value: Value) -> Iterator[Node]:
    """Who reads a value, through products."""
    stack, seen = [value], 0
    while stack and seen < _SEARCH:
        for user, _ in stack.pop().uses:
            seen += 1
            if user.op == "mul":
                stack += user.results
            yield user


RULES: Final[tuple[Rule, ...]] = (sum_of_weighted,)
