"""Doing an operation in parts, as its factors say, to compare with doing it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors import Dims, Factors

JOIN: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.logical_and,
    "or": np.logical_or,
}


@dataclass
class Trial:
    """An operation to be done in parts: the operands and changed parameters of each, and how they join."""

    node: Node
    parts: list[tuple[list[Any], dict[str, Any]]]
    join: Callable[[list[list[Any]]], list[Any]]


def at_once(
    cases: Sequence[tuple[Callable[..., Any], str, tuple[Any, ...]]],
) -> list[tuple[Node, list[Any], list[Any]]]:
    """The one node of each function that is called so, with its operands and results."""
    graphs = [inline_calls(trace(fun, *args)) for fun, _, args in cases]
    nodes = [
        next(node for node in graph if node.op == op) for graph, (_, op, _) in zip(graphs, cases, strict=True)
    ]

    def evaluate(arguments: list[tuple[Any, ...]]) -> list[Any]:
        found = []
        for graph, target, args in zip(graphs, nodes, arguments, strict=True):
            known: dict[Any, Any] = dict(zip(graph.inputs, args, strict=True))
            for node in graph:
                read = [v.const if v.is_const else known[v] for v in node.operands]
                known.update(zip(node.results, run(node, read), strict=True))
                if node is target:
                    found.append(([*map(jnp.asarray, read)], [known[value] for value in node.results]))
        return found

    found = jax.jit(evaluate)([args for *_, args in cases])
    return [
        (node, [*map(held, read)], [*map(held, made)])
        for node, (read, made) in zip(nodes, found, strict=True)
    ]


def trials_of(node: Node, factors: Factors, operands: Sequence[Any], most: int = 9) -> list[Trial]:
    """One for each factor that can be split, at most so many, and for each linear set."""
    free = [factor for factor in range(len(factors.sizes)) if factor not in factors.whole]
    split = [split_along(node, factors, factor, operands) for factor in free[:most]]
    return split + [sum_through(node, each, operands) for each in factors.linear]


def run_all(trials: Sequence[Trial]) -> list[list[Any]]:
    """The joined results of each, compiled as one program."""

    def all_parts(operands: Any) -> Any:
        return [
            [run(trial.node, read, **changes) for read, (_, changes) in zip(mine, trial.parts, strict=True)]
            for mine, trial in zip(operands, trials, strict=True)
        ]

    made = jax.jit(all_parts)([[operands for operands, _ in trial.parts] for trial in trials])
    return [
        trial.join([[*map(held, each)] for each in mine]) for trial, mine in zip(trials, made, strict=True)
    ]


def run(node: Node, operands: Sequence[Any], **changes: Any) -> list[Any]:
    """A node's results on other operands."""
    params = {**(node.raw if node.raw is not None else node.params), **changes}
    results = node.primitive.bind(*map(jnp.asarray, operands), **params)
    return list(results) if node.primitive.multiple_results else [results]


def held(array: Any) -> Any:
    """An array for NumPy; keys stay JAX's."""
    return array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else np.asarray(array)


def plain(array: Any) -> Any:
    """Numbers as they are, of keys what they are made of."""
    return jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def split_along(node: Node, factors: Factors, factor: int, operands: Sequence[Any]) -> Trial:
    """Each part has its part of the operands along a factor."""
    sizes, size = factors.sizes, factors.sizes[factor]
    count = next(n for n in range(2, size + 1) if size % n == 0)
    shapes = [
        part(np.empty(value.shape), dims, sizes, factor, count, 0).shape
        for value, dims in zip(node.results, factors.results, strict=True)
    ]
    parts = []
    for index in range(count):
        pairs = zip(operands, factors.operands, strict=True)
        mine = [part(each, dims, sizes, factor, count, index) for each, dims in pairs]
        changes = local_params(node, factors, factor, count, mine, shapes)
        parts.append((moved(node, factors, factor, index, mine), changes))

    def join(made: list[list[Any]]) -> list[Any]:
        made = [offset(node, factors, factor, index, results) for index, results in enumerate(made)]
        joined = made[0]
        if factor not in factors.reduced:
            columns = zip(factors.results, *made, strict=True)
            return [again(dims, sizes, factor, arrays) for dims, *arrays in columns]
        for results in made[1:]:
            joined = [JOIN[factors.reduced[factor]](a, b) for a, b in zip(joined, results, strict=True)]
        return joined

    return Trial(node, parts, join)


