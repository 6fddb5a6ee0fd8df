"""Parts of arrays along the batch that do not depend on it: counted, drawn at random, spread from less."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors import factors_of
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.microbatches.states import Part, Split

_CHEAP: Final = ELEMENTWISE - {"optimization_barrier", "device_put", "threefry2x32", "random_fold_in"} | {
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "bitcast_convert_type", "iota")
}


def is_grown(node: Node, value: Value, split: Split, part: Part) -> bool:
    """Whether the part of a node's result is computed for itself rather than cut out of the whole."""
    if node.effects or node.regions or len(node.results) != 1:
        return False
    if node.op == "random_bits":
        config: Any = jax.config
        size = math.prod(value.shape)
        apart = str(node.operands[0].dtype) == "key<fry>" and bool(config.jax_threefry_partitionable)
        return apart and node.operands[0].ndim == 0 and size < 1 << 32
    if node.op not in _CHEAP:
        return False
    factors = factors_of(node)
    factor = split.located(factors, factors.results[0], part)
    return factor is not None


def _place(node: Node, part: Part, count: int, index: Any, dtype: Any) -> list[Any]:
    """Of each element of a part its indices in the whole array, dimension by dimension."""
    shape = list(node.result.shape)
    inner = shape[part.dim] // (part.outer * count)
    shape[part.dim] //= count
    found = [jax.lax.broadcasted_iota(dtype, shape, dim) for dim in range(len(shape))]
    own, first = found[part.dim], jnp.asarray(index).astype(dtype) * dtype(inner)
    if part.outer > 1:
        size = jnp.full((), inner, dtype)
        own = jax.lax.div(own, size) * dtype(inner * count) + jax.lax.rem(own, size)
    found[part.dim] = own + first
    return found


def counted_part(node: Node, part: Part, count: int, index: Any) -> Any:
    """The part of an `iota`."""
    dimension, dtype = node.params["dimension"], node.params["dtype"]
    shape = list(node.result.shape)
    shape[part.dim] //= count
    if dimension != part.dim:
        return jax.lax.broadcasted_iota(dtype, shape, dimension)
    return _place(node, part, count, index, jnp.int32)[dimension].astype(dtype)


def random_part(node: Node, part: Part, count: int, index: Any, key: Any) -> Any:
    """The part of `random_bits`: the same bits as the whole has there.

    Threefry makes the bits of an element from the key and the element's number where
    `jax_threefry_partitionable` is set.
    """
    words = jax.random.key_data(key)
    places = _place(node, part, count, index, jnp.uint32)
    number = places[0]
    for place, size in zip(places[1:], node.result.shape[1:], strict=True):
        number = number * jnp.uint32(size) + place
    high = jnp.zeros(number.shape, jnp.uint32)
    spread = [jax.lax.broadcast(jax.lax.index_in_dim(words, i, keepdims=False), number.shape) for i in (0, 1)]
    first, second = _jax.primitive("threefry2x32").bind(*spread, high, number)
    width = node.params["bit_width"]
    dtype = node.result.dtype
    if width == 64:
        return (first.astype(dtype) << 32) | second.astype(dtype)
    return (first ^ second).astype(dtype)
