"""Operations on each element, and those that only bring elements to other places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_jax.ir.dimensions.atoms import Dims, Ints
from lepton_jax.ir.dimensions.walk import Walk, dimension_rule, is_integer
from lepton_jax.ir.graph import Node, Value

_ONE = (
    *(
        "neg",
        "sign",
        "floor",
        "ceil",
        "round",
        "abs",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "log2",
        "logistic",
    ),
    *("tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("sqrt", "rsqrt", "cbrt", "square", "erf", "erfc", "erf_inv", "lgamma", "digamma", "integer_pow"),
    *("one_minus_square", "reduce_precision", "clz", "population_count", "bessel_i0e", "bessel_i1e"),
    *("is_finite", "not", "real", "imag", "conj", "convert_element_type", "stop_gradient", "copy", "name"),
    *("sharding_constraint", "pvary"),
)
_SEVERAL = (
    *("pow", "atan2", "select_n", "clamp", "nextafter", "complex", "igamma", "igammac", "igamma_grad_a"),
    *("polygamma", "zeta", "random_gamma_grad", "regularized_incomplete_beta"),
    *("shift_left", "shift_right_logical", "shift_right_arithmetic"),
)
_NUMBERS = ("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "and", "or", "xor", "mulhi")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to")


@dimension_rule(*_ONE, *_SEVERAL)
def elementwise(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Each dimension of the result is that of all operands that have it; those of size 1 broadcast."""
    return [united(walk, node.results[0], [v for v in node.operands if v.ndim])]


@dimension_rule(*_NUMBERS, *_COMPARISONS)
def numbers(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """As `elementwise`; but where indices meet what the caller gives, their values matter."""
    (dims,) = elementwise(walk, node, operands)
    if _compares_indices(walk, node):
        walk.pin_all([dims], node, "sets its indices against integers that are not parameters")
    return [dims]


def _compares_indices(walk: Walk, node: Node) -> bool:
    if any(value.ndim == 0 or not is_integer(value) for value in node.operands):
        return False
    return any(walk.late(value) for value in node.operands)


def united(walk: Walk, result: Value, values: Sequence[Value]) -> Dims:
    """The dimensions of a result that its operands have too."""
    found: list[Ints] = []
    for dim, size in enumerate(result.shape):
        here = [walk.of(value)[dim] for value in values if value.shape[dim] == size]
        for other in here[1:]:
            walk.atoms.unite(here[0], other)
        found.append(here[0] if here else walk.fresh_dim(size))
    return tuple(found)


@dimension_rule("optimization_barrier", "device_put")
def each_to_each(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Result i is operand i."""
    return list(operands)


@dimension_rule("bitcast_convert_type")
def bitcast(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """The same elements, or the last dimension taken apart or put together."""
    (dims,), (result,) = operands, node.results
    if result.shape == node.operands[0].shape:
        return [dims]
    common = min(len(dims), result.ndim)
    common -= len(dims) == result.ndim
    for atoms in dims[common:]:
        walk.pin(atoms, node, "takes its elements apart")
    rest = [walk.fresh_dim(size) for size in result.shape[common:]]
    walk.pin_all([tuple(rest)], node, "takes its elements apart")
    return [(*dims[:common], *rest)]


@dimension_rule("broadcast_in_dim")
def broadcast_in_dim(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Dimensions that stay are the same; those that are new, or were of size 1, are free."""
    source, result = node.operands[0], node.results[0]
    placed = {
        place: operands[0][dim]
        for dim, place in enumerate(node.params["broadcast_dimensions"])
        if source.shape[dim] == result.shape[place]
    }
    return [tuple(placed[i] if i in placed else walk.fresh_dim(size) for i, size in enumerate(result.shape))]


@dimension_rule("transpose")
def transpose(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """The dimensions in another order."""
    return [tuple(operands[0][dim] for dim in node.params["permutation"])]


@dimension_rule("squeeze")
def squeeze(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Without dimensions of size 1."""
    gone = {dim % len(operands[0]) for dim in node.params["dimensions"]}
    return [tuple(atoms for dim, atoms in enumerate(operands[0]) if dim not in gone)]


@dimension_rule("rev")
def rev(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Some dimensions in reverse."""
    turned = set(node.params["dimensions"])
    return [tuple(atoms[::-1] if dim in turned else atoms for dim, atoms in enumerate(operands[0]))]


@dimension_rule("tile")
def tile(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """Copies go together."""
    reps = node.params["reps"]
    return [
        tuple(
            atoms if rep == 1 else np.tile(atoms, rep) if type(size) is int else walk.fresh_dim(size)
            for atoms, rep, size in zip(operands[0], reps, node.results[0].shape, strict=True)
        )
    ]


@dimension_rule("concatenate")
def concatenate(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """One after the other along a dimension, united along the others."""
    axis, result = node.params["dimension"], node.results[0]
    joined = (
        np.concatenate([dims[axis] for dims in operands])
        if type(result.shape[axis]) is int
        else _pinned_whole(walk, node, [dims[axis] for dims in operands], result.shape[axis])
    )
    first = operands[0]
    for dims in operands[1:]:
        walk.unite(first[:axis] + first[axis + 1 :], dims[:axis] + dims[axis + 1 :])
    return [(*first[:axis], joined, *first[axis + 1 :])]


def _pinned_whole(walk: Walk, node: Node, parts: Sequence[Ints], size: int) -> Ints:
    for atoms in parts:
        walk.pin(atoms, node, "joins it to a symbolic size")
    return walk.fresh_dim(size)


@dimension_rule("stack")
def stack(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """A new dimension over the operands, which are many as they are."""
    axis, first = node.params["axis"], operands[0]
    for dims in operands[1:]:
        walk.unite(first, dims)
    new = walk.fresh_dim(len(operands))
    walk.pin(new, node, "makes it of its operands")
    return [(*first[:axis], new, *first[axis:])]


@dimension_rule("unstack")
def unstack(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """A result for each index of a dimension."""
    axis, dims = node.params["axis"], operands[0]
    walk.pin(dims[axis], node, "makes a result of each index")
    return [(*dims[:axis], *dims[axis + 1 :]) for _ in node.results]


@dimension_rule("iota", "random_bits")
def made(walk: Walk, node: Node, operands: Sequence[Dims]) -> Sequence[Dims]:
    """What is made of nothing has dimensions of its own. An index that stays keeps its number."""
    result = node.results[0]
    dims = walk.fresh(result)
    if operands and operands[0]:
        walk.pin_all(operands, node, "draws numbers with it")
        dims = (*operands[0], *dims[len(operands[0]) :])
    return [dims]
