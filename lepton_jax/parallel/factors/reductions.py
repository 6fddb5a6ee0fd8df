"""Reductions, and what goes along a dimension in order: cumulative sums, sorts, windows, transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.build import Build
from lepton_jax.parallel.factors.rule import Dims, Factors, Reduction, factor_rule

JOINED: Final[Mapping[str, Reduction]] = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
}


@factor_rule(*JOINED, "reduce_xor", "argmax", "argmin")
def reduction(node: Node) -> Factors:
    """The dimensions that are left, and those that are reduced: whole where the result is an index."""
    joined, axes, build = JOINED.get(node.op), {int(axis) for axis in node.params["axes"]}, Build()
    dims = tuple(
        build.new(size, whole=joined is None, reduced=joined) if dim in axes else build.new(size)
        for dim, size in enumerate(node.operands[0].shape)
    )
    left = tuple(each for dim, each in enumerate(dims) if dim not in axes)
    return build.done([dims], [left], [{0}] if joined == "add" else [])


@factor_rule("reduce")
def reduce(node: Node) -> Factors:
    """As `reduction`, of several arrays at once, with a function of its own."""
    axes, count, build = set(node.params["dimensions"]), len(node.results), Build()
    dims = tuple(build.new(size, whole=dim in axes) for dim, size in enumerate(node.operands[0].shape))
    left = tuple(each for dim, each in enumerate(dims) if dim not in axes)
    starts: list[Dims] = [()] * count
    return build.done([dims] * count + starts, [left] * count)


@factor_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(node: Node) -> Factors:
    """The dimension that it goes along stays whole."""
    return _along(node, {node.params["axis"]}, node.op == "cumsum")


@factor_rule("sort")
def sort(node: Node) -> Factors:
    """The dimension that is ordered stays whole."""
    return _along(node, {node.params["dimension"]})


@factor_rule("fft")
def fft(node: Node) -> Factors:
    """The dimensions that are transformed stay whole; it is linear."""
    ndim = node.operands[0].ndim
    return _along(node, set(range(ndim - len(node.params["fft_lengths"]), ndim)), True)


@factor_rule("top_k", "approx_top_k")
def top_k(node: Node) -> Factors:
    """As `sort`, and only some are left."""
    axis = node.params.get("axis", node.params.get("reduction_dimension", -1))
    return _along(node, {axis % node.operands[0].ndim})


@factor_rule("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min")
def reduce_window(node: Node) -> Factors:
    """Dimensions along which the window does not move are as they were."""
    count = len(node.results)
    found = _along(node, _slid(node), node.op == "reduce_window_sum", count)
    starts: tuple[Dims, ...] = ((),) * (len(node.operands) - count)
    return Factors(
        found.sizes, found.operands[:count] + starts, found.results, found.reduced, found.whole, found.linear
    )


@factor_rule("select_and_scatter_add", "select_and_gather_add", "select_and_scatter")
def select_in_window(node: Node) -> Factors:
    """Of a pooling's derivative: linear in what comes in, not in what was compared."""
    return _along(node, _slid(node), node.op != "select_and_scatter")


def _slid(node: Node) -> set[int]:
    params = node.params
    dilation = params.get("base_dilation") or (1,) * len(params["window_dimensions"])
    moves = zip(
        params["window_dimensions"], params["window_strides"], params["padding"], dilation, strict=True
    )
    return {
        dim
        for dim, (size, stride, padding, base) in enumerate(moves)
        if size != 1 or stride != 1 or tuple(padding) != (0, 0) or base != 1
    }


def _along(node: Node, axes: set[int], is_linear: bool = False, count: int | None = None) -> Factors:
    """Every array has all dimensions; those of `axes` stay whole, for each size another factor."""
    build = Build()
    shape = node.operands[0].shape
    free = {dim: build.new(size) for dim, size in enumerate(shape) if dim not in axes}
    whole: dict[tuple[int, int], tuple[int, ...]] = {}

    def dims(sizes: tuple[int, ...]) -> Dims:
        found = []
        for dim, size in enumerate(sizes):
            if dim in free:
                found.append(free[dim])
                continue
            if (dim, size) not in whole:
                whole[dim, size] = build.new(size, whole=True)
            found.append(whole[dim, size])
        return tuple(found)

    operands = [dims(value.shape) if value.ndim else () for value in node.operands[:count]]
    return build.done(operands, [dims(value.shape) for value in node.results], [{0}] if is_linear else [])
