"""A traced call, with what Lepton did to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from lepton_jax._stage import Program
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import Report

if TYPE_CHECKING:
    _Stage = jax.stages.Traced
else:
    _Stage = object


class Traced(_Stage):
    """A function traced at one set of shapes, as `jax.stages.Traced`, with what Lepton did to it.

    Attributes:
        graph: the program after the passes.
        report: what the passes did.
    """

    def __init__(self, inner: Any, program: Program) -> None:
        self._inner = inner
        self._program = program
        self.graph: Graph = program.graph
        self.report: Report = program.report

    @property
    def graph_before(self) -> Graph:
        """The program before the passes."""
        return self._program.graph_before

    def predicted(self) -> tuple[float, float]:
        """Estimated seconds on the target: of the program as XLA runs it by itself, and as rewritten."""
        return self._program.predicted()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
