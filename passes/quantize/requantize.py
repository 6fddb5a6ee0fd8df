"""What stands between two layers in codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.quantize._requantize.encodings import has_codes, open_small_calls
from lepton_jax.passes.quantize._requantize.rules import RULES
from lepton_jax.rewrite import PassContext, Rule, RulePass


@dataclass(frozen=True)
class Requantize(RulePass):
    """Brings what stands between two quantised layers to where it costs least: onto the codes.

    Before:
        %2 = max %1 0;  %3 = reduce_window_max %2;  %4 = min (max (round (%3 · %r)) -127) 127;  %5: i8 = %4
    After:
        %2 = min (max (round (%1 · %r)) 0) 127;  %3: i8 = %2;  %4: i8 = reduce_window_max %3

    ReLU becomes a limit of the clamp; maxima over windows are taken of codes; a part of an array that is
    quantised as a whole too is a part of its codes; averages are sums of integers. The codes are the same,
    bit for bit, for inputs that are not NaN. It runs after `quantize`, as a part of `prepare` and `apply`.
    """

    name: ClassVar[str] = "requantize"
    rules: ClassVar[Sequence[Rule]] = RULES

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Apply the rules, if anything in the program becomes codes."""
        if has_codes(graph):
            open_small_calls(graph)
            super().run(graph, ctx)
