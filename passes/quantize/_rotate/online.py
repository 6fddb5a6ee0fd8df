"""Rotations at run time: the input of one product, and its weight beforehand."""

from __future__ import annotations

from typing import Final

import jax

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.paths import matches
from lepton_jax.numerics.hadamard import block_order, hadamard_transform
from lepton_jax.passes.quantize._rotate.write import turned
from lepton_jax.passes.simplify._absorb.known import Known
from lepton_jax.passes.simplify._absorb.product import Product, product_of
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "rotated-input"


def rotate_inputs(graph: Graph, known: Known, patterns: str) -> int:
    """Rotate the inputs of the products whose weights are made of parameters at some paths; how many."""
    ctx = known.ctx
    done: dict[tuple[Value, int], Value] = {}
    count = 0
    for node in [each for inner in graph.graphs() for each in inner]:
        product = product_of(node, known) if node.alive else None
        if product is None or node.op != "dot_general":
            continue
        paths = [ctx.paths[i] for i in sorted(known.early.get(product.weight, ()))]
        if not any(matches(pattern, path) for pattern in patterns.split() for path in paths):
            continue
        axes = _axes(product)
        if axes is None or not ctx.fire(RULE, node):
            ctx.miss(RULE, node, "it sums over several axes, or its size has no Hadamard matrix")
            continue
        _rotate(node, product, *axes, done)
        count += 1
    return count


def _axes(product: Product) -> tuple[int, int] | None:
    """The contracted axis of the weight and that of the activation."""
    contracted = product.node.params["dimension_numbers"][0]
    if len(contracted[0]) != 1:
        return None
    mine, other = contracted[product.side][0], contracted[1 - product.side][0]
    return (mine, other) if block_order(product.weight.shape[mine]) > 1 else None


def _rotate(
    node: Node, product: Product, mine: int, other: int, done: dict[tuple[Value, int], Value]
) -> None:
    late = product.late
    if (late, other) not in done:
        (done[late, other],) = write_before(rewrite(_transformed, late, axis=other), node, RULE)
    signs = (1,) * product.weight.shape[mine]
    (weight,) = write_before(rewrite(turned, product.weight, axis=mine, signs=signs), node, RULE)
    node.set_operand(product.side, weight)
    node.set_operand(1 - product.side, done[late, other])


def _transformed(x: jax.Array, *, axis: int) -> jax.Array:
    return hadamard_transform(x, axis)
