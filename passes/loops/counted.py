"""Loops that count are scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir.graph import Graph
from lepton_jax.ir.regions import editable
from lepton_jax.passes.loops._counted.rows import scan_rows, stack_rows
from lepton_jax.passes.loops._counted.trips import known_trips
from lepton_jax.passes.loops._parts.scan import is_plain_scan
from lepton_jax.rewrite import Pass, PassContext


@dataclass(frozen=True)
class Counted(Pass):
    """Writes loops with a counter as scans over what they index with it.

    Before:
        while i < 8 { h' = f(h, x[i]); out' = out.at[i].set(h'); i' = i + 1 }
    After:
        out = scan(h, x_i) { h' = f(h, x_i); h' }

    - `known-trips`: a while loop that counts to a known number is a scan;
    - `indexed-input`: rows that are read one after the other are a scanned input;
    - `indexed-output`: rows that are written one after the other are a stacked output;
    - `row-behind`: such rows that are read again up to four iterations later are carries.

    Exact. It saves nothing by itself: it shows other passes what an iteration needs of the ones before.
    """

    name: ClassVar[str] = "counted"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Outer loops first: a loop that becomes a scan is looked at again, inside too."""
        seen: set[Graph] = set()
        queue = [graph]
        for inner in queue:
            if inner in seen:
                continue
            seen.add(inner)
            for node in list(inner):
                if node.op == "while" and editable(node) and all(v.is_static for v in node.operands):
                    known_trips(node, ctx)
            for node in list(inner):
                for rule in (scan_rows, stack_rows):
                    if is_plain_scan(node):
                        rule(node, ctx)
                if node.alive:
                    queue += node.regions
