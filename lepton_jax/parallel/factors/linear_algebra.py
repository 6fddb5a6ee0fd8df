"""Decompositions and solvers: matrices stay whole, batches of them are split."""

from __future__ import annotations

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.build import Build
from lepton_jax.parallel.factors.rule import Factors, factor_rule


@factor_rule(
    *("cholesky", "cholesky_update", "eig", "eigh", "geqrf", "hessenberg", "householder_product", "lu"),
    *("lu_pivots_to_permutation", "qr", "schur", "svd", "tridiagonal", "tridiagonal_solve"),
    "triangular_solve",
)
def matrices(node: Node) -> Factors:
    """The dimensions before a matrix's are the same in all arrays; solvers are linear in the right side."""
    build, first = Build(), node.operands[0]
    inner = 1 if node.op in ("tridiagonal_solve", "lu_pivots_to_permutation") else 2
    batch = tuple(build.new(size) for size in first.shape[: first.ndim - inner])
    operands, results = (
        [(*batch, *(build.new(size, whole=True) for size in value.shape[len(batch) :])) for value in values]
        for values in (node.operands, node.results)
    )
    solves = {"triangular_solve": [{1}], "tridiagonal_solve": [{3}]}
    return build.done(operands, results, solves.get(node.op, []))
