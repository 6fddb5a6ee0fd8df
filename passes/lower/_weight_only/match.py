"""Weights that are decoded from integers at each call: the codes, their scales, and what both are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.binding import Sources, is_stored
from lepton_jax.ir.cost import dtype_name, size_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.lower._products.stored import stem

_MOST_NODES: Final = 64
"""Operations between what is stored of a weight and its codes."""


@dataclass(frozen=True)
class Encoded:
    """A weight matrix as `codes · scale`.

    Attributes:
        codes: int8, of the shape of the weight.
        bits: of a code.
        chain: the operations that make the codes of what is stored, in the order of the program.
        scale: what the scales are broadcast from: a scalar, or 1 long along axes whose elements share one,
            and otherwise as long as the weight, or as it has groups; None: all are 1.
        group: elements along what is summed over that share a scale; 0: all of them.
    """

    codes: Value
    bits: int
    chain: tuple[Node, ...]
    scale: Value | None
    group: int


def encoded_of(weight: Value, summed: tuple[int, ...], early: Sources) -> Encoded | str | None:
    """The codes and scales that a weight is decoded from.

    Args:
        weight: an operand of a product.
        summed: its dimensions that are summed over, the one that is the last in memory last.
        early: the values that depend on parameters alone, none of them behind the mark of `store`.

    Returns:
        None where it is not decoded from int8 codes, the reason where the kernel does not take it.
    """
    inner = _through(weight, "convert_element_type")
    scales: Value | None = None
    if inner.node is not None and inner.node.op == "mul":
        a, b = inner.node.operands
        if _made_of_codes(a) or _made_of_codes(b):
            return "it has zero points"
        inner, scales = (a, b) if _is_codes(_through(a, "convert_element_type")) else (b, a)
    codes = _through(inner, "convert_element_type")
    if not _is_codes(codes):
        return None
    chain = chain_of(codes, early)
    if chain is None or codes.shape != weight.shape:
        return None
    bits = _bits_of(codes)
    scale, group = (None, 0) if scales is None else _scale_of(scales, weight.shape, summed)
    if scales is not None and scale is None:
        return "its scales are not one for each column, or for each group of what is summed over"
    if scale is not None and stem(scale) not in early:
        return None
    return Encoded(codes, bits, chain, scale, group)


def _through(value: Value, op: str) -> Value:
    while value.node is not None and value.node.op == op:
        value = value.node.operands[0]
        if dtype_name(value.dtype) == "int8":
            return value
    return value


def _is_codes(value: Value) -> bool:
    return value.is_static and dtype_name(value.dtype) == "int8" and not value.is_const


def _made_of_codes(value: Value) -> bool:
    """Whether it is a difference of codes and their zero points."""
    if value.node is None or value.node.op != "sub":
        return False
    return _is_codes(_through(value.node.operands[0], "convert_element_type"))


def chain_of(value: Value, early: Sources) -> tuple[Node, ...] | None:
    """The operations behind marks of `store` that make a value; None if it is made of anything else too."""
    found: dict[Node, None] = {}

    def add(value: Value) -> bool:
        node = value.node
        if value.is_const or value in early or (node is not None and node in found):
            return True
        if node is None or node.regions or node.effects or len(found) > _MOST_NODES:
            return False
        if not all(add(operand) for operand in node.operands):
            return False
        found[node] = None
        return True

    return tuple(found) if add(value) else None


def _bits_of(codes: Value) -> int:
    """The bits of codes whose sign was extended by a shift; 8 otherwise."""
    node = codes.node
    if node is None or node.op != "shift_right_arithmetic" or not node.operands[1].is_const:
        return 8
    contents: Any = _jax.plain_constant(node.operands[1].const)
    return 8 if contents is None or np.size(contents) != 1 else 8 - int(np.reshape(contents, ()))


def _scale_of(value: Value, shape: tuple[int, ...], summed: tuple[int, ...]) -> tuple[Value | None, int]:
    """What a scale is broadcast from, and how many elements share one; (None, 0) if it is something else."""
    block, axis = 0, summed[-1]
    while (node := value.node) is not None and not is_stored(node):
        if node.op == "slice" and any(node.params["start_indices"]):
            return None, 0
        if node.op == "reshape":
            wide = node.operands[0].shape
            if len(wide) != len(shape) + 1 or block:
                return None, 0
            block = wide[axis + 1]
        elif node.op == "broadcast_in_dim":
            dims, rank = node.params["broadcast_dimensions"], len(node.params["shape"])
            if not _keeps_places(dims, node.operands[0].ndim, rank, axis):
                return None, 0
        elif node.op not in ("slice", "convert_element_type"):
            return None, 0
        value = node.operands[0]
    if size_of(value.shape) == 1:
        return value, 0
    if value.ndim != len(shape):
        return None, 0
    if any(
        size not in ((1,) if d in summed else (1, shape[d]))
        for d, size in enumerate(value.shape)
        if d != axis
    ):
        return None, 0
    if value.shape[axis] == 1:
        return value, 0
    grouped = block > 1 and -(-shape[axis] // block) == value.shape[axis]
    whole = len(summed) == 1 or shape[axis] % max(block, 1) == 0
    return (value, block) if grouped and whole else (None, 0)


def _keeps_places(dims: tuple[int, ...], before: int, rank: int, axis: int) -> bool:
    """Whether a broadcast keeps every axis where it is, but for one that is added after `axis`."""
    if before == 0 or tuple(dims) == tuple(range(rank)):
        return True
    return rank == before + 1 and tuple(dims) == tuple(d for d in range(rank) if d != axis + 1)
