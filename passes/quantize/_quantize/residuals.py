"""Activations that are there in codes, read as such by everything else too."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.binding import is_stored
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.passes.quantize._requantize.encodings import (
    Encoding,
    encoding_of,
    has_codes,
    is_encoded,
    open_small_calls,
)
from lepton_jax.passes.quantize._requantize.rules import part_of_codes
from lepton_jax.rewrite import PassContext, rewrite, run_rules
from lepton_jax.rewrite.replacement import write_before

_RULE: Final = "residual-in-codes"


def read_codes(graph: Graph, ctx: PassContext) -> None:
    """Let what reads activations that become codes under a known scale read the codes instead.

    What comes before the codes in the program goes on reading the floats.
    """
    if not has_codes(graph):
        return
    open_small_calls(graph)
    run_rules(graph, (part_of_codes,), ctx)
    nodes = list(graph.walk())
    place = {node: i for i, node in enumerate(nodes)}
    done: set[Value] = set()
    for node in nodes:
        found = encoding_of(node)
        scale = None if found is None else _known_scale(found)
        if found is None or scale is None or found.x in done:
            continue
        done.add(found.x)
        readers = [
            (user, position)
            for user, position in found.x.uses
            if user.graph is node.graph
            and place.get(user, -1) > place[node]
            and not is_encoded(user, found.x)
        ]
        after = node.next
        if after is None or not readers or not ctx.fire(_RULE, node):
            continue
        (decoded,) = write_before(rewrite(decode_codes, node.result, scale), after, _RULE)
        for user, position in readers:
            user.set_operand(position, decoded)


def decode_codes(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """The floats that codes stand for."""
    return codes.astype(jnp.float32) * scale


def _known_scale(found: Encoding) -> Value | None:
    """The scale of codes, if it is known before the program runs."""
    node = found.ratio.node
    scale = node.operands[1] if node is not None and node.op == "div" else None
    return scale if scale is not None and scale.node is not None and is_stored(scale.node) else None
