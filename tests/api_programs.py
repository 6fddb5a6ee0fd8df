"""A program and a pass for the tests of `lepton.optimize`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

import lepton_jax as lepton


def noisy(x: Any) -> Any:
    """A function with something to optimise."""
    y = jnp.transpose(jnp.transpose(x)) * 1.0
    return jnp.sin(y) + jnp.sin(y) + lax.cond(True, lambda v: v, jnp.cos, y)


class Breaks(lepton.Pass):
    """A pass that changes what the program computes."""

    name = "breaks"

    def run(self, graph: lepton.ir.Graph, ctx: lepton.PassContext) -> None:
        for node in graph.walk():
            if node.op == "sin" and ctx.fire("drop-sin", node):
                node.result.replace_uses(node.operands[0])
