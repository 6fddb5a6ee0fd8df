"""Short loops of elementwise work, written out."""

from __future__ import annotations

from typing import Any, Final

from lepton_jax.ir.graph import Node
from lepton_jax.passes.loops._parts.piece import Piece, cut
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.loops._parts.worth import total_bytes
from lepton_jax.passes.simplify._demand.makers import ELEMENTWISE
from lepton_jax.rewrite import PassContext, erase_dead, profit, rewrite
from lepton_jax.rewrite.replacement import write

RULE: Final = "short-loop"

_LONGEST: Final = 8
_MOST_NODES: Final = 64
_LEAST_BYTES: Final = 1 << 20
"""On a CPU smaller arrays stay in a cache, and a loop over them is as fast."""


def write_out(node: Node, ctx: PassContext) -> None:
    """A loop of at most eight iterations of elementwise work on carries alone is written out.

    scan[length=3] { y' = y * (1.5 - x * y * y) } → y1 = …; y2 = …; y3 = …

    All iterations are one pass over the arrays then, where each was one before: Newton's method for a
    root, fixed points, a few steps of an integrator. On a CPU only arrays of 1 MiB or more. Exact.
    """
    scan = Scan(node)
    if scan.length > _LONGEST or scan.scanned or scan.stacked:
        return
    nodes = list(scan.body)
    if len(nodes) * scan.length > _MOST_NODES:
        return
    if any(n.op not in ELEMENTWISE and n.op != "broadcast_in_dim" for n in nodes):
        return
    small = total_bytes(scan.carries) < _LEAST_BYTES
    if small and ctx.rates.platform == "cpu" and not profit.is_disregarded():
        return
    if not ctx.fire(RULE, node):
        return
    piece, leaves = cut(scan.body, scan.next)
    consts = [leaf for leaf in leaves if leaf not in scan.carries]
    values, _ = scan.fed(consts)
    taken = tuple(
        len(consts) + scan.carries.index(leaf) if leaf in scan.carries else consts.index(leaf)
        for leaf in leaves
    )
    made = rewrite(repeated, *values, *scan.init, piece=piece, taken=taken, times=scan.length)
    write(made, node, RULE)
    erase_dead(node)


def repeated(*args: Any, piece: Piece, taken: tuple[int, ...], times: int) -> list[Any]:
    """A step done several times.

    Args:
        args: what is the same every time, then the initial carries.
        taken: which of them the step takes.
    """
    consts = list(args[: len(args) - len(piece.graph.outputs)])
    state = list(args[len(consts) :])
    for _ in range(times):
        given = [*consts, *state]
        state = piece(*(given[i] for i in taken))
    return state
