"""Which classes of dimensions a tensor-parallel program splits.

Splitting a class splits all parameters that have it; where it is summed over, devices add up their parts. Two
classes that meet in one operation cannot both have the same mesh axis. So the classes are nodes of a graph,
and wanted is a set of which no two are neighbours that covers the most bytes of parameters for the fewest
bytes to be added up. In a transformer these are heads, hidden dimensions and the vocabulary; the width, which
meets all of them, would cover as much and send more: the choice of Megatron-LM (Shoeybi et al., 2019,
arXiv 1909.08053).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

import jax.numpy as jnp

from lepton_jax.ir.cost import bytes_of
from lepton_jax.parallel.presets.arrangement import Work
from lepton_jax.parallel.presets.together import PRODUCTS, Dim, Together, Use

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """Classes to be split.

    Attributes:
        together: whose classes they are.
        classes: the chosen ones.
        dims: by position of a parameter the dimension that is split.
    """

    together: Together
    classes: tuple[Dim, ...]
    dims: Mapping[int, int]


def choose(work: Work, parts: int, without: Collection[Dim] = ()) -> Choice:
    """The classes of dimensions of parameters to split into so many parts; what is left whole is noted.

    Args:
        without: dimensions whose classes are not taken.
    """
    together = work.together(parts)
    inputs = work.graph.inputs
    closed = {together.of(inputs[i], dim) for i in work.roles.batch for dim in range(inputs[i].ndim)}
    closed |= {together.of(value, dim) for value, dim in without}
    covered: dict[Dim, dict[int, int]] = {}
    for i in work.roles.params:
        for dim in range(inputs[i].ndim):
            found = together.of(inputs[i], dim)
            if found is not None and found not in closed and found not in together.breaks:
                covered.setdefault(found, {}).setdefault(i, dim)
    wide = {each: dims for each, dims in covered.items() if any(inputs[i].ndim > 1 for i in dims)}
    total = sum(bytes_of(inputs[i]) for i in work.roles.params) or 1
    made = _products(work) or 1.0
    weights = {
        each: sum(bytes_of(inputs[i]) for i in dims) / total - together.sums.get(each, 0.0) / made
        for each, dims in wide.items()
    }
    near = {each: together.near.get(each, set()) & weights.keys() for each in weights}
    chosen = heaviest(weights, near, [together.sums.get(each, 0.0) for each in weights])
    dims = {i: dim for each in chosen for i, dim in covered[each].items()}
    _note(work, together, dims, closed)
    return Choice(together, chosen, dims)


def _products(work: Work) -> float:
    """The bytes of the results of all products: to add all up counts as much as to cover all parameters."""
    return sum(
        bytes_of(value) * use.times
        for use in work.program.uses
        if use.node.op in PRODUCTS
        for value in use.node.results
    )


def heaviest(weights: Mapping[T, float], near: Mapping[T, Set[T]], costs: Sequence[float]) -> tuple[T, ...]:
    """A set of no two neighbours with much weight, in the order of `weights`.

    Greedy from three orders, each then bettered by exchanging one member for those it keeps out.

    Args:
        costs: of each, in the order of `weights`; cheap ones are tried early in one of the orders.
    """
    positive = [each for each, weight in weights.items() if weight > 0]
    cost = dict(zip(weights, costs, strict=True))
    orders = [
        sorted(positive, key=lambda each: -weights[each]),
        sorted(positive, key=lambda each: -weights[each] / (1 + cost[each])),
        sorted(positive, key=lambda each: -weights[each] / (1 + len(near[each]))),
    ]
    best: set[T] = set()
    for order in orders:
        found = _bettered(_greedy(order, near, set()), positive, weights, near)
        if sum(weights[each] for each in found) > sum(weights[each] for each in best) + 1e-12:
            best = found
    return tuple(each for each in weights if each in best)


def _greedy(order: Sequence[T], near: Mapping[T, Set[T]], chosen: set[T]) -> set[T]:
    for each in order:
        if each not in chosen and not near[each] & chosen:
            chosen.add(each)
    return chosen


def _bettered(
    chosen: set[T], order: Sequence[T], weights: Mapping[T, float], near: Mapping[T, Set[T]]
) -> set[T]:
    for _ in range(len(order)):
        before = len(chosen), sum(weights[each] for each in chosen)
        for each in order:
            out = near[each] & chosen
            if each not in chosen and weights[each] > sum(weights[other] for other in out) + 1e-12:
                chosen = (chosen - out) | {each}
        chosen = _greedy(order, near, chosen)
        if before == (len(chosen), sum(weights[each] for each in chosen)):
            break
    return chosen


def _note(work: Work, together: Together, dims: Mapping[int, int], closed: Collection[Dim | None]) -> None:
    """Why parameters of more than one dimension are whole."""
    for i in work.roles.params:
        value = work.graph.inputs[i]
        open_dims = [dim for dim in range(value.ndim) if together.find((value, dim)) not in together.fixed]
        if len(open_dims) < 2 or i in dims:
            continue
        reasons = dict.fromkeys(
            f"dimension {dim} {reason}"
            for dim in open_dims
            if (reason := _reason(together, (value, dim), closed))
        )
        why = "; ".join(reasons) or "what goes with it is split otherwise"
        work.note(work.roles.paths[i], f"over the model's axes: {why}")


def _reason(together: Together, dim: Dim, closed: Collection[Dim | None]) -> str:
    value, axis = dim
    size = value.shape[axis]
    found = together.of(value, axis)
    if found is None:
        below = size // together.parts * together.parts
        near = f"{below} or {below + together.parts}" if below else f"{together.parts}"
        return f"({size}) does not divide by {together.parts}: {near} would" if size > 1 else ""
    if found in closed:
        return "goes with one of the batch"
    use = together.breaks[found][0] if found in together.breaks else together.gathered.get(found)
    if use is not None and use.node.op == "concatenate" and value.dtype == jnp.uint8:
        return f"({size}) has packed codes: a byte holds those of several parts of a row"
    if use is not None:
        return f"({size}) {_broken(together, use, found)}"
    return ""


def _broken(together: Together, use: Use, found: Dim) -> str:
    """What an operation does with a class that it needs whole."""
    for value, dims in zip(use.node.operands, use.operands, strict=True):
        for dim, factors in enumerate(dims):
            if factors and together.of(value, dim) == found and factors[0] not in use.whole:
                outer = use.sizes[factors[0]]
                if outer % together.parts:
                    inner = value.shape[dim] // outer
                    return f"is {outer} times {inner}, of which {outer} does not divide by {together.parts}"
    return f"is needed whole by {use.node.op}"
