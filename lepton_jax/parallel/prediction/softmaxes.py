"""Softmaxes that XLA for TPUs computes within the product before them."""

from __future__ import annotations

import math

import jax.numpy as jnp

from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.regions import LOOPS
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.prediction.elements import FUSED
from lepton_jax.parallel.prediction.windows import PRODUCTS


def softmax_runs_within(value: Value) -> bool:
    """Whether a softmax runs within the product, one of many alike, that makes its argument: it is written.

    So it is where the argument is computed in float32, and the greatest of one dimension is looked for (XLA's
    `xla_tpu_rwb_fusion`, without `xla_tpu_allow_multi_dim_reduce_rwb`: a dimension of size 1 beside it counts
    as one more). Of a result in another order, as with grouped queries, it is so in loops, and where no
    gradient reads it.
    """
    if value.dtype != jnp.float32 or 1 in value.shape:
        return False
    readers = [node for node, _ in value.uses]
    if not any(node.op == "sub" for node in readers):
        return False
    if not any(node.op == "reduce_max" and len(node.params["axes"]) == 1 for node in readers):
        return False
    before, turned = value, False
    while (node := before.node) is not None and node.op not in PRODUCTS:
        made = [each for each in node.operands if _is_as_large(each, value)]
        turned |= node.op == "transpose"
        if len(made) != 1 or (node.op in ELEMENTWISE and before.dtype != value.dtype):
            return False
        if node.op not in ELEMENTWISE and node.op != "transpose":
            return False
        (before,) = made
    if node is None or node.op != "dot_general" or not node.params["dimension_numbers"][1][0]:
        return False
    return not (turned and _is_multiplied_again(value)) or _is_in_loop(node)


def sums_weights(product: Node, exponentials: Value) -> bool:
    """Whether a product sums over what a softmax of these exponentials sums, as that with the values does."""
    if product.op != "dot_general":
        return False
    sums = [node for node, _ in exponentials.uses if node.op == "reduce_sum"]
    summed = {axis for node in sums for axis in node.params["axes"]}
    for value, dims in zip(product.operands, product.params["dimension_numbers"][0], strict=True):
        while value.node is not None and value.node.op == "transpose":
            dims = [value.node.params["permutation"][dim] for dim in dims]
            (value,) = value.node.operands
        if summed and value.shape == exponentials.shape and summed.issubset(dims):
            return True
    return False


def _is_in_loop(node: Node) -> bool:
    """Whether a node is within a loop."""
    parents = node.graph.parents if node.graph is not None else ()
    return any(parent.op in LOOPS or _is_in_loop(parent) for parent in parents)


def _is_multiplied_again(value: Value) -> bool:
    """Whether several products read what is made of an array by elements."""
    products: set[Node] = set()
    ahead, seen = [value], {value}
    while ahead and len(products) < 2:
        for node, _ in ahead.pop().uses:
            if node.op in PRODUCTS:
                products.add(node)
            elif node.op in FUSED:
                ahead += [each for each in node.results if each not in seen]
                seen.update(node.results)
    return len(products) > 1


def _is_as_large(value: Value, other: Value) -> bool:
    """Whether it has as many elements, none of them repeated."""
    repeated = value.node is not None and value.node.op == "broadcast_in_dim"
    return not value.is_const and not repeated and math.prod(value.shape) == math.prod(other.shape)
