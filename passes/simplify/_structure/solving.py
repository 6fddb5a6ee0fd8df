"""Reading a linear solve: which matrix, which way round, along which axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lepton_jax.ir.graph import Graph, Node, Value


@dataclass(frozen=True, slots=True)
class Solve:
    """A solve with one matrix by its LU factorisation, or with each of a batch.

    Attributes:
        matrix: n by n, after the dimensions of the batch.
        right: the right-hand side: a vector, or vectors along `axis` of a matrix, after those of the batch.
        axis: the dimension of `right` and of the solution that the matrix acts on.
        turned: whether the transposed matrix is solved with.
    """

    matrix: Value
    right: Value
    axis: int
    turned: bool


def read_solve(node: Node) -> Solve | None:
    """The solve that a custom_linear_solve is, if it is JAX's general one, real and without batches."""
    return read_solves(node) if node.operands and node.operands[0].ndim == 2 else None


def read_solves(node: Node) -> Solve | None:
    """The solve that a custom_linear_solve is, if it is JAX's general one and real, or a batch of them."""
    lengths = node.params.get("const_lengths")
    if lengths is None or len(node.results) != 1 or len(node.regions) < 3 or lengths.matvec != 1:
        return None
    matrix, right = node.operands[0], node.operands[-1]
    rank = matrix.ndim - 2
    if rank < 0 or right.ndim - rank not in (1, 2) or not np.issubdtype(matrix.dtype, np.floating):
        return None
    if not any(_is_factor(value, matrix) for value in node.operands[1:-1]):
        return None
    found = _action(node.regions[0], rank)
    return None if found is None else Solve(matrix, right, *found)


def _is_factor(value: Value, matrix: Value) -> bool:
    """Whether a value is the LU factorisation of a matrix."""
    node = value.node
    if node is None or node.op != "lu":
        return False
    source = node.operands[0]
    if source.node is not None and source.node.op == "stop_gradient":
        source = source.node.operands[0]
    return source is matrix


def _action(matvec: Graph, rank: int) -> tuple[int, bool] | None:
    """The axis that a region multiplies with its first input, and whether that is transposed."""
    if len(matvec.inputs) != 2 or len(matvec.outputs) != 1:
        return None
    matrix, x = matvec.inputs
    node = matvec.outputs[0].node
    permutation = tuple(range(x.ndim))
    if node is not None and node.op == "transpose":
        permutation = tuple(node.params["permutation"])
        node = node.operands[0].node
    if node is None or node.op != "dot_general" or set(node.operands) != {matrix, x}:
        return None
    contract, batch = node.params["dimension_numbers"]
    side = node.operands.index(matrix)
    each = tuple(range(rank))
    if tuple(batch[0]) != each or tuple(batch[1]) != each or len(contract[0]) != 1:
        return None
    axis, summed = contract[1 - side][0], contract[side][0]
    place = rank if side == 0 else x.ndim - 1
    return (int(axis), summed == rank) if permutation.index(place) == axis else None
