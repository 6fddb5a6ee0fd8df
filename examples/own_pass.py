"""A rule and a pass of one's own, used in a pipeline, checked and explained.

Run it with `python examples/own_pass.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import lepton_jax as lepton


@lepton.rule(lambda: [[jax.ShapeDtypeStruct((3,), jnp.float32)]], level="reassociate")
def tanh_from_exponentials(x: Any) -> Any:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x)) → tanh(x)"""
    return (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x))


@tanh_from_exponentials.replacement
def tanh_rule(x: Any) -> Any:
    """The same, without overflow."""
    return jnp.tanh(x)


@lepton.register
@dataclass(frozen=True)
class Hyperbolic(lepton.Pass):
    """Recognises hyperbolic functions written out."""

    name: ClassVar[str] = "hyperbolic"

    def run(self, graph: lepton.ir.Graph, ctx: lepton.PassContext) -> None:
        """Apply the one rule."""
        lepton.run_rules(graph, [tanh_rule], ctx)


@lepton.optimize("inline,cse,hyperbolic,dce")
def activation(x: Any) -> Any:
    """A tanh as somebody might write it."""
    with jax.named_scope("activation"):
        return (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x))


def main() -> lepton.Verification:
    """Show the program before and after, and check it."""
    x = jnp.linspace(-2.0, 2.0, 5)
    traced = activation.trace(x)
    print(traced.graph_before.to_text())
    print(traced.graph.to_text(scopes=True))
    print(activation.explain(x))
    result = lepton.verify(activation, x, grad=False)
    print(result)
    return result


if __name__ == "__main__":
    main()
