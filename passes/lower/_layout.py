"""Arrays as XLA's libraries for CPUs want them."""

from __future__ import annotations

import jax
from jax import lax

from lepton_jax.ir.graph import Node


@jax.jit
def row_major(x: jax.Array) -> jax.Array:
    """The array itself, in memory in the order of its dimensions, where no transpose stands before it.

    XLA may give what is made of a transpose the layout of the array before it, and an int8 product or
    convolution that reads it then falls off the fast path, 20× and more. The operands and results of a call
    have the plain layout, as long as nobody inlines it; it costs nothing.
    """
    return x


@jax.jit
def in_rows(x: jax.Array) -> jax.Array:
    """The array itself, in memory in the order of its dimensions, whatever stands before it.

    Where a product `w·xᵀ` stands before one `x·wᵀ`, XLA takes the transpose between them into the second. An
    array of one dimension has one layout, and the barrier keeps it: XLA copies where the array lies
    otherwise. It costs up to a tenth of an encoder, since nothing is fused across it.
    """
    line = lax.optimization_barrier(lax.reshape(x, (x.size,)))
    return lax.reshape(line, x.shape)


def is_in_rows(node: Node) -> bool:
    """Whether a node is a call of `in_rows`."""
    return node.op == "jit" and node.params.get("name") == "in_rows"
