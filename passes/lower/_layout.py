"""Arrays as XLA's libraries for CPUs want them."""

from __future__ import annotations

import jax


@jax.jit
def row_major(x: jax.Array) -> jax.Array:
    """The array itself, in memory in the order of its dimensions.

    XLA may give what is made of a transpose the layout of the array before it, and an int8 product or
    convolution that reads it then falls off the fast path, 20× and more. The operands and results of a call
    have the plain layout, and this call is one; whoever inlines it loses that.
    """
    return x
