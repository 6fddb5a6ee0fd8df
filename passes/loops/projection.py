"""Products that need no recurrence, out of the loops that have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.loops._parts.credit import credited
from lepton_jax.passes.loops._parts.scan import is_plain_scan, plain_scans
from lepton_jax.passes.loops._projection.accumulated import accumulated_products
from lepton_jax.passes.loops._projection.after import project_outputs
from lepton_jax.passes.loops._projection.before import project_inputs
from lepton_jax.rewrite import Level, Pass, PassContext


@dataclass(frozen=True)
class Projection(Pass):
    """Computes for all iterations of a scan at once what does not depend on the ones before.

    Before:
        hs = scan(h, x_t) { h' = tanh(x_t @ W + h @ U); y_t = h' @ V }
    After:
        zs = xs @ W;  hs = scan(h, z_t) { h' = tanh(z_t + h @ U) };  ys = hs @ V

    - `project-inputs`: products of scanned inputs, before the loop;
    - `project-outputs`: products that only stacked outputs need, after it;
    - `accumulated-product`: sums of products, such as the gradients of weights, as one product after it.

    Level `reassociate`. What is kept for all iterations at once is bounded.
    """

    name: ClassVar[str] = "projection"

    level: Level | None = None

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Inner loops first."""
        if not ctx.allows("reassociate", self.level):
            return
        for node in plain_scans(graph):
            for rule in (accumulated_products, project_outputs, project_inputs):
                if is_plain_scan(node):
                    with credited(node, ctx):
                        rule(node, ctx)
