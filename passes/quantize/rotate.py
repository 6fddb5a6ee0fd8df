"""Rotation of activations, folded into the weights around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from lepton_jax.ir.binding import parameters_of
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.numerics.hadamard import block_order
from lepton_jax.passes._weights.rows import take_rows
from lepton_jax.passes.quantize._rotate.centre import centred
from lepton_jax.passes.quantize._rotate.online import rotate_inputs
from lepton_jax.passes.quantize._rotate.stream import Stream
from lepton_jax.passes.quantize._rotate.write import RULE, write_stream
from lepton_jax.passes.simplify._absorb.known import Known
from lepton_jax.passes.simplify._absorb.product import product_of
from lepton_jax.rewrite import Pass, PassContext, UsageError

_OUTER: Final = "outer-product-as-scale"


@dataclass(frozen=True)
class Rotate(Pass):
    """Activations rotated by a Hadamard matrix, so that none stands out and few bits go further.

    Before:
        %h = %table[tokens];  %n = %h · rsqrt(mean %h²);  %y = %n @ %w;  %g = %h + %y @ %v
    After, with Q orthogonal:
        %h = (%table · Q)[tokens];  %n = %h · rsqrt(mean %h²);  %y = %n @ (Qᵀ · %w);  %g = %h + %y @ (%v · Q)

    The residual stream, as in QuaRot (Ashkboos et al., 2024): values that additions, moves and scales of
    whole rows tie together, with at least one norm on them, written by tables, products with parameters and
    parameters alone, and read by products with parameters. All weights around it are rotated, of
    parameters alone (`prepare`); a root mean square does not change. Gains and biases of norms that still
    stand between the stream and its readers go into those. Layer norms subtract a mean: it is taken out of
    all that writes the stream (SliceGPT, Ashkboos et al., 2024), if nothing else reads it. In loops over
    layers too.

    Equal over the real numbers (level `reassociate`). It changes nothing by itself: name it before
    `quantize`, and after `deploy` or `default,absorb`. A tied table whose norm has a gain is two arrays
    afterwards.

    Attributes:
        stream: rotate residual streams.
        online: patterns of paths, separated by spaces (see `lepton_jax.ir.paths`): the inputs of products
            with these weights are rotated at run time, by a fast Hadamard transform, and the weights
            beforehand.
        seed: of the signs of Q.

    Raises:
        UsageError: no parameters are named, or `online` chooses no product.
    """

    name: ClassVar[str] = "rotate"

    stream: bool = True
    online: str = ""
    seed: int = 0

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Streams first, then inputs at run time."""
        if not ctx.params:
            raise UsageError("say which arguments are parameters: lepton.optimize(..., params='params')")
        if not ctx.allows("reassociate"):
            return
        take_rows(graph, ctx, parameters_of(graph, ctx.params))
        known = Known.of(graph, ctx)
        if self.stream:
            self._streams(graph, known)
        if self.online and not rotate_inputs(graph, Known.of(graph, ctx), self.online):
            raise UsageError(f"{self} rotates nothing: no product with one summed axis has such a weight")

    def _streams(self, graph: Graph, known: Known) -> None:
        for node in [each for inner in graph.graphs() for each in inner]:
            if _is_outer(node, known) and known.ctx.fire(_OUTER, node):
                known.write(_OUTER, node, _outer_scale, *node.operands)
        seen: set[Any] = set()
        for node in [each for inner in graph.graphs() for each in inner]:
            if node.alive and node not in seen:
                self._rotate(node, known, seen)

    def _rotate(self, node: Node, known: Known, seen: set[Any]) -> None:
        """Rotate the stream that a sum of squares reads, if all of it can be."""
        if node.op != "reduce_sum" or len(node.params["axes"]) != 1 or known.is_early(node.result):
            return
        square = node.operands[0].node
        if square is None or square.op not in ("square", "integer_pow", "mul"):
            return
        value, (axis,) = square.operands[0], node.params["axes"]
        if known.is_early(value) or value in seen or not value.is_static:
            return
        stream = Stream(known, value.shape[axis])
        reason = stream.why_not(value, axis)
        seen |= set(stream.axes)
        if reason is None and not (stream.readers and stream.squares and (stream.writers or stream.added)):
            reason = "nothing with parameters reads it"
        if reason is None and block_order(stream.size) == 1:
            reason = f"there is no Hadamard matrix of order {stream.size}, nor of a part of it"
        free = centred(stream) if reason is None and (stream.sums or stream.rows) else None
        if isinstance(free, str):
            reason, free = free, None
        if reason is not None:
            known.ctx.miss(RULE, node, reason)
            return
        if known.ctx.fire(RULE, node):
            write_stream(stream, free, self.seed)
            known.early = Known.of(known.graph, known.ctx).early


def _is_outer(node: Node, known: Known) -> bool:
    """Whether a node is an outer product with a vector of parameters, another form of the gain of a norm."""
    if node.op != "dot_general" or node.params["dimension_numbers"] != (((), ()), ((), ())):
        return False
    return product_of(node, known) is not None


def _outer_scale(left: Any, right: Any) -> Any:
    return left.reshape(*left.shape, *(1,) * right.ndim) * right.reshape(*(1,) * left.ndim, *right.shape)
