"""Gather and scatter.

Where indices point at single elements of a dimension, it can be split: each device looks up, or writes, what
falls into its part. Of a gather the parts are then added, the others being 0: a table of embeddings lies so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jax.numpy as jnp

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors.build import Build
from lepton_jax.parallel.factors.rule import Factors, Reduction, factor_rule
from lepton_jax.parallel.factors.zeros import jointly


@factor_rule("gather")
def gather(node: Node) -> Factors:
    """The indices' dimensions, and those of the operand that are taken in full, are the result's."""
    numbers, sizes, build = node.params["dimension_numbers"], node.params["slice_sizes"], Build()
    (source, indices), result = node.operands, node.results[0]
    read = [build.new(size) for size in indices.shape[:-1]]
    dims: list[tuple[int, ...]] = []
    taken: list[tuple[int, ...]] = []
    for dim, size in enumerate(source.shape):
        if dim in numbers.operand_batching_dims:
            place = numbers.operand_batching_dims.index(dim)
            dims.append(read[numbers.start_indices_batching_dims[place]])
            continue
        full = sizes[dim] == size and dim not in numbers.start_index_map
        if full:
            dims.append(build.new(size))
        elif sizes[dim] == 1:
            dims.append(build.new(size, reduced="add"))
        else:
            dims.append(build.new(size, whole=True))
        if dim not in numbers.collapsed_slice_dims:
            taken.append(dims[-1] if full else build.new(sizes[dim], whole=True))
    inside, outside = iter(taken), iter(read)
    made = tuple(next(inside if dim in numbers.offset_dims else outside) for dim in range(result.ndim))
    pointers = (*read, build.new(indices.shape[-1], whole=True))
    return build.done([tuple(dims), pointers], [made], [{0}] if _fills_with_zero(node) else [])


def _fills_with_zero(node: Node) -> bool:
    """Whether what lies outside reads as 0, or as no number at all, so that sums go through."""
    if "FILL" not in str(node.params["mode"]):
        return True
    filler: Any = node.params["fill_value"]
    if filler is None:
        return bool(jnp.issubdtype(node.operands[0].dtype, jnp.inexact))
    return bool(filler == 0 or filler != filler)


_JOINED: Final[Mapping[str, Reduction]] = {
    "scatter-add": "add",
    "scatter-sub": "add",
    "scatter-mul": "mul",
    "scatter_mul": "mul",
    "scatter-min": "min",
    "scatter-max": "max",
}


@factor_rule("scatter", *_JOINED)
def scatter(node: Node) -> Factors:
    """As `gather` the other way round; updates are split where they are added up.

    A device that has only some of the updates writes them into a base of 0 (1 for products), all but the
    first: the base counts once, as XLA has it.
    """
    numbers, count, build = node.params["dimension_numbers"], len(node.results), Build()
    base, indices, update = node.operands[0], node.operands[count], node.operands[count + 1]
    joined = _JOINED.get(node.op)
    batching = set(numbers.scatter_indices_batching_dims)
    rows = [
        build.new(size) if dim in batching else build.new(size, whole=joined is None, reduced=joined)
        for dim, size in enumerate(indices.shape[:-1])
    ]
    dims: list[tuple[int, ...]] = []
    written: dict[int, tuple[int, ...]] = {}
    windows = iter(numbers.update_window_dims)
    for dim, size in enumerate(base.shape):
        if dim in numbers.operand_batching_dims:
            place = numbers.operand_batching_dims.index(dim)
            dims.append(rows[numbers.scatter_indices_batching_dims[place]])
        elif dim in numbers.inserted_window_dims:
            dims.append(build.new(size))
        else:
            window = next(windows)
            full = update.shape[window] == size and dim not in numbers.scatter_dims_to_operand_dims
            dims.append(build.new(size, whole=not full and update.shape[window] != 1))
            written[window] = dims[-1] if full else build.new(update.shape[window], whole=True)
    outside = iter(rows)
    updates = tuple(written[dim] if dim in written else next(outside) for dim in range(update.ndim))
    pointers = (*rows, build.new(indices.shape[-1], whole=True))
    made = tuple(dims)
    return build.done(
        [*[made] * count, pointers, *[updates] * count], [made] * count, _linear(node, count, joined)
    )


def _linear(node: Node, count: int, joined: Reduction | None) -> list[set[int]]:
    bases: dict[int, Value] = dict(enumerate(node.operands[:count]))
    if joined == "mul":
        return [set(bases)]
    if joined in ("min", "max"):
        return []
    return jointly({**bases, **dict(enumerate(node.operands[count + 1 :], start=count + 1))})
