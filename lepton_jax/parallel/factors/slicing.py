"""Parts of arrays: cut out, put in, joined. A dimension that is not taken in full stays whole."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.build import Build
from lepton_jax.parallel.factors.rule import Dims, Factors, factor_rule
from lepton_jax.parallel.factors.zeros import jointly


@factor_rule("slice")
def slice_(node: Node) -> Factors:
    """Dimensions that are taken in full are the same."""
    strides = node.params["strides"] or (1,) * node.results[0].ndim
    return _window(node, [dim for dim, stride in enumerate(strides) if stride != 1])


@factor_rule("dynamic_slice")
def dynamic_slice(node: Node) -> Factors:
    """As `slice`: one taken in full starts at 0."""
    return _window(node, ())


def _window(node: Node, stepped: Sequence[int]) -> Factors:
    build, source, result = Build(), node.operands[0], node.results[0]
    dims, made = [], []
    for dim, (old, new) in enumerate(zip(source.shape, result.shape, strict=True)):
        full = old == new and dim not in stepped
        dims.append(build.new(old, whole=not full))
        made.append(dims[-1] if full else build.new(new, whole=True))
    starts: list[Dims] = [()] * (len(node.operands) - 1)
    return build.done([tuple(dims), *starts], [tuple(made)], [{0}])


@factor_rule("dynamic_update_slice")
def dynamic_update_slice(node: Node) -> Factors:
    """Dimensions written in full are the same; both arrays are parts of sums, or one where the other is 0."""
    build, (base, update) = Build(), node.operands[:2]
    dims, written = [], []
    for old, new in zip(base.shape, update.shape, strict=True):
        dims.append(build.new(old, whole=old != new))
        written.append(dims[-1] if old == new else build.new(new, whole=True))
    starts: list[Dims] = [()] * (len(node.operands) - 2)
    made = tuple(dims)
    return build.done([made, tuple(written), *starts], [made], jointly({0: base, 1: update}))


@factor_rule("pad")
def pad(node: Node) -> Factors:
    """Dimensions that nothing is added to are the same; sums go through where 0 is added."""
    build, source, result = Build(), node.operands[0], node.results[0]
    dims, made = [], []
    for dim, (low, high, inner) in enumerate(node.params["padding_config"]):
        same = low == high == inner == 0
        dims.append(build.new(source.shape[dim], whole=not same))
        made.append(dims[-1] if same else build.new(result.shape[dim], whole=True))
    return build.done([tuple(dims), ()], [tuple(made)], jointly(dict(enumerate(node.operands))))


@factor_rule("concatenate")
def concatenate(node: Node) -> Factors:
    """What is joined stays whole; all arrays are parts of sums, or all but those that are 0."""
    return _joined(node, node.params["dimension"], jointly(dict(enumerate(node.operands))))


@factor_rule("split")
def split(node: Node) -> Factors:
    """What is taken apart stays whole."""
    return _joined(node, node.params["axis"], [{0}])


def _joined(node: Node, axis: int, sets: list[set[int]]) -> Factors:
    build = Build()
    shape = node.results[0].shape
    shared = [() if dim == axis else build.new(size) for dim, size in enumerate(shape)]

    def dims(sizes: tuple[int, ...]) -> Dims:
        own = build.new(sizes[axis], whole=True)
        return tuple(own if dim == axis else each for dim, each in enumerate(shared))

    return build.done(
        [dims(value.shape) for value in node.operands], [dims(value.shape) for value in node.results], sets
    )


@factor_rule("stack")
def stack(node: Node) -> Factors:
    """The new dimension stays whole."""
    build, axis = Build(), node.params["axis"]
    dims = build.each(node.operands[0])
    made = (*dims[:axis], build.new(len(node.operands), whole=True), *dims[axis:])
    return build.done([dims] * len(node.operands), [made], jointly(dict(enumerate(node.operands))))


@factor_rule("unstack")
def unstack(node: Node) -> Factors:
    """The dimension that is gone stays whole."""
    build, axis = Build(), node.params["axis"]
    made = build.each(node.results[0])
    dims = (*made[:axis], build.new(len(node.results), whole=True), *made[axis:])
    return build.done([dims], [made] * len(node.results), [{0}])