def part(array: Any, dims: Dims, sizes: Sequence[int], factor: int, count: int, index: int) -> Any:
    """One of `count` parts of an array along a factor."""
    for dim, parts in enumerate(dims):
        if factor not in parts:
            continue
        shape, place, step = array.shape, parts.index(factor), sizes[factor] // count
        apart = array.reshape(*shape[:dim], *(sizes[i] for i in parts), *shape[dim + 1 :])
        taken = apart[(slice(None),) * (dim + place) + (slice(index * step, (index + 1) * step),)]
        array = taken.reshape(*shape[:dim], shape[dim] // count, *shape[dim + 1 :])
    return array


def again(dims: Dims, sizes: Sequence[int], factor: int, arrays: Sequence[Any]) -> Any:
    """An array put together of its parts along a factor; one without it is the same in all."""
    for dim, parts in enumerate(dims):
        if factor not in parts:
            continue
        shape, place = arrays[0].shape, parts.index(factor)
        split = [sizes[factor] // len(arrays) if i == factor else sizes[i] for i in parts]
        apart = [plain(each).reshape(*shape[:dim], *split, *plain(each).shape[dim + 1 :]) for each in arrays]
        joined = np.concatenate(apart, axis=dim + place)
        return joined.reshape(*shape[:dim], shape[dim] * len(arrays), *joined.shape[dim + len(parts) :])
    return arrays[-1]


def local_params(
    node: Node,
    factors: Factors,
    factor: int,
    count: int,
    operands: Sequence[Any],
    shapes: Sequence[tuple[int, ...]],
) -> dict[str, Any]:
    """The parameters that have sizes in them, for parts."""
    params, (shape, *_) = node.params, shapes
    if node.op in ("broadcast_in_dim", "iota"):
        return {"shape": shape}
    if node.op == "reshape":
        return {"new_sizes": shape}
    if node.op == "dynamic_slice":
        return {"slice_sizes": shape}
    if node.op == "tile":
        return {"reps": tuple(new // old for new, old in zip(shape, operands[0].shape, strict=True))}
    if node.op == "slice":
        ends = zip(params["limit_indices"], node.operands[0].shape, operands[0].shape, strict=True)
        return {"limit_indices": tuple(new if new != old else end for end, old, new in ends)}
    if node.op == "gather":
        sizes = zip(params["slice_sizes"], node.operands[0].shape, operands[0].shape, strict=True)
        taken = tuple(new if taken == old else taken for taken, old, new in sizes)
        return {"slice_sizes": taken, "mode": lax.GatherScatterMode.FILL_OR_DROP, "fill_value": 0}
    if node.op.startswith("scatter"):
        return {"mode": lax.GatherScatterMode.FILL_OR_DROP}
    if node.op == "conv_general_dilated":
        numbers, out = (
            params["dimension_numbers"],
            factors.operands[1][params["dimension_numbers"].rhs_spec[0]],
        )
        grouped = {"feature_group_count": numbers.lhs_spec[1], "batch_group_count": numbers.lhs_spec[0]}
        return {
            name: params[name] // count
            for name, dim in grouped.items()
            if factor in factors.operands[0][dim] and factor in out
        }
    return {}


def moved(node: Node, factors: Factors, factor: int, index: int, operands: list[Any]) -> list[Any]:
    """What a device changes of its operands: indices count from where its part begins, a base counts once."""
    if node.op != "gather" and not node.op.startswith("scatter"):
        return operands
    count = len(node.results) if node.op != "gather" else 1
    numbers = node.params["dimension_numbers"]
    pointed = numbers.start_index_map if node.op == "gather" else numbers.scatter_dims_to_operand_dims
    base, pointers = operands[0], operands[count].copy()
    for place, dim in enumerate(pointed):
        if factor in factors.operands[0][dim]:
            pointers[..., place] -= index * base.shape[dim]
    operands = [*operands[:count], pointers, *operands[count + 1 :]]
    if factor in factors.reduced and node.op in ("scatter-add", "scatter-sub", "scatter-mul") and index:
        operands[0] = np.full_like(base, 1 if node.op == "scatter-mul" else 0)
    return operands


def offset(node: Node, factors: Factors, factor: int, index: int, results: list[Any]) -> list[Any]:
    """What a device adds because its part begins later."""
    if node.op == "iota" and factor in factors.results[0][node.params["dimension"]]:
        return [results[0] + index * results[0].shape[node.params["dimension"]]]
    return results


def sum_through(node: Node, terms: frozenset[int], operands: Sequence[Any]) -> Trial:
    """Just these operands are sums of two parts; the results are the sums of the parts' results."""
    one, other = list(operands), list(operands)
    for position in terms:
        array = operands[position]
        one[position] = (np.arange(array.size).reshape(array.shape) % 5 - 1).astype(array.dtype)
        other[position] = array - one[position]

    def join(made: list[list[Any]]) -> list[Any]:
        return [a + b for a, b in zip(*made, strict=True)]

    return Trial(node, [(one, {}), (other, {})], join)
