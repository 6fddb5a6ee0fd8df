"""An instrument that compares numbers after every pass."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lepton_jax._reference import in_float64
from lepton_jax._verify import VerificationError
from lepton_jax.ir.check import check
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics.compare import compare_trees
from lepton_jax.numerics.samples import sample
from lepton_jax.rewrite import Instrument, Pass


class VerifyEach(Instrument):
    """Checks the structure, and the numbers on random inputs, after every pass that changed something.

    Args:
        seed: where the randomness starts.
        exact: hold the passes to level `exact` where numbers are not finite.

    Raises:
        GraphError: a pass left the graph broken.
        VerificationError: a pass changed what the program computes by more than rounding.
    """

    def __init__(self, seed: int = 0, exact: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.exact = exact
        self.inputs: list[Any] = []
        self.expected: Any = None
        self.reference: Any = None

    def before_pipeline(self, graph: Graph) -> None:
        """Run the program as imported."""
        self.inputs = [sample(value.aval, "random", self.rng) for value in graph.inputs]
        self.expected = jax.jit(to_callable(graph))(*self.inputs)
        self.reference = in_float64(from_jaxpr(graph.jaxpr))(*self.inputs)

    def after_pass(self, step: Pass, graph: Graph, changed: bool) -> None:
        """Run what the pass left, and compare."""
        if not changed:
            return
        check(graph)
        result = jax.jit(to_callable(graph))(*self.inputs)
        difference = compare_trees(self.expected, result, self.reference, exact=self.exact)
        if not difference.ok:
            raise VerificationError(f"after pass {step}: {difference}")
