"""What the pass knows of a program: which values are early, and who reads a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.binding import Sources, note_early, parameters_of
from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import slots
from lepton_jax.ir.split import frontier
from lepton_jax.passes.simplify._movement.common import unplaced
from lepton_jax.rewrite import PassContext, rewrite
from lepton_jax.rewrite.driver import erase_dead
from lepton_jax.rewrite.replacement import between, write

_MOVES: Final = frozenset(
    {"reshape", "squeeze", "expand_dims", "transpose", "rev", "copy", "broadcast_in_dim"}
)
_ELEMENTWISE: Final = frozenset(
    {"add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "exp", "square", "integer_pow", "max", "min"}
    | {"convert_element_type", "copy", "stop_gradient"}
)
_DEEPEST: Final = 6
_MOST_ELEMENTS: Final = 1 << 16


@dataclass
class Known:
    """A program whose parameters are known.

    Attributes:
        graph: the program.
        ctx: of the run.
        early: the values made of parameters and constants alone, and of which parameters.
    """

    graph: Graph
    ctx: PassContext
    early: Sources

    @classmethod
    def of(cls, graph: Graph, ctx: PassContext) -> Known:
        """What is known of a program."""
        return cls(graph, ctx, parameters_of(graph, ctx.params))

    def is_early(self, value: Value) -> bool:
        """Whether a value is made of parameters and constants alone."""
        return value.is_const or value in self.early

    def from_params(self, *values: Value) -> bool:
        """Whether one of the values is made of a parameter: if none is, nothing is computed once."""
        return any(self.early.get(value) for value in values)

    def write(self, rule: str, node: Node, fun: Callable[..., Any], *values: Value, **static: Any) -> None:
        """Put a function of values in place of a node, and note which of what it computes is early."""
        before, after = node.prev, node.next
        assert before is not None and after is not None
        write(rewrite(fun, *values, **static), node, rule)
        for fresh in between(before, after):
            if fresh is not node:
                note_early(fresh, self.early)
        erase_dead(node)

    def misplaced(self, node: Node) -> bool:
        """Whether arrays at a node carry shardings."""
        return unplaced(node, self.ctx) is not None

    def why_not(self, weight: Value, product: Node) -> str | None:
        """Why a weight cannot be replaced by another of its size without more bytes to keep, or None."""
        if any(True for _ in self._other_readers(weight, product)):
            return "the weight is also read elsewhere, and would be kept twice"
        if weight.node is None or product.graph is None:
            return None
        kept = frontier(product.graph, [weight], lambda v: bool(self.early.get(v)))
        if 2 * sum(bytes_of(v) for v in kept) <= bytes_of(weight):
            return "the weight is made of something smaller at each call"
        return None

    def _other_readers(self, weight: Value, product: Node) -> Iterator[Node]:
        """The late nodes, but for one, that read a weight or the same data in another shape."""
        stack: list[tuple[Value, Node]] = [(weight, product)]
        seen: set[Value] = set()
        while stack:
            value, reader = stack.pop()
            if value in seen or value.is_const:
                continue
            seen.add(value)
            for user in value.users():
                if user is reader:
                    continue
                if user.op in _MOVES and self.is_early(user.result):
                    stack.append((user.result, reader))
                elif not user.results or not all(self.is_early(v) for v in user.results):
                    yield user
            stack += _same_elsewhere(value)


def _same_elsewhere(value: Value) -> Iterator[tuple[Value, Node]]:
    """The values that a value is a view or a part of, each with the node in between."""
    if value.node is not None and value.node.op in _MOVES:
        yield value.node.operands[0], value.node
    if value.node is not None or value.graph is None:
        return
    for node in value.graph.parents:
        for slot in slots(node):
            inside = [node.regions[r].inputs[i] for r, i in slot.inputs]
            if value in inside and slot.operand is not None:
                yield node.operands[slot.operand], node
                yield from ((other, node) for other in inside if other is not value)


def is_float(value: Value) -> bool:
    """Whether a value is of real floats."""
    return value.dtype is not None and bool(jnp.issubdtype(value.dtype, jnp.floating))


def wide(*arrays: Any) -> Any:
    """The widest dtype of some float arrays, of 32 bits at least."""
    return max([jnp.dtype(jnp.float32), *(a.dtype for a in arrays)], key=lambda d: int(jnp.finfo(d).bits))


def compact_shape(value: Value, rank: int) -> tuple[int, ...]:
    """The shape of a coefficient without what it repeats: one along axes on which it is constant."""
    if value.ndim == 0:
        return (1,) * rank
    return tuple(1 if is_flat(value, axis) else length for axis, length in enumerate(value.shape))


def is_flat(value: Value, axis: int, depth: int = 0) -> bool:
    """Whether a value is surely constant along an axis."""
    if value.ndim == 0 or value.shape[axis] == 1:
        return True
    if value.is_const:
        array = np.asarray(value.const)
        return array.size <= _MOST_ELEMENTS and bool((array == array.take([0], axis)).all())
    node = value.node
    if node is None or depth > _DEEPEST:
        return False
    if node.op == "broadcast_in_dim":
        places = list(node.params["broadcast_dimensions"])
        if axis not in places:
            return True
        return is_flat(node.operands[0], places.index(axis), depth + 1)
    if node.op not in _ELEMENTWISE:
        return False
    return all(v.ndim in (0, value.ndim) and is_flat(v, axis, depth + 1) for v in node.operands)
