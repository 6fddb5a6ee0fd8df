"""Runs nodes on constants, regions too, until a budget is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.simplify._fold import arrays as whole
from lepton_jax.passes.simplify._fold import elementwise
from lepton_jax.passes.simplify._fold.elementwise import Array, Unfoldable, require

_EACH: Final = 100
"""What running one operation costs, in elements of a result."""

CALLS: Final = frozenset({"jit", "closed_call", "core_call", "cond", "scan"})
KNOWN: Final = elementwise.OPS | whole.OPS | CALLS
"""The operations that can be run here, if their regions can."""


def contents(value: Value) -> Array:
    """The contents of a constant.

    Raises:
        Unfoldable: they are not to be had (tracers, keys), or live on several devices.
    """
    const = value.const
    sharding = getattr(const, "sharding", None)
    require(_jax.is_array_aval(value.aval), "no array")
    require(sharding is None or len(sharding.device_set) == 1, "an array on several devices")
    array = _jax.plain_constant(const)
    if array is None:
        raise Unfoldable("contents that are not to be had")
    return np.asarray(array).astype(value.dtype, copy=False)


class Interpreter:
    """Runs nodes on arrays.

    Attributes:
        left: how many more steps it may take: one for each element, and some for each operation.
        rounded: whether the last bit of something that it computed depends on who does it.
    """

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.rounded = False

    def run(self, node: Node, arrays: list[Array]) -> list[Array]:
        """The results of a node.

        Raises:
            Unfoldable: it cannot be computed here, not with the same bits, or the budget is spent.
        """
        if node.op not in KNOWN or node.effects:
            raise Unfoldable(f"{node.op} is not computed here")
        if node.regions:
            return self.region(node, arrays)
        self.left -= _EACH + max(whole.work(node, arrays), math.prod(node.result.shape))
        require(self.left >= 0, "too much work")
        if node.op in elementwise.OPS:
            result = elementwise.compute(node.op, node.params, arrays)
            result = np.broadcast_to(result, node.result.shape)
            self.rounded |= elementwise.rounds(node.op, result)
        else:
            result = whole.compute(node, arrays)
            self.rounded |= whole.rounds(node.op, result)
        require(result.dtype == node.result.dtype and result.shape == node.result.shape, "another dtype")
        return [result]

    def graph(self, graph: Graph, args: Sequence[Array]) -> list[Array]:
        """The outputs of a graph."""
        env: dict[Value, Array] = dict(zip(graph.inputs, args, strict=True))

        def read(value: Value) -> Array:
            return contents(value) if value.is_const else env[value]

        for node in graph:
            env.update(zip(node.results, self.run(node, [read(v) for v in node.operands]), strict=True))
        return [read(value) for value in graph.outputs]

    def region(self, node: Node, arrays: list[Array]) -> list[Array]:
        """The results of a call, a choice or a loop of known length."""
        self.left -= 1
        require(self.left >= 0, "too much work")
        if node.op == "cond":
            last = len(node.regions) - 1
            return self.graph(node.regions[min(max(int(arrays[0]), 0), last)], arrays[1:])
        return self.scan(node, arrays) if node.op == "scan" else self.graph(node.regions[0], arrays)

    def scan(self, node: Node, arrays: list[Array]) -> list[Array]:
        p = node.params
        consts, carry, length = p["num_consts"], p["num_carry"], p["length"]
        require(type(length) is int and 0 < length <= self.left, "too many iterations")
        fixed, state, rows = arrays[:consts], arrays[consts : consts + carry], arrays[consts + carry :]
        stacked: list[list[Array]] = []
        order = range(length)[::-1] if p["reverse"] else range(length)
        for i in order:
            out = self.graph(node.regions[0], [*fixed, *state, *(row[i] for row in rows)])
            state = out[:carry]
            stacked.append(out[carry:])
        if p["reverse"]:
            stacked.reverse()
        return [*state, *(np.stack(row) for row in zip(*stacked, strict=True))]
