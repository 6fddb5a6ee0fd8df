"""Attention in blocks, or by a library kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Final

from lepton_jax.ir.graph import Graph
from lepton_jax.passes.fuse._attention.cutting import Limits
from lepton_jax.passes.fuse._attention.forward import fuse, fuse_gradient
from lepton_jax.passes.fuse._attention.kernels import PLATFORM
from lepton_jax.passes.fuse._attention.peel import peel
from lepton_jax.passes.fuse._attention.unjoin import unjoin
from lepton_jax.rewrite import Level, Pass, PassContext

_CPU: Final = Limits(masked=512, open=1024, scores=1 << 21, block=None, widen=True)

_DEVICE: Final = Limits(masked=2048, open=2048, scores=1 << 29, block=1024, kernel=512)
"""On accelerators blocks are for scores that fill the memory: loops of small kernels are slow there."""


@dataclass(frozen=True)
class Attention(Pass):
    """Computes softmax attention in blocks, so that no [queries × keys] array is ever whole.

    Before:
        %3 = dot_general %q %k
        %4 = select_n %mask %fill %3
        %5 = reduce_max %4;  %6 = sub %4 %5;  %7 = exp %6;  %8 = reduce_sum %7;  %9 = div %7 %8
        %10 = dot_general %9 %v
    After:
        %10, %11, %12 = custom_jvp_call %v %q %k { scan { while { one block of scores at a time } } }

    Whatever happens to the scores on their way (scales, masks, biases, caps) is done block by block, and
    so are masks after the exponential; what is done to whole rows is done to the result. A column that is
    joined to the scores, a sink, is taken apart from them by the rule attention-sink; what is subtracted
    from them twice is subtracted once, by the rule attention-shift. Blocks that are masked for sure are
    left out, and masks where they are known to mask nothing.
    On a CPU, bfloat16 and float16 are multiplied in float32. Where the program holds the gradient too,
    the backward half is summed in blocks in the same way, in the loop in which it is: a scan over layers
    keeps no weights for that of its gradient. Memory is linear in the number of queries and keys, forward and
    backward. With `kernels`, what cuDNN (on a GPU) or splash attention (on a TPU) computes
    becomes a call of that, by the rule attention-kernel, and blocks are for the rest. Weights that are
    read by something else, or go through dropout, are left alone.
    Level reassociate: the softmax is summed in another order.

    Attributes:
        level: a tighter limit than the run's on the semantics level.
        smallest: the fewest keys for which it pays, if not those that were measured.
        block: how many queries and keys a block has, if not chosen by what is masked.
        kernels: use library kernels on accelerators: cuDNN on a GPU, splash attention on a TPU. They have
            a derivative in reverse mode only, so the default is not to.
    """

    name: ClassVar[str] = "attention"

    level: Level | None = None
    smallest: int | None = None
    block: int | None = None
    kernels: bool = False

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Look at every product of the graph and of its regions."""
        if not ctx.allows("reassociate", self.level):
            return
        limits = self.limits(ctx.rates.platform)
        for node in list(graph.walk()):
            if node.op == "concatenate" and node.alive:
                unjoin(node, ctx, limits)
        for node in list(graph.walk()):
            if node.op == "exp" and node.alive:
                peel(node, ctx, limits)
        for node in list(graph.walk()):
            if node.op == "dot_general" and node.alive and not node.is_dead:
                fuse(node, ctx, limits)
        for node in list(graph.walk()):
            if node.op == "exp" and node.alive and not node.is_dead:
                fuse_gradient(node, ctx, limits)

    def limits(self, platform: str) -> Limits:
        """When blocks pay on a platform."""
        usual = _CPU if platform == "cpu" else _DEVICE
        target = platform if self.kernels and platform in PLATFORM else ""
        limits = replace(usual, target=target, block=usual.block if self.block is None else self.block)
        if self.smallest is None:
            return limits
        return replace(limits, masked=self.smallest, open=self.smallest, scores=0, kernel=self.smallest)
