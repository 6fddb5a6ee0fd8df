"""What may stand in place of a use of a weight in a `shard_map`."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.graph import Node
from lepton_jax.ir.shards import shard_maps_around
from lepton_jax.rewrite.replacement import Rewrite, traced

REFUSED: Final = "it is in a shard_map whose checks its method does not pass: say check_vma=False there"


def why_not_on_shards(made: Rewrite, node: Node) -> str | None:
    """Why something cannot stand where a node does: a `shard_map` checks what varies along which axes.

    Args:
        made: what would be written before the node, or instead of it.
        node: that reads the weight.
    """
    if not shard_maps_around(node.graph):
        return None
    try:
        traced(made, node)
    except (TypeError, ValueError) as error:
        if "manual ax" not in str(error):
            raise
        return REFUSED
    return None
