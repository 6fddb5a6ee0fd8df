"""Operations that pick elements by index or by order: dynamic slices, gather, scatter, sort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir._facts.contents import of_array
from lepton_jax.ir._facts.dtypes import int_range, kind_of, scalar
from lepton_jax.ir._facts.lattice import Claims, Facts, elements, matrix, meet
from lepton_jax.ir._facts.registry import transfer, transfer_all
from lepton_jax.ir.graph import Node


@transfer("dynamic_slice")
def _dynamic_slice(node: Node, facts: Sequence[Facts]) -> Claims:
    f = facts[0]
    claims = elements(f)
    claims.update(uniform=f.uniform, one_hot=f.one_hot)
    if f.iota is not None and node.operands[0].shape[f.iota[0]] == node.result.shape[f.iota[0]]:
        claims["iota"] = f.iota
    if node.operands[0].shape[-2:] == node.result.shape[-2:]:
        claims |= matrix(f)
    return claims


@transfer("dynamic_update_slice")
def _dynamic_update_slice(node: Node, facts: Sequence[Facts]) -> Claims:
    return elements(meet(facts[0], facts[1]))


@transfer("scatter")
def _scatter(node: Node, facts: Sequence[Facts]) -> Claims:
    return elements(meet(facts[0], facts[2]))


@transfer("gather")
def _gather(node: Node, facts: Sequence[Facts]) -> Claims:
    if "FILL" not in str(node.params["mode"]):
        return elements(facts[0])
    dtype = node.result.dtype
    filler = node.params["fill_value"]
    if kind_of(dtype) == "other":
        return {}
    if filler is None:
        filler = _default_filler(dtype)
    return elements(meet(facts[0], _of_number(filler, dtype)))


def _default_filler(dtype: Any) -> Any:
    """What a gather puts where the index is out of bounds."""
    kind = kind_of(dtype)
    if kind == "bool":
        return True
    if kind != "int":
        return float("nan")
    low, high = int_range(dtype)
    return low if low < 0 else high


def _of_number(number: Any, dtype: Any) -> Facts:
    array = np.asarray(scalar(number, dtype))
    return of_array(array, _jax.ShapedArray((), array.dtype))


@transfer_all("unstack")
def _unstack(node: Node, facts: Sequence[Facts]) -> list[Claims]:
    return [elements(facts[0]) for _ in node.results]


@transfer_all("split")
def _split(node: Node, facts: Sequence[Facts]) -> list[Claims]:
    f, axis = facts[0], node.params["axis"]
    claims = elements(f)
    claims.update(uniform=f.uniform, one_hot=f.one_hot)
    if f.iota is not None and f.iota[0] != axis:
        claims["iota"] = f.iota
    return [dict(claims) for _ in node.results]


@transfer_all("sort")
def _sort(node: Node, facts: Sequence[Facts]) -> list[Claims]:
    return [elements(f) for f in facts]


@transfer_all("top_k", "approx_top_k")
def _top_k(node: Node, facts: Sequence[Facts]) -> list[Claims]:
    axis = node.params.get("axis", node.params.get("reduction_dimension", -1))
    length = node.operands[0].shape[axis]
    index = {"least": 0, "most": length - 1} if type(length) is int and node.op == "top_k" else {}
    return [elements(facts[0]), index]
