"""How an operation is bound on smaller arrays: its parameters that carry shapes are computed anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.cutting.cut import Cut, CutError, Indices, evenly_spaced, places, take_axis, where
from lepton_jax.ir.graph import Node, Value

Results = Sequence[Any]


def bind_leaf(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    """Run a node without regions on what stays of its operands.

    Raises:
        CutError: the operation cannot be made smaller so.
    """
    rule = _RULES.get(node.op)
    if rule is not None:
        return rule(node, operands, cut)
    return _bind(node, operands)


def _bind(node: Node, operands: Sequence[Any], **new: Any) -> Results:
    raw = node.params if node.raw is None else node.raw
    params = node.primitive.get_bind_params({**raw, **new})
    results = node.primitive.bind(*operands, **params)
    return results if node.primitive.multiple_results else [results]


def _sized(key: str) -> Callable[[Node, Sequence[Any], Cut], Results]:
    """The rule of an operation one of whose parameters is the shape of its result."""

    def rule(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
        return _bind(node, operands, **{key: cut.shape(node.results[0])})

    return rule


def _iota(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    dimension, shape = node.params["dimension"], cut.shape(node.result)
    indices = cut.of(node.result)[dimension]
    if indices is None:
        return _bind(node, operands, shape=shape)
    counted = jnp.asarray(indices, node.params["dtype"])
    return [lax.broadcast_in_dim(counted, shape, (dimension,))]


def _random_bits(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    """Bits for fewer elements: others than the ones that stay had, and as random."""
    keys = node.operands[0].ndim
    return _bind(node, operands, shape=cut.shape(node.result)[keys:])


def _sources(node: Node, cut: Cut, axis: int, start: int, stride: int) -> Indices | None:
    """Which indices of the smaller operand a slice reads along one axis; None: all that it read before."""
    (operand,) = node.operands[:1]
    result = node.results[0]
    kept, wanted = cut.of(operand)[axis], cut.of(result)[axis]
    if kept is None and wanted is None:
        return None
    size = result.shape[axis]
    before = np.arange(size) if wanted is None else wanted
    return places(start + stride * before, kept, node, axis)


def _slice(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    p = node.params
    (array,) = operands
    strides = list(p["strides"] or (1,) * node.operands[0].ndim)
    starts, limits = list(p["start_indices"]), list(p["limit_indices"])
    for axis in range(len(starts)):
        found = _sources(node, cut, axis, starts[axis], strides[axis])
        if found is None:
            continue
        if (spaced := evenly_spaced(found)) is None:
            array = take_axis(array, found, axis)
            starts[axis], limits[axis], strides[axis] = 0, len(found), 1
        else:
            starts[axis], strides[axis] = spaced
            limits[axis] = starts[axis] + strides[axis] * (len(found) - 1) + 1
    return [lax.slice(array, starts, limits, strides)]


def _split(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    axis = node.params["axis"]
    sizes = tuple(cut.shape(result)[axis] for result in node.results)
    return _bind(node, operands, sizes=sizes)


def _dynamic_slice(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    operand, result = node.operands[0], node.result
    sizes = list(node.params["slice_sizes"])
    for axis, each in enumerate(cut.of(operand)):
        if each is None:
            continue
        if sizes[axis] != operand.shape[axis]:
            raise CutError(f"{node.op} reads a part of dimension {axis}, which is cut ({where(node)})")
        sizes[axis] = cut.shape(result)[axis]
    return _bind(node, operands, slice_sizes=tuple(sizes))


def _gather(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    operand = node.operands[0]
    batches = node.params["dimension_numbers"].operand_batching_dims
    sizes = list(node.params["slice_sizes"])
    for axis, each in enumerate(cut.of(operand)):
        if each is None or axis in batches:
            continue
        if sizes[axis] != operand.shape[axis]:
            raise CutError(
                f"gather picks among the indices of dimension {axis}, which is cut ({where(node)})"
            )
        sizes[axis] = len(each)
    return _bind(node, operands, slice_sizes=tuple(sizes))


def _pad(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    """Fewer elements of the padding where the result loses some of it."""
    operand, filling = operands
    config = list(node.params["padding_config"])
    picked: dict[int, Indices] = {}
    for axis, (low, _, interior) in enumerate(config):
        kept, wanted = cut.of(node.operands[0])[axis], cut.of(node.result)[axis]
        if kept is None and wanted is None:
            continue
        size = node.operands[0].shape[axis]
        sources = np.full(node.result.shape[axis], -1)
        targets = low + (interior + 1) * np.arange(size)
        inside = (targets >= 0) & (targets < len(sources))
        sources[targets[inside]] = np.arange(size)[inside]
        sources = sources if wanted is None else sources[wanted]
        found = np.where(sources < 0, -1, 0)
        found[sources >= 0] = places(sources[sources >= 0], kept, node, axis)
        count = size if kept is None else len(kept)
        there = np.flatnonzero(found >= 0)
        if len(there) == count and np.array_equal(there, there[:1] + np.arange(count)) and count:
            config[axis] = (int(there[0]), len(found) - int(there[-1]) - 1, 0)
        else:  # one element of padding at the end, which is picked wherever there is padding
            config[axis] = (0, 1, 0)
            picked[axis] = np.where(found < 0, count, found)
    result = lax.pad(operand, filling, config)
    for axis, indices in picked.items():
        result = jnp.take(result, indices, axis=axis, mode="clip")
    return [result]


def _conv(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    """The number of groups follows from the kernel, which has the channels of one group."""
    p = node.params
    lhs, rhs = node.operands
    features, inputs = p["dimension_numbers"].lhs_spec[1], p["dimension_numbers"].rhs_spec[1]
    outputs, batch = p["dimension_numbers"].rhs_spec[0], p["dimension_numbers"].lhs_spec[0]
    new: dict[str, Any] = {}
    if p["feature_group_count"] > 1:
        new["feature_group_count"] = _groups(cut, lhs, features, rhs, inputs, node)
    if p["batch_group_count"] > 1:
        new["batch_group_count"] = _groups(
            cut, lhs, batch, node.result, p["dimension_numbers"].out_spec[0], node
        )
    for key, count in new.items():
        if cut.shape(rhs)[outputs] % count:
            raise CutError(
                f"{cut.shape(rhs)[outputs]} channels do not make {count} groups: {key} ({where(node)})"
            )
    return _bind(node, operands, **new)


def _groups(cut: Cut, whole: Value, axis: int, part: Value, part_axis: int, node: Node) -> int:
    """How many parts make the whole."""
    size, one = cut.shape(whole)[axis], cut.shape(part)[part_axis]
    if size % one:
        raise CutError(f"{size} channels do not make groups of {one} ({where(node)})")
    return int(size // one)


def _top_k(node: Node, operands: Sequence[Any], cut: Cut) -> Results:
    axis = node.params.get("axis", -1)
    if cut.of(node.operands[0])[axis] is not None:
        raise CutError(f"{node.op} picks among the indices of dimension {axis}, which is cut ({where(node)})")
    return _bind(node, operands)


def scan_length(node: Node, cut: Cut) -> Any:
    """How often a scan goes round when its scanned arrays keep only some of their leading indices."""
    first = node.params["num_consts"] + node.params["num_carry"]
    stacked = [*node.operands[first:], *node.results[node.params["num_carry"] :]]
    lengths = {cut.shape(value)[0] for value in stacked}
    if len(lengths) > 1:
        raise CutError(f"scan's arrays would have {sorted(lengths)} layers ({where(node)})")
    return lengths.pop() if lengths else node.params["length"]


_RULES: Final[Mapping[str, Callable[[Node, Sequence[Any], Cut], Results]]] = {
    "broadcast_in_dim": _sized("shape"),
    "reshape": _sized("new_sizes"),
    "rng_uniform": _sized("shape"),
    "empty": _sized("shape"),
    "iota": _iota,
    "random_bits": _random_bits,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "conv_general_dilated": _conv,
    "top_k": _top_k,
}
