"""Indices that count the rows of what they index."""

from __future__ import annotations

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Value


def row_numbers(
    index: Value, dims: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[dict[int, int], Value] | None:
    """For the indexed dimensions whose numbers count the rows of the index: which dimension of it they count.

    Returns:
        These, and the only column of the index that is left.
    """
    maker = index.node
    if maker is None or maker.op != "concatenate" or maker.params["dimension"] != index.ndim - 1:
        return None
    if len(maker.operands) != len(dims):
        return None
    found: dict[int, int] = {}
    for column, d in zip(maker.operands, dims, strict=True):
        at = _counted(column)
        if at is not None and column.shape[at] == shape[d] and at not in found.values():
            found[d] = at
    left = [column for column, d in zip(maker.operands, dims, strict=True) if d not in found]
    return (found, left[0]) if found and len(left) == 1 and left[0].shape[-1] == 1 else None


def _counted(column: Value) -> int | None:
    """The dimension along which a column of numbers counts from zero, if it does so."""
    if column.node is None or column.node.op not in ("broadcast_in_dim", "reshape", "iota"):
        return None
    iota = facts_of(column).iota
    return iota[0] if iota is not None and iota[1:] == (0, 1) and iota[0] < column.ndim - 1 else None
