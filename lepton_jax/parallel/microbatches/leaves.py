"""What an operation without regions makes of examples."""

from __future__ import annotations

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors import Factors
from lepton_jax.parallel.microbatches.states import Factor, Split, State, Sum, by_number, needs_all
from lepton_jax.parallel.microbatches.zeros import is_zero


def results(node: Node, factors: Factors, factor: Factor, split: Split) -> list[State]:
    """The states of what a node makes, one of whose factors has the examples.

    Raises:
        MicrobatchError: it needs all examples at once.
    """
    if node.op == "gather" or node.op.startswith("scatter"):
        _check_indexing(node, factors, factor)
    joined = factors.reduced.get(factor.index)
    found: list[State] = []
    for value, dims in zip(node.results, factors.results, strict=True):
        part = split.part(factors, dims, factor)
        if part is not None:
            found.append(part)
        elif joined is None or (joined in ("and", "or") and value.dtype != bool):
            raise needs_all(node)
        else:
            found.append(Sum(joined))
    return found


def _check_indexing(node: Node, factors: Factors, factor: Factor) -> None:
    """Indices that point along the examples point at other examples; sums go into a base of 0."""
    numbers = node.params["dimension_numbers"]
    is_read = node.op == "gather"
    pointed = numbers.start_index_map if is_read else numbers.scatter_dims_to_operand_dims
    dims = factors.operands[0]
    if any(factor.index in dims[dim] for dim in pointed):
        raise by_number(node)
    if is_read or factor.index not in factors.reduced:
        return
    count = len(node.results)
    if factors.reduced[factor.index] != "add" or not all(map(is_zero, node.operands[:count])):
        raise needs_all(node)
