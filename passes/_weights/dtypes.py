"""Products of a weight with something of another dtype: of the wider, as they are computed in any case."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import Sources, note_early
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import between, write

_RULE: Final = "product-of-one-dtype"


def join_dtypes(graph: Graph, ctx: PassContext, known: Sources) -> None:
    """Write products of a weight and something of another dtype as products of the wider of both.

    `x @ w` of a float32 and a bfloat16 array is such a product. A weight that is kept in floats is kept as
    it was: what is converted is larger than what it is made of.
    """
    for node in list(graph.walk()):
        if node.op != "dot_general" or node.params.get("out_sharding") is not None:
            continue
        left, right = node.operands
        if left.dtype == right.dtype or bool(known.get(left)) == bool(known.get(right)):
            continue
        if not (_is_wide(left) and _is_wide(right)) or not ctx.fire(_RULE, node):
            continue
        assert node.graph is not None
        before, after = node.prev, node.next or node.graph.ret
        names = ("dimension_numbers", "precision")
        params = tuple((name, node.params[name]) for name in names)
        made = rewrite(_joined, left, right, params=params, result=node.result.dtype)
        write(made, node, _RULE)
        for fresh in between(before, after):
            if fresh is not node:
                note_early(fresh, known, True)
        erase_dead(node)


def _is_wide(value: Value) -> bool:
    """Whether a value is of floats of 16 bits or more."""
    dtype = value.dtype
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize > 1


def _joined(x: jax.Array, y: jax.Array, *, params: tuple[tuple[str, Any], ...], result: Any) -> jax.Array:
    wide = jnp.promote_types(x.dtype, y.dtype)
    return lax.dot_general(x.astype(wide), y.astype(wide), **dict(params), preferred_element_type=result)
