"""Decompositions and solvers: matrices stay whole, batches of them may shrink."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jax.ir.dimensions.atoms import Dims
from lepton_jax.ir.dimensions.walk import Walk, dimension_rule
from lepton_jax.ir.graph import Node


@dimension_rule(
    *("cholesky", "eig", "eigh", "hessenberg", "householder_product", "lu", "qr", "schur", "svd"),
    *("triangular_solve", "tridiagonal"),
)
def matrices(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """The dimensions before the last two of the first operand are those of all operands and results."""
    batch = operands[0][:-2]
    for dims in operands:
        walk.unite(batch, dims[: len(batch)])
        walk.pin_all([dims[len(batch) :]], node, "needs whole matrices")
    results = []
    for value in node.results:
        rest = tuple(walk.fresh_dim(size) for size in value.shape[len(batch) :])
        walk.pin_all([rest], node, "makes whole matrices")
        results.append((*batch, *rest))
    return results
