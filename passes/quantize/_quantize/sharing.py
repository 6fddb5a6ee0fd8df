"""Products of a batch with copies of one weight: with the weight itself, before it is quantised."""

from __future__ import annotations

from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.binding import parameters_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes._weights.copies import Places, copied
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write

_RULE: Final = "weight-for-all-the-batch"


def share_weights(graph: Graph, ctx: PassContext) -> None:
    """Write products of a batch with copies of one weight as products with the weight: it is kept once."""
    nodes = [node for node in graph.walk() if node.op == "dot_general" and _repeated(node)]
    early = parameters_of(graph, ctx.params) if nodes and ctx.params else {}
    for node in nodes:
        for side, one, places in _repeated(node):
            if not early.get(one) or not ctx.fire(_RULE, node):
                continue
            made = rewrite(
                product,
                node.operands[1 - side],
                one,
                side=side,
                dims=node.params["dimension_numbers"],
                places=places,
                precision=node.params["precision"],
                wide=node.params["preferred_element_type"],
            )
            write(made, node, _RULE)
            erase_dead(node)
            break


def _repeated(node: Node) -> list[tuple[int, Value, Places]]:
    """Which operands are copies of one array, one for each of the batch; the array; where its axes are."""
    _, batch = node.params["dimension_numbers"]
    found = []
    for side, value in enumerate(node.operands):
        for one, places in copied(value) if batch[0] else ():
            if sorted((*places, *batch[side])) == list(range(value.ndim)):
                found.append((side, one, places))
    return [] if node.params.get("out_sharding") is not None else found


def product(
    x: jax.Array, weight: jax.Array, *, side: int, dims: Any, places: Places, precision: Any, wide: Any
) -> jax.Array:
    """The product, its dimensions in the order that it had with a batch.

    Args:
        x: with the batch.
        weight: without it.
        side: which operand the weight was.
        dims: the dimension numbers as they were.
        places: where the weight's dimensions stood among those of its copies.
        precision: of the product.
        wide: what is summed up in.
    """
    (summed, batch) = dims
    mine, others = tuple(places.index(d) for d in summed[side]), tuple(summed[1 - side])
    pair, axes = ((weight, x), (mine, others)) if side == 0 else ((x, weight), (others, mine))
    y = lax.dot_general(*pair, (axes, ((), ())), precision=precision, preferred_element_type=wide)
    left = [d for d in range(x.ndim) if d not in others]
    count = weight.ndim - len(mine)
    start = count if side == 0 else 0
    at = {d: start + i for i, d in enumerate(left)}
    free = [at[d] for d in left if d not in batch[1 - side]]
    own = list(range(count)) if side == 0 else list(range(len(left), len(left) + count))
    return lax.transpose(y, [*(at[d] for d in batch[1 - side]), *(own + free if side == 0 else free + own)])
