"""Loops that stay, with several iterations in one."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.graph import Node
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.loops._parts.worth import DOTS, temporaries
from lepton_jax.rewrite import PassContext

RULE: Final = "unrolled-loop"

_TIMES: Final = 8
_SHORTEST: Final = 64
_MOST_NODES: Final = 24
_MOST_BYTES: Final = 256 << 10


def unroll(node: Node, ctx: PassContext) -> None:
    """A loop over a few elementwise operations does eight iterations in one, on a GPU.

    scan[unroll=1] { h' = sin(h) * 0.9 + x_t } → scan[unroll=8] { … }

    An iteration of such a loop takes as long as starting its kernels; those of eight iterations XLA fuses.
    Exact. On a CPU it loses, and it is left to the user.
    """
    if ctx.rates.platform != "gpu" or node.params["unroll"] != 1 or node.params["length"] < _SHORTEST:
        return
    scan = Scan(node)
    nodes = list(scan.body)
    if len(nodes) > _MOST_NODES or any(n.regions or n.effects or n.op in DOTS for n in nodes):
        return
    if temporaries(scan.body) > _MOST_BYTES or not ctx.fire(RULE, node):
        return
    node.params = {**node.params, "unroll": _TIMES}
    node.raw = None
    if node.graph is not None:
        node.graph.touch()
