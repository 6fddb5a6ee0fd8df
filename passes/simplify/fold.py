"""Constant folding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lepton_jax.ir.graph import Graph, Node, Value, constant
from lepton_jax.passes.simplify._algebra.operands import fill, is_placed
from lepton_jax.passes.simplify._fold import elementwise
from lepton_jax.passes.simplify._fold.elementwise import Array, Unfoldable
from lepton_jax.passes.simplify._fold.interpreter import KNOWN, Interpreter, contents
from lepton_jax.rewrite import Pass, PassContext, erase_dead
from lepton_jax.rewrite.replacement import Rewrite, write


@dataclass(frozen=True)
class Fold(Pass):
    """Computes what depends on constants alone.

    Before:
        %1 = mul 2.0 3.0;  %2 = broadcast_in_dim 1.0;  %3 = add %2 %1
    After:
        %3 = broadcast_in_dim 7.0

    Calls, branches and loops of known length are run, too. The program never grows: a result
    is at most as large as the constants that it is made of, so iota and broadcasts stay, and
    arithmetic on one number many times is done once. Keys, arrays of an outer trace and arrays
    on several devices are left alone, and so is what has effects.

    It computes with numpy, so it needs no compilation and no device, and works while another
    trace runs. Integers, data movement and single roundings (add, sqrt, convert) are exact, bit
    for bit; exp and its kin, and sums of floats, may differ in the last bit from what the
    compiled program gives and need level `reassociate`. Where numpy and XLA differ, or hardware
    may (integer division by zero, subnormal numbers), the operation stays.

    Attributes:
        limit: the most elements that a result may have.
        flops: the most steps of one computation, a loop with all its iterations: one for each
            element of a result, and a hundred for each operation.
    """

    name: ClassVar[str] = "fold"
    limit: int = 4096
    flops: int = 1_000_000

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """One sweep in program order: what becomes constant is known to all that follows."""
        graphs = {graph: None}
        queue = [graph]
        for inner in queue:
            for node in inner:
                if node.op in KNOWN and node.operands and not node.effects:
                    self._visit(node, ctx)
                if node.alive:
                    queue += [region for region in node.regions if region not in graphs]
                    graphs.update(dict.fromkeys(node.regions))

    def _visit(self, node: Node, ctx: PassContext) -> None:
        first = node.operands[0]
        if not first.is_const and first.op != "broadcast_in_dim":  # most nodes
            return
        if all(value.is_const for value in node.operands):
            self._fold(node, ctx)
        elif node.op in elementwise.OPS and all(_number(value) is not None for value in node.operands):
            self._fold_number(node, ctx)

    def _fold(self, node: Node, ctx: PassContext) -> None:
        """Replace the results of a node by constants."""
        if not self._is_small(node) or any(is_placed(value) for value in node.results):
            return
        results = self._compute(node, node.operands, "fold-constants", ctx)
        if results is None or not ctx.fire("fold-constants", node):
            return
        for value, array in zip(node.results, results, strict=True):
            value.replace_uses(_constant(value, array))
        erase_dead(node)

    def _fold_number(self, node: Node, ctx: PassContext) -> None:
        """Replace arithmetic on one number, many times, by its result, as many times."""
        numbers = [number for value in node.operands if (number := _number(value)) is not None]
        results = self._compute(node, numbers, "fold-number", ctx)
        outcome = None if results is None else fill(node, results[0])
        if not isinstance(outcome, Rewrite) or not ctx.fire("fold-number", node):
            return
        write(outcome, node, "fold-number")
        erase_dead(node)

    def _is_small(self, node: Node) -> bool:
        """Whether the program does not grow, and what there is to read is not too much."""
        if not all(value.is_static for value in (*node.operands, *node.results)):
            return False
        inside = sum(math.prod(value.shape) for value in node.operands)
        outside = sum(math.prod(value.shape) for value in node.results)
        return bool(outside <= min(self.limit, inside) and inside <= self.flops)

    def _compute(self, node: Node, values: list[Value], rule: str, ctx: PassContext) -> list[Array] | None:
        interpreter = Interpreter(self.flops)
        try:
            arrays = [contents(value) for value in values]
            if rule == "fold-number":
                results = [elementwise.compute(node.op, node.params, arrays)]
                interpreter.rounded = elementwise.rounds(node.op, results[0])
            else:
                results = interpreter.run(node, arrays)
        except Unfoldable as reason:
            ctx.miss(rule, node, str(reason))
            return None
        if interpreter.rounded and not ctx.allows("reassociate"):
            ctx.miss(rule, node, "the last bit may differ")
            return None
        return results


def _number(value: Value) -> Value | None:
    """The scalar constant that a value is, or is made of by spreading it out."""
    if value.node is not None and value.node.op == "broadcast_in_dim":
        value = value.node.operands[0]
    return value if value.is_const and value.shape == () else None


def _constant(value: Value, array: Array) -> Value:
    """A constant in place of a value."""
    if value.shape == ():
        return constant(np.asarray(array)[()], value.aval, literal=True)
    return constant(np.ascontiguousarray(array), value.aval)
