"""Sums of products over the iterations: one product after the loop."""

from __future__ import annotations

import math
from typing import Any

from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.loops._parts.scan import Scan, add_stacked, drop_carry, drop_unread, write_after
from lepton_jax.passes.loops._parts.worth import too_large, total_bytes
from lepton_jax.rewrite import PassContext, profit, rewrite

RULE = "accumulated-product"

_MOST_ROWS = 32
"""On a CPU, products that contract more per iteration are fast enough in the loop."""

_LEAST_OPERATIONS = 200
"""Products of fewer operations are part of XLA's loop on a CPU."""


def accumulated_products(node: Node, ctx: PassContext) -> None:
    """A sum of products over the iterations is one product that contracts over them too.

    scan((c, h), x_t: (c + x_tᵀ @ g_t, h')) → c + einsum("tbi,tbo->io", xs, gs), with gs stacked by the loop

    So are the gradients of the weights of a recurrent layer. Holds where nothing else reads the carry.
    1.3× for the gradient of a layer over 8 sequences (`python benchmarks/rewrites.py --only loops`).
    """
    position = 0
    while position < node.params["num_carry"]:
        if not _accumulated(node, position, ctx):
            position += 1


def _accumulated(node: Node, position: int, ctx: PassContext) -> bool:
    scan = Scan(node)
    found = accumulated_product(scan, position)
    if found is None:
        return False
    product, permutation = found
    factors = product.operands
    reason = why_not_after(scan, product, ctx)
    if reason is not None:
        ctx.miss(RULE, product, reason)
        return False
    if not ctx.fire(RULE, product):
        return False
    a, b = [Scan(node).result_of(v) or add_stacked(node, v) for v in factors]
    params = product.params
    made = rewrite(
        _sum_of_products,
        scan.init[position],
        a,
        b,
        dimension_numbers=params["dimension_numbers"],
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
        permutation=permutation,
    )
    (total,) = write_after(made, node, RULE)
    node.results[position].replace_uses(total)
    drop_carry(node, position)
    drop_unread(node)
    return True


def accumulated_product(scan: Scan, position: int) -> tuple[Node, tuple[int, ...] | None] | None:
    """The product that is added to a carry which nothing else reads, and how it is transposed.

    Both of its factors change from one iteration to another.
    """
    carry, total = scan.carries[position], scan.next[position]
    add = total.node
    if add is None or add.op not in ("add", "add_any") or list(total.uses) != [(scan.body.ret, position)]:
        return None
    if list(map(_reader, carry.uses)) != [add]:
        return None
    others = [v for v in add.operands if v is not carry]
    if len(others) != 1 or len(others[0].uses) != 1 or others[0].node is None:
        return None
    maker = others[0].node
    permutation: tuple[int, ...] | None = None
    if maker.op == "transpose" and len(maker.operands[0].uses) == 1 and maker.operands[0].node is not None:
        permutation, maker = tuple(maker.params["permutation"]), maker.operands[0].node
    if maker.op != "dot_general":
        return None
    depends = scan.dependence()
    if any(v.is_const or not depends[v] for v in maker.operands):
        return None
    return maker, permutation


def _reader(use: tuple[Node, int]) -> Node:
    return use[0]


def why_not_after(scan: Scan, product: Node, ctx: PassContext) -> str | None:
    """Why a sum of products does not pay as one product after the loop."""
    if scan.length < 4:
        return "the loop is short"
    (contracted, _), _ = product.params["dimension_numbers"]
    if product.params.get("out_sharding") is not None:
        return "the product is sharded"
    terms = math.prod(product.operands[0].shape[d] for d in contracted)
    if ctx.rates.platform == "cpu" and terms > _MOST_ROWS and not profit.is_disregarded():
        return f"{terms} terms an iteration are enough for a product on a CPU"
    operations = 2 * terms * math.prod(product.results[0].shape)
    if ctx.rates.platform == "cpu" and operations < _LEAST_OPERATIONS and not profit.is_disregarded():
        return "the product is small"
    fresh = [v for v in dict.fromkeys(product.operands) if scan.result_of(v) is None]
    has = [v for v in (*scan.scanned, *scan.stacked)]
    outer = total_bytes(product.results)
    return too_large(scan.length * total_bytes(fresh), scan.length * total_bytes(has) + outer, ctx)


def _sum_of_products(
    init: Any,
    a: Any,
    b: Any,
    *,
    dimension_numbers: Any,
    precision: Any,
    preferred_element_type: Any,
    permutation: tuple[int, ...] | None,
) -> Any:
    (left, right), (batch_left, batch_right) = dimension_numbers
    contracting = ((0, *(d + 1 for d in left)), (0, *(d + 1 for d in right)))
    batch = (tuple(d + 1 for d in batch_left), tuple(d + 1 for d in batch_right))
    total = lax.dot_general(
        a, b, (contracting, batch), precision=precision, preferred_element_type=preferred_element_type
    )
    return init + (total if permutation is None else lax.transpose(total, permutation))
