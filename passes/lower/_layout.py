"""Arrays as XLA's libraries for CPUs want them."""

from __future__ import annotations

import jax
from jax import lax

from lepton_jax.ir.graph import Node


@jax.jit
def row_major(x: jax.Array) -> jax.Array:
    """The array itself, in memory in the order of its dimensions.

    XLA may take a transpose before an int8 product or convolution into it, or give the array the layout that
    it has before the transpose; either falls off the fast path, 20× and more. An array of one dimension has
    one layout, and the barrier keeps it: XLA copies where the array lies otherwise, and does nothing where
    not. It is a call so that `is_row_major` knows it.
    """
    line = lax.optimization_barrier(lax.reshape(x, (x.size,)))
    return lax.reshape(line, x.shape)


def is_row_major(node: Node) -> bool:
    """Whether a node is a call of `row_major`."""
    return node.op == "jit" and node.params.get("name") == "row_major"
