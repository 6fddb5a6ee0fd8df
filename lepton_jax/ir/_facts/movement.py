"""Operations that move elements about without computing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from lepton_jax.ir._facts.contents import contents
from lepton_jax.ir._facts.dtypes import static_size
from lepton_jax.ir._facts.lattice import (
    CONSTANT_LIMIT,
    Band,
    Claims,
    Facts,
    elements,
    everything,
    matrix,
    meet,
)
from lepton_jax.ir._facts.registry import transfer, transfer_all
from lepton_jax.ir.graph import Node

Array: TypeAlias = np.ndarray[Any, Any]


@transfer(
    "copy",
    "copy_p",
    "stop_gradient",
    "name",
    "sharding_constraint",
    "layout_constraint",
    "reshard",
    "mesh_cast",
    "pvary",
    "pcast",
)
def _same(node: Node, facts: Sequence[Facts]) -> Claims:
    return everything(facts[0])


@transfer_all("optimization_barrier", "device_put")
def _same_all(node: Node, facts: Sequence[Facts]) -> list[Claims]:
    return [everything(f) for f in facts]


@transfer("iota")
def _iota(node: Node, facts: Sequence[Facts]) -> Claims:
    return {"iota": (node.params["dimension"], 0, 1)}


def _table(facts: Facts, size: int | None = 0) -> Array | None:
    """The contents, when they are known and differ, and `size` elements are not too many to look at."""
    if facts.splat is not None or size is None or size > CONSTANT_LIMIT:
        return None
    return facts.constant


@transfer("broadcast_in_dim")
def _broadcast(node: Node, facts: Sequence[Facts]) -> Claims:
    f, operand, shape = facts[0], node.operands[0], node.result.shape
    places: tuple[int, ...] = tuple(node.params["broadcast_dimensions"])
    table = _table(f, static_size(shape))
    if table is not None:
        unit = [1] * len(shape)
        for d, out in enumerate(places):
            unit[out] = operand.shape[d]
        return contents(np.broadcast_to(table.reshape(unit), shape))
    kept = {d: out for d, out in enumerate(places) if operand.shape[d] == shape[out]}
    claims = elements(f)
    claims["uniform"] = frozenset(range(len(shape))) - frozenset(
        out for d, out in kept.items() if d not in f.uniform
    )
    if f.iota is not None and f.iota[0] in kept:
        claims["iota"] = (kept[f.iota[0]], *f.iota[1:])
    if f.one_hot in kept:
        claims["one_hot"] = kept[f.one_hot]
    last = operand.ndim - 1
    if last > 0 and kept.get(last) == len(shape) - 1 and kept.get(last - 1) == len(shape) - 2:
        claims |= matrix(f)
    return claims


@transfer("reshape", "squeeze", "expand_dims")
def _reshape(node: Node, facts: Sequence[Facts]) -> Claims:
    f, old, new = facts[0], node.operands[0].shape, node.result.shape
    claims = elements(f)
    if node.params.get("dimensions") is not None and node.op == "reshape":
        return claims
    table = _table(f)
    if table is not None:
        return contents(table.reshape(new))
    if not node.operands[0].is_static or not node.result.is_static:
        return claims
    kept = _kept_dimensions(old, new)
    claims["uniform"] = frozenset(kept[d] for d in f.uniform if d in kept) | {
        d for d, length in enumerate(new) if length == 1
    }
    if f.iota is not None and f.iota[0] in kept:
        claims["iota"] = (kept[f.iota[0]], *f.iota[1:])
    if f.one_hot in kept:
        claims["one_hot"] = kept[f.one_hot]
    if len(old) > 1 and len(new) > 1 and old[-2:] == new[-2:]:
        claims |= matrix(f)
    return claims


def _kept_dimensions(old: tuple[int, ...], new: tuple[int, ...]) -> dict[int, int]:
    """Dimensions that a reshape leaves whole: the same length with as many elements behind."""
    if 0 in old:
        return {}
    behind = {(length, static_size(new[d + 1 :])): d for d, length in enumerate(new) if length > 1}
    places = {
        d: behind.get((length, static_size(old[d + 1 :]))) for d, length in enumerate(old) if length > 1
    }
    return {d: place for d, place in places.items() if place is not None}


@transfer("transpose")
def _transpose(node: Node, facts: Sequence[Facts]) -> Claims:
    f = facts[0]
    permutation: tuple[int, ...] = tuple(node.params["permutation"])
    table = _table(f)
    if table is not None:
        return contents(table.transpose(permutation))
    place = {d: out for out, d in enumerate(permutation)}
    claims = elements(f)
    claims["uniform"] = frozenset(place[d] for d in f.uniform)
    if f.iota is not None:
        claims["iota"] = (place[f.iota[0]], *f.iota[1:])
    if f.one_hot is not None:
        claims["one_hot"] = place[f.one_hot]
    rank = len(permutation)
    if permutation[-2:] == (rank - 2, rank - 1):
        claims |= matrix(f)
    elif rank > 1 and permutation[-2:] == (rank - 1, rank - 2):
        claims |= {**matrix(f), "lower": f.upper, "upper": f.lower, "band": _flip(f.band)}
    return claims


def _flip(band: Band | None) -> Band | None:
    if band is None:
        return None
    low, high = band.low, band.high
    return Band(None if high is None else -high, None if low is None else -low, band.inside)


@transfer("slice")
def _slice(node: Node, facts: Sequence[Facts]) -> Claims:
    f, shape = facts[0], node.operands[0].shape
    starts, stops = tuple(node.params["start_indices"]), tuple(node.params["limit_indices"])
    strides = tuple(node.params["strides"] or (1,) * len(shape))
    table = _table(f)
    if table is not None:
        return contents(table[tuple(map(slice, starts, stops, strides))])
    claims = elements(f)
    claims["uniform"] = f.uniform
    claims["one_hot"] = f.one_hot
    if f.iota is not None:
        dimension, start, step = f.iota
        if type(starts[dimension]) is int and type(strides[dimension]) is int:
            claims["iota"] = (dimension, start + step * starts[dimension], step * strides[dimension])
    if len(shape) > 1 and strides[-2:] == (1, 1) and all(type(s) is int for s in starts[-2:]):
        claims |= _window(f, starts[-2:], shape[-2:], node.result.shape[-2:])
    return claims


def _window(f: Facts, start: tuple[int, int], old: tuple[Any, ...], new: tuple[Any, ...]) -> Claims:
    """A part of a matrix that begins at a row and a column."""
    if old == new:
        return matrix(f)
    shift = start[0] - start[1]
    claims: Claims = {"lower": f.lower and shift <= 0, "upper": f.upper and shift >= 0}
    if shift == 0 and new[0] == new[1]:
        claims.update(symmetric=f.symmetric, exactly_symmetric=f.exactly_symmetric)
    if f.band is not None:
        low, high = f.band.low, f.band.high
        claims["band"] = Band(
            None if low is None else low + shift, None if high is None else high + shift, f.band.inside
        )
    return claims


@transfer("rev")
def _rev(node: Node, facts: Sequence[Facts]) -> Claims:
    f, shape = facts[0], node.operands[0].shape
    dimensions = tuple(node.params["dimensions"])
    table = _table(f)
    if table is not None:
        return contents(np.flip(table, dimensions))
    claims = elements(f)
    claims.update(uniform=f.uniform, one_hot=f.one_hot, permutation=f.permutation)
    if f.iota is not None:
        dimension, start, step = f.iota
        length = shape[dimension]
        if dimension not in dimensions:
            claims["iota"] = f.iota
        elif type(length) is int:
            claims["iota"] = (dimension, start + step * (length - 1), -step)
    if not {len(shape) - 1, len(shape) - 2} & set(dimensions):
        claims |= matrix(f)
    return claims


@transfer("pad")
def _pad(node: Node, facts: Sequence[Facts]) -> Claims:
    f, filler = facts
    config = tuple(tuple(entry) for entry in node.params["padding_config"])
    if not all(type(n) is int for entry in config for n in entry):
        return elements(meet(f, filler))
    if all(entry == (0, 0, 0) for entry in config):
        return everything(f)
    claims = elements(meet(f, filler)) if any(max(entry) > 0 for entry in config) else elements(f)
    if not filler.is_zero:
        return claims
    claims["one_hot"] = f.one_hot
    if len(config) < 2:
        return claims
    (top, bottom, between_rows), (left, right, between_columns) = config[-2:]
    if top == left >= 0 and between_rows == between_columns == 0:
        claims.update(lower=f.lower, upper=f.upper)
        if bottom == right >= 0:
            claims.update(symmetric=f.symmetric, exactly_symmetric=f.exactly_symmetric)
    return claims


def _small(node: Node) -> bool:
    size = static_size(node.result.shape)
    return size is not None and size <= CONSTANT_LIMIT


@transfer("concatenate")
def _concatenate(node: Node, facts: Sequence[Facts]) -> Claims:
    dimension = node.params["dimension"]
    filled = [f for v, f in zip(node.operands, facts, strict=True) if v.shape[dimension] != 0]
    if not filled:
        return {}
    if len(filled) == 1:
        return everything(filled[0])
    tables = [f.constant for f in filled if f.constant is not None]
    if len(tables) == len(filled) and any(f.splat is None for f in filled) and _small(node):
        return contents(np.concatenate(tables, dimension))
    claims = elements(reduce(meet, filled))
    claims["uniform"] = frozenset.intersection(*(f.uniform for f in filled)) - {dimension}
    hot = {f.one_hot for f in filled}
    if len(hot) == 1 and dimension not in hot:
        claims["one_hot"] = hot.pop()
    if dimension < node.result.ndim - 2:
        claims |= matrix(reduce(meet, filled))
    return claims
