"""Tables of int8 that products read too, as tied embeddings are: kept as uint8, and looked up in that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from lepton_jax.ir.binding import Sources
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.lower._products.sides import product_of
from lepton_jax.passes.lower._products.stored import readers, runs_early, stem
from lepton_jax.passes.lower._products.unsigned import as_signed
from lepton_jax.passes.lower._products.write import transposed
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import write, write_before


def is_table(node: Node, position: int, early: Sources) -> bool:
    """Whether a product's weight is a table that stands as the product wants it, and else is looked up in."""
    weight = node.operands[position]
    source = stem(weight)
    if source not in early or not product_of(node, position).weight.is_by_rows or is_viewed(weight, early):
        return False
    others = _others(node, source, early)
    return bool(others) and all(place == 0 and _takes(other) for other, place in others)


def is_viewed(weight: Value, early: Sources) -> bool:
    """Whether something late reads what a weight is a view of, as rows of a table: that is kept as it is."""
    source = stem(weight)
    while source.node is not None and source.node.op in ("transpose", "reshape", "squeeze"):
        source = stem(source.node.operands[0])
        late = (node for node, _ in readers(source) if not runs_early(node, early))
        if any(node.op != "dot_general" for node in late):
            return True
    return False


def keep_unsigned(node: Node, position: int, early: Sources, rule: str) -> Value | None:
    """Let a table be kept as uint8, and all that looks up in it do so in that; None if it is no table."""
    weight = node.operands[position]
    if weight.is_const or not is_table(node, position, early):
        return None
    source = stem(weight)
    others = [other for other, _ in _others(node, source, early)]
    first = next(each for each in node.graph or () if each is node or each in others)
    order = tuple(range(weight.ndim))
    made = rewrite(transposed, source, order=order, stored=True, unsigned=True)
    (kept,) = write_before(made, first, rule)
    for other in others:
        params = tuple(sorted(other.params.items()))
        write(rewrite(_taken, kept, *other.operands[1:], op=other.op, params=params), other, rule)
    return kept


def _others(node: Node, source: Value, early: Sources) -> list[tuple[Node, int]]:
    """Who else reads a table late, and as which operand."""
    return [use for use in readers(source) if use[0] is not node and not runs_early(use[0], early)]


def _takes(node: Node) -> bool:
    """Whether what a node makes are numbers of its first operand alone, wherever its indices point."""
    if node.op == "gather":
        return bool(node.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP)
    return node.op == "dynamic_slice"


def _taken(table: jax.Array, *where: jax.Array, op: str, params: Sequence[tuple[str, Any]]) -> jax.Array:
    options = dict(params)
    if op == "dynamic_slice":
        return as_signed(lax.dynamic_slice(table, where, options["slice_sizes"]))
    (indices,) = where
    return as_signed(lax.gather(table, indices, **options))
