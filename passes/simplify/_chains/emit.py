"""Writing a network down in a chosen order."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from lepton_jax.passes.simplify._chains.network import Label, Plan


class _Part(NamedTuple):
    array: jax.Array
    names: tuple[int, ...]
    leaves: int


def multiply(
    *arrays: jax.Array,
    labels: tuple[tuple[Label, ...], ...],
    output: tuple[int, ...],
    plan: Plan,
    factors: tuple[str, ...],
    places: tuple[int, ...],
    precision: Any,
    accumulate: Any,
) -> jax.Array:
    """The product of labelled arrays.

    Args:
        arrays: the leaves, then the numbers that `factors` need.
        labels: those of the leaves.
        output: those of the result.
        plan: the order.
        factors: operations (`mul`, `div`, `neg`) with the numbers.
        places: the sets of leaves whose products they are applied to.
        precision: of the matrix products.
        accumulate: their preferred_element_type.
    """
    leaves, numbers = arrays[: len(labels)], iter(arrays[len(labels) :])
    pending = [
        (place, op, None if op == "neg" else next(numbers)) for op, place in zip(factors, places, strict=True)
    ]

    def scaled(part: _Part) -> _Part:
        array = part.array
        for place, op, number in pending:
            if place == part.leaves:
                array = _apply(op, array, number)
        return part._replace(array=array)

    def walk(plan: Plan) -> _Part:
        if isinstance(plan, int):
            return scaled(_leaf(leaves[plan], labels[plan], plan))
        a, b = walk(plan[0]), walk(plan[1])
        together = a.leaves | b.leaves
        outside = {name for i, own in enumerate(labels) if not together >> i & 1 for name in own}
        return scaled(_pair(a, b, outside | set(output), output, precision, accumulate))

    made = walk(plan)
    return _ordered(made.array, made.names, output)


def _leaf(array: jax.Array, labels: tuple[Label, ...], number: int) -> _Part:
    spread = tuple(d for d, label in enumerate(labels) if label is None)
    names = tuple(label for label in labels if label is not None)
    return _Part(lax.squeeze(array, spread) if spread else array, names, 1 << number)


def _apply(op: str, array: jax.Array, number: jax.Array | None) -> jax.Array:
    if number is None:
        return lax.neg(array)
    number = lax.squeeze(number, range(number.ndim)) if number.ndim else number
    return lax.mul(array, number) if op == "mul" else lax.div(array, number)


def _pair(
    a: _Part, b: _Part, needed: set[Label], output: tuple[int, ...], precision: Any, accumulate: Any
) -> _Part:
    summed = [name for name in a.names if name in b.names and name not in needed]
    leaves = a.leaves | b.leaves
    large, small = (a, b) if set(b.names) <= set(a.names) else (b, a)
    if not summed and set(small.names) <= set(large.names):
        return _Part(_scale(large, small), large.names, leaves)
    batch = [name for name in a.names if name in b.names and name in needed]
    if (*batch, *_free(a, b), *_free(b, a)) != output and (*batch, *_free(b, a), *_free(a, b)) == output:
        a, b = b, a
    numbers = (_places(summed, a, b), _places(batch, a, b))
    array = lax.dot_general(a.array, b.array, numbers, precision=precision, preferred_element_type=accumulate)
    return _Part(array, (*batch, *_free(a, b), *_free(b, a)), leaves)


def _places(names: list[int], a: _Part, b: _Part) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(map(a.names.index, names)), tuple(map(b.names.index, names))


def _free(a: _Part, b: _Part) -> tuple[int, ...]:
    return tuple(name for name in a.names if name not in b.names)


def _scale(large: _Part, small: _Part) -> jax.Array:
    order = tuple(name for name in large.names if name in small.names)
    factor = _ordered(small.array, small.names, order)
    places = tuple(large.names.index(name) for name in order)
    return lax.mul(large.array, lax.broadcast_in_dim(factor, large.array.shape, places))


def _ordered(array: jax.Array, names: tuple[int, ...], wanted: tuple[int, ...]) -> jax.Array:
    return array if names == wanted else lax.transpose(array, [names.index(name) for name in wanted])
