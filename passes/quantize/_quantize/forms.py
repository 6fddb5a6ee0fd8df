"""In which form a CPU multiplies activations in floats with a weight in codes."""

from __future__ import annotations

import math
from typing import Any, Final

from jax import lax

from lepton_jax.ir.cost import dtype_name, size_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.numerics.quantize import Scheme
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes.quantize._quantize.blocks import channels_of_block
from lepton_jax.passes.quantize._quantize.digits import Digits, why_not_digits
from lepton_jax.passes.quantize._quantize.weights import Storage
from lepton_jax.rewrite import PassContext
from lepton_jax.targets.convolution_forms import has_dot_products
from lepton_jax.targets.forms import LEAST_WEIGHT, keeps_unsigned

_VIEWS: Final = frozenset({"transpose", "reshape", "squeeze", "name", "stop_gradient"})
_FLOATS: Final = frozenset({"float32", "bfloat16", "float16"})
_PRECISE: Final = (lax.Precision.HIGH, lax.Precision.HIGHEST)
_CODES_TO_BLOCK: Final = 2
"""Times as many codes as floats are in a block: they are smaller."""


def digits_for(
    use: WeightUse, storage: Storage, activations: Scheme | None, ctx: PassContext
) -> Digits | None:
    """How a CPU multiplies codes that are unpacked first, or activations in floats; None: as they stand.

    It does not depend on the number of rows, since that of the same prepared weights may vary.
    """
    if activations is not None and not (storage.is_packed and _is_int8(activations)):
        return None
    if ctx.rates.platform != "cpu" or not has_dot_products():
        return None
    summed, batch = (part[use.side] for part in use.node.params["dimension_numbers"])
    shape = use.weight.shape
    if batch or size_of(shape) < LEAST_WEIGHT or len(summed) == len(shape):
        return None
    if not {dtype_name(value.dtype) for value in use.node.operands} <= _FLOATS or use.axes:
        return None
    if use.node.params.get("out_sharding") is not None or not _is_read_alike(use):
        return None
    if why_not_digits(storage, tuple(shape[i] for i in summed)) is not None:
        return None
    is_whole = not storage.is_packed
    unsigned = is_whole and not _is_looked_up(use.weight) and keeps_unsigned("cpu", size_of(shape))
    count = 1 if activations is not None else 3 * _is_precise(use.node.params["precision"])
    return Digits(count, unsigned, 0 if is_whole else _block(shape, summed))


def digits_of_rows(node: Node, storage: Storage, ctx: PassContext) -> int | None:
    """How many digits the rows of a ragged product are multiplied as; 0: two or three; None: none.

    Args:
        node: a product of rows [m, k] with a matrix for each group.
    """
    numbers = node.params["ragged_dot_dimension_numbers"]
    rows, weight, _ = node.operands
    if ctx.rates.platform != "cpu" or not has_dot_products() or size_of(weight.shape) < LEAST_WEIGHT:
        return None
    if numbers.dot_dimension_numbers[0][0] != (1,) or not storage.scheme.symmetric:
        return None
    if not {dtype_name(value.dtype) for value in (rows, weight)} <= _FLOATS:
        return None
    if why_not_digits(storage, rows.shape[1:]) is not None:
        return None
    return 3 * _is_precise(node.params["precision"])


def _is_precise(precision: Any) -> bool:
    """Whether a product is asked for in more digits than usual."""
    pair = precision if isinstance(precision, tuple) else (precision,)
    return any(each in _PRECISE for each in pair)


def _is_int8(scheme: Scheme) -> bool:
    return scheme.fmt.name == "int8" and scheme.symmetric and not scheme.group_sizes


def _block(shape: tuple[int, ...], summed: tuple[int, ...]) -> int:
    """How many outputs are unpacked at a time: a weight is [outputs, summed] here; 0: all."""
    inner = math.prod(shape[i] for i in summed)
    return channels_of_block((size_of(shape) // inner, inner // _CODES_TO_BLOCK), (1,), ())


def _is_read_alike(use: WeightUse) -> bool:
    """Whether all products that read a weight sum over the same dimensions: it is kept in one order."""
    summed = set(use.node.params["dimension_numbers"][0][use.side])
    for node, place in use.weight.uses:
        if node.op == "dot_general" and set(node.params["dimension_numbers"][0][place]) != summed:
            return False
    return all(node.op != "dot_general" for value in _sources(use.weight) for node, _ in value.uses)


def _is_looked_up(weight: Value) -> bool:
    """Whether rows of a weight are taken too, which are kept as they are."""
    readers: list[Node] = [node for value in (weight, *_sources(weight)) for node, _ in value.uses]
    return any(node.op == "gather" for node in readers)


def _sources(value: Value) -> list[Value]:
    """What a value is a view of."""
    found = []
    while value.node is not None and value.node.op in _VIEWS:
        value = value.node.operands[0]
        found.append(value)
    return found
