"""Operations on a batch with copies of one weight: with the weight itself, before it is quantised."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import parameters_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes._weights.copies import Places, copied
from lepton_jax.passes._weights.uses import GEOMETRY
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write

_RULE: Final = "weight-for-all-the-batch"

_NUMERIC: Final = ("precision", "preferred_element_type")


def share_weights(graph: Graph, ctx: PassContext) -> None:
    """Write operations on a batch with copies of one weight as operations with it: it is kept once."""
    nodes = [node for node in graph.walk() if node.op == "dot_general" and _repeated(node)]
    kernels = [node for node in graph.walk() if node.op == "conv_general_dilated" and _one_kernel(node)]
    early = parameters_of(graph, ctx.params) if (nodes or kernels) and ctx.params else {}
    for node in kernels:
        found = _one_kernel(node)
        if found is None or not early.get(found[0]) or not ctx.fire(_RULE, node):
            continue
        one, order, count = found
        params = tuple((name, node.params[name]) for name in (*GEOMETRY, *_NUMERIC))
        write(
            rewrite(convolution, node.operands[0], one, params=params, order=order, count=count), node, _RULE
        )
        erase_dead(node)
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


def _one_kernel(node: Node) -> tuple[Value, Places, int] | None:
    """The kernel that a convolution has copies of, one for each of its outermost groups; how its axes are to
    be ordered; how many copies.

    `vmap` writes a batch of convolutions, each with a kernel of its own, as one with so many groups.
    """
    kernel, spec = node.operands[1], node.params["dimension_numbers"].rhs_spec
    groups, axis = node.params["feature_group_count"], node.params["dimension_numbers"].rhs_spec[0]
    made = kernel.node
    if groups == 1 or node.params["batch_group_count"] != 1 or made is None or made.op != "reshape":
        return None
    copies = made.operands[0]
    if copies.ndim != len(spec) + 1 or not kernel.is_static:
        return None
    turned = made.params.get("dimensions") or tuple(range(copies.ndim))
    count, places = copies.shape[turned[axis]], (*turned[:axis], *turned[axis + 1 :])
    own = [copies.shape[place] for place in places]
    merged = (*own[:axis], count * own[axis], *own[axis + 1 :])
    if merged != kernel.shape or count < 2 or groups % count:
        return None
    for one, at in copied(copies):
        if sorted(at) == sorted(places):
            return one, tuple(at.index(place) for place in places), count
    return None


def convolution(
    x: jax.Array, kernel: jax.Array, *, params: tuple[tuple[str, Any], ...], order: Places, count: int
) -> jax.Array:
    """The convolution of each of `count` parts of the channels with one kernel: a larger batch.

    Args:
        x: the image, whose channels are `count` times those that the kernel goes with.
        kernel: one, whose axes `order` puts in order.
        params: of the convolution with `count` kernels.
        count: how many there are.
    """
    known, kernel = dict(params), lax.transpose(kernel, order)
    numbers = known["dimension_numbers"]
    known["feature_group_count"] //= count
    batch, channels = numbers.lhs_spec[:2]
    y = lax.conv_general_dilated(_outer(x, channels, batch, count), kernel, **known)
    batch, channels = numbers.out_spec[:2]
    return _outer(y, batch, channels, count)


def _outer(x: jax.Array, source: int, target: int, count: int) -> jax.Array:
    """An axis cut into `count` parts, of which the outer one becomes that of another axis."""
    cut = x.reshape(*x.shape[:source], count, x.shape[source] // count, *x.shape[source + 1 :])
    moved = jnp.moveaxis(cut, source, target)
    return moved.reshape(*moved.shape[:target], count * moved.shape[target + 1], *moved.shape[target + 2 :])


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
