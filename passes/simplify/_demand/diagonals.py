"""Diagonals and traces of products."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import jax
from jax import lax

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.simplify._movement.common import bind, is_free, made_by, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.replacement import Rewrite
from lepton_jax.rewrite.rule import Outcome


class Diagonal(NamedTuple):
    """Entries (row + i, column + i) of the last two dimensions, for i below `length`."""

    row: int
    column: int
    length: int


@movement_rule("gather", "cond", level="reassociate", must_pay=True)
def diagonal_of_dot(node: Node, ctx: PassContext) -> Outcome:
    """diagonal(A @ B) → the product of row i of A and column i of B, for each i

    Also of batches, and off the main diagonal. `jnp.diagonal` has a choice by platform in it, whose
    one branch is the gather and whose other is for Pallas kernels on a TPU.
    25× at 1024×1024 (`python benchmarks/rewrites.py --only demand`).
    """
    found = (node, node.operands[0]) if node.op == "gather" else _chosen_gather(node)
    if found is None:
        return None
    gather, x = found
    dot = _matrix_product(x, node)
    diagonal = None if dot is None else _of_gather(gather)
    return None if dot is None or diagonal is None else _picked(dot, diagonal, total=False)


@movement_rule("reduce_sum", level="reassociate", must_pay=True)
def trace_of_dot(node: Node, ctx: PassContext) -> Outcome:
    """trace(A @ B) → Σ A[i, k] B[k, i], also off the main diagonal; einsum's `ii->i` is the diagonal

    What is off the diagonal is masked, so that infinities there do not matter before or after.
    33× at 1024×1024 (`python benchmarks/rewrites.py --only demand`).
    """
    mask = made_by(node.operands[0], node, "select_n")
    if mask is None or len(mask.operands) != 3 or not is_free(node) or len(mask.result.uses) != 1:
        return None
    where, zero, x = mask.operands
    dot = _matrix_product(x, node)
    if dot is None or where.shape[-2:] != x.shape[-2:] or not facts_of(zero).is_zero:
        return None
    diagonal, axes = _of_mask(where), {int(axis) for axis in node.params["axes"]}
    both = axes == {x.ndim - 2, x.ndim - 1}
    if diagonal is None or not (
        both or (len(axes) == 1 and _is_main(diagonal, x) and min(axes) >= x.ndim - 2)
    ):
        return None
    return _picked(dot, diagonal, total=both)


def _matrix_product(x: Value, node: Node) -> Node | None:
    """The product of two matrices, or of batches of them, that only this node reads."""
    dot = made_by(x, node, "dot_general")
    if dot is None or len(x.uses) != 1 or not is_free(dot):
        return None
    batches = len(dot.params["dimension_numbers"][1][0])
    return dot if all(free is not None for free in _free(dot)) and x.ndim == batches + 2 else None


def _free(dot: Node) -> tuple[int | None, int | None]:
    """The only free dimension of either factor, None where there is not just one."""
    contract, batch = dot.params["dimension_numbers"]
    found: list[int | None] = []
    for side, v in enumerate(dot.operands):
        free = [d for d in range(v.ndim) if d not in contract[side] and d not in batch[side]]
        found.append(free[0] if len(free) == 1 else None)
    return found[0], found[1]


def _is_main(diagonal: Diagonal, x: Value) -> bool:
    return diagonal == Diagonal(0, 0, x.shape[-1]) and x.shape[-1] == x.shape[-2]


def _chosen_gather(node: Node) -> tuple[Node, Value] | None:
    """The gather in the branch of a choice by platform that is not for Pallas kernels, and what it reads."""
    which = node.operands[0].node
    if which is None or which.op != "platform_index" or len(node.regions) != 2 or len(node.results) != 1:
        return None
    if which.params.get("platforms") != (("mosaic",), None):
        return None
    region: Graph = node.regions[1]
    gather = region.outputs[0].node
    if gather is None or gather.op != "gather" or gather.operands[0] not in region.inputs:
        return None
    return gather, node.operands[1 + gather.operands[0].index]


def _of_gather(gather: Node) -> Diagonal | None:
    """The diagonal that a gather of single entries reads, entry by entry, if it reads one."""
    numbers, (x, places) = gather.params["dimension_numbers"], gather.operands
    last = (x.ndim - 2, x.ndim - 1)
    if tuple(numbers.start_index_map) != last or tuple(numbers.collapsed_slice_dims) != last:
        return None
    if numbers.operand_batching_dims or tuple(numbers.offset_dims) != tuple(range(x.ndim - 2)):
        return None
    if tuple(gather.params["slice_sizes"]) != (*x.shape[:-2], 1, 1) or places.ndim != 2:
        return None
    columns = places.node
    if columns is None or columns.op != "concatenate" or columns.params["dimension"] != 1:
        return None
    runs = [facts_of(v).iota for v in columns.operands if v.shape[1] == 1]
    if len(runs) != 2 or any(run is None or run[0] != 0 or run[2] != 1 for run in runs):
        return None
    row, column = (run[1] for run in runs if run is not None)
    length = int(places.shape[0])
    inside = row >= 0 and column >= 0 and row + length <= x.shape[-2] and column + length <= x.shape[-1]
    return Diagonal(row, column, length) if inside and length > 0 else None


def _of_mask(where: Value) -> Diagonal | None:
    """The diagonal on which a mask is true."""
    band = facts_of(where).band
    if band is None or band.low is None or band.low != band.high or not band.inside:
        return None
    row, column = max(-band.low, 0), max(band.low, 0)
    length = min(where.shape[-2] - row, where.shape[-1] - column)
    return Diagonal(row, column, length) if length > 0 else None


def _picked(dot: Node, diagonal: Diagonal, total: bool) -> Rewrite:
    return rewrite(
        diagonal_product,
        *dot.operands,
        free=_free(dot),
        diagonal=tuple(diagonal),
        total=total,
        primitive=dot.primitive,
        params=tuple(sorted(dot.params.items())),
    )


def diagonal_product(
    a: jax.Array,
    b: jax.Array,
    *,
    free: tuple[int, int],
    diagonal: tuple[int, int, int],
    total: bool,
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> Any:
    """The diagonal of the product of `a` and `b`, or its sum."""
    row, column, length = diagonal
    settings = dict(params)
    contract, batch = settings["dimension_numbers"]
    factors = [
        x if x.shape[d] == length else lax.slice_in_dim(x, first, first + length, axis=d)
        for x, d, first in zip((a, b), free, (row, column), strict=True)
    ]
    joined = tuple((*own, d) for own, d in zip(contract if total else batch, free, strict=True))
    settings["dimension_numbers"] = (joined, batch) if total else (contract, joined)
    return bind(*factors, primitive=primitive, params=tuple(settings.items()))


RULES: Final[tuple[Rule, ...]] = (diagonal_of_dot, trace_of_dot)
