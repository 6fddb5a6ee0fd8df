"""A part of a graph that makes a [queries × keys] array, as a program that makes a block of it at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.structure import operand_key, params_key
from lepton_jax.passes.fuse._attention.axes import ELEMENTWISE, MOVES, Labels, sources
from lepton_jax.passes.fuse._attention.shardings import is_open

NARROW: Final = ("bfloat16", "float16")

_SHARDINGS: Final = ("sharding", "out_sharding")

_TILED: Final = ELEMENTWISE | MOVES | {"dot_general", "iota", "reduce_sum"}


@dataclass(frozen=True)
class Step:
    """One operation of a program.

    Attributes:
        key: all that tells it from other operations; steps with one key are equal.
        op: its name.
        primitive: what is bound.
        params: its parameters.
        shape: the shape of its whole result.
        dtype: the dtype of its result.
        operands: numbers of leaves and steps, or a scalar constant's value in a tuple.
        labels: the query and key axes of its result.
        ranks: how many axes each operand has.
    """

    key: Any
    op: str = field(compare=False)
    primitive: Any = field(compare=False)
    params: Mapping[str, Any] = field(compare=False)
    shape: tuple[int, ...] = field(compare=False)
    dtype: Any = field(compare=False)
    operands: tuple[int | tuple[Any], ...] = field(compare=False)
    labels: Labels = field(compare=False)
    ranks: tuple[int, ...] = field(compare=False)

    def run(self, operands: Sequence[Any], start: tuple[Any, Any], size: tuple[int, int]) -> Any:
        """The block of the result that begins at `start`, of blocks of the operands."""
        shape = list(self.shape)
        for axis, length in zip(self.labels, size, strict=True):
            if axis is not None:
                shape[axis] = length
        if self.op == "iota":
            return self._count(shape, start)
        if self.op == "broadcast_in_dim":
            places = tuple(int(d) for d in self.params["broadcast_dimensions"])
            return lax.broadcast_in_dim(operands[0], tuple(shape), places)
        if self.op == "reshape":
            return lax.reshape(operands[0], tuple(shape))
        return self.primitive.bind(*operands, **self.primitive.get_bind_params(self.params))

    def reordered(self, side: int, order: tuple[int, ...]) -> Step:
        """The same product with one of its operands transposed; the order of its free axes stays."""
        numbers: Any = [list(sides) for sides in self.params["dimension_numbers"]]
        for part in numbers:
            part[side] = tuple(order.index(d) for d in part[side])
        params = {**self.params, "dimension_numbers": tuple(map(tuple, numbers))}
        return replace(self, params=params, key=(self.key, params["dimension_numbers"]))

    def reading(self, operands: tuple[int | tuple[Any], ...]) -> Step:
        """The same operation on operands with other numbers; constants stay what they are."""
        numbers = tuple(o for o in operands if isinstance(o, int))
        return replace(self, operands=operands, key=(self.key, numbers))

    def _count(self, shape: list[int], start: tuple[Any, Any]) -> Any:
        """A block of an iota."""
        along = self.params["dimension"]
        counted = lax.broadcasted_iota(self.dtype, shape, along)
        for axis, first in zip(self.labels, start, strict=True):
            if axis == along:
                counted = counted + lax.convert_element_type(first, self.dtype)
        return counted


@dataclass(frozen=True)
class Program:
    """Operations on leaves; the leaves come first in the numbering, then the steps in order.

    Attributes:
        leaves: the query and key axes of each leaf.
        steps: the operations.
        result: the number of the result.
        orders: for each leaf the order in which the program wants its axes, None for the order they have;
            the labels of a leaf are those after the transpose.
        wide: whether blocks of bfloat16 and float16 become float32 first.
        scales: for each leaf what its blocks are multiplied by first, None for nothing.
    """

    leaves: tuple[Labels, ...]
    steps: tuple[Step, ...]
    result: int
    orders: tuple[tuple[int, ...] | None, ...] = ()
    wide: bool = False
    scales: tuple[float | None, ...] = ()

    def ordered(self) -> Program:
        """The same with the operands of products in an order in which blocks of them are multiplied fast."""
        orders: list[tuple[int, ...] | None] = [None] * len(self.leaves)
        leaves, steps = list(self.leaves), list(self.steps)
        reads = Counter(o for step in steps for o in step.operands if isinstance(o, int))
        for at, step in enumerate(steps):
            if step.op != "dot_general":
                continue
            for side, operand in enumerate(step.operands):
                if not isinstance(operand, int) or operand >= len(leaves) or reads[operand] != 1:
                    continue
                contract, batch = (numbers[side] for numbers in step.params["dimension_numbers"])
                free = [d for d in range(step.ranks[side]) if d not in (*contract, *batch)]
                orders[operand] = order = (*batch, *free, *contract)
                leaves[operand] = _moved(leaves[operand], order)
                steps[at] = step = step.reordered(side, order)
        return Program(tuple(leaves), tuple(steps), self.result, tuple(orders))

    def prepared(self, leaf: int, block: Any) -> Any:
        """A block of a leaf as the steps want it."""
        x = as_wide(block) if self.wide else block
        scale = self.scales[leaf] if self.scales else None
        return x if scale is None else lax.mul(x, lax.full_like(x, scale))

    def run(self, blocks: Sequence[Any], start: tuple[Any, Any], size: tuple[int, int]) -> Any:
        """The block of the result.

        Args:
            blocks: for each leaf the block of it, cut along its query and key axes and prepared.
            start: the first query and the first key of the block.
            size: how many queries and keys the block has.
        """
        return self.run_all(blocks, start, size)[self.result]

    def run_all(self, blocks: Sequence[Any], start: tuple[Any, Any], size: tuple[int, int]) -> list[Any]:
        """The blocks of all leaves and steps, by number."""
        env = list(blocks)
        for step in self.steps:
            operands = [o[0] if isinstance(o, tuple) else env[o] for o in step.operands]
            env.append(step.run(operands, start, size))
        return env


def as_wide(x: Any) -> Any:
    """An array in float32 if it is in bfloat16 or float16."""
    return lax.convert_element_type(x, jnp.float32) if str(x.dtype) in NARROW else x


def _moved(labels: Labels, order: tuple[int, ...]) -> Labels:
    """The query and key axes after a transpose."""
    query, key = labels
    return None if query is None else order.index(query), None if key is None else order.index(key)


def batch_first(program: Program, ends: Sequence[Step]) -> tuple[Program, list[Step]]:
    """A program and what reads it, with the batch axes of leaves that are only multiplied in front."""
    count = len(program.leaves)
    steps, leaves = [*program.steps, *ends], list(program.leaves)
    orders: list[tuple[int, ...] | None] = [None] * count
    for leaf in range(count):
        reads = [(at, side) for at, s in enumerate(steps) for side, o in enumerate(s.operands) if o == leaf]
        if not reads or any(steps[at].op != "dot_general" for at, _ in reads):
            continue
        batches = {steps[at].params["dimension_numbers"][1][side] for at, side in reads}
        if len(batches) != 1:
            continue
        (batch,) = batches
        rank = steps[reads[0][0]].ranks[reads[0][1]]
        orders[leaf] = order = (*batch, *(d for d in range(rank) if d not in batch))
        leaves[leaf] = _moved(leaves[leaf], order)
        for at, side in reads:
            steps[at] = steps[at].reordered(side, order)
    inner, outer = steps[: len(program.steps)], steps[len(program.steps) :]
    return Program(tuple(leaves), tuple(inner), program.result, tuple(orders)), outer


class Builder:
    """Collects the operations behind values that are as large as [queries × keys].

    Attributes:
        values: the leaves: what is computed outside, whole.
        nodes: the operations that became steps.
    """

    def __init__(self, given: Mapping[Value, Labels] | None = None) -> None:
        """Start with leaves that stay leaves whatever makes them."""
        self.values: list[Value] = []
        self.labels: list[Labels] = []
        self.steps: list[tuple[Node, Labels, list[Any]]] = []
        self._numbers: dict[tuple[Value, Labels], tuple[str, int]] = {}
        for value, labels in (given or {}).items():
            self.leaf(value, labels)

    def leaf(self, value: Value, labels: Labels) -> tuple[str, int]:
        """The place of a value that is computed outside."""
        key = (value, labels)
        if key not in self._numbers:
            self._numbers[key] = ("leaf", len(self.values))
            self.values.append(value)
            self.labels.append(labels)
        return self._numbers[key]

    def add(self, value: Value, labels: Labels) -> Any:
        """The place of a value, whose makers become steps where it is large; iterative, so of any depth."""
        stack = [(value, labels, False)]
        while stack:
            current, marks, ready = stack.pop()
            if (current, marks) in self._numbers:
                continue
            parts = self._parts(current, marks)
            if parts is None:
                self.leaf(current, marks)
            elif ready:
                self._step(current, marks, parts)
            else:
                stack.append((current, marks, True))
                stack += [(v, m, False) for v, m in parts if not _is_scalar(v)]
        return self._numbers[value, labels]

    def _parts(self, value: Value, labels: Labels) -> list[tuple[Value, Labels]] | None:
        """The operands of a value's maker with their labels; None where the value must be a leaf."""
        node = value.node
        if node is None or None in labels or node.op not in _TILED or not _is_plain(node):
            return None
        if node.op == "iota":
            return []
        queries, keys = (sources(node, axis) for axis in labels if axis is not None)
        if queries is None or keys is None:
            return None
        return [*zip(node.operands, zip(queries, keys, strict=True), strict=True)]

    def _step(self, value: Value, labels: Labels, parts: list[tuple[Value, Labels]]) -> None:
        assert value.node is not None
        places = [v if _is_scalar(v) else self._numbers[v, m] for v, m in parts]
        self._numbers[value, labels] = self.append(value.node, labels, places)

    def append(self, node: Node, labels: Labels, places: list[Any]) -> tuple[str, int]:
        """Add a step on operands that have places already, or are scalar constants."""
        self.steps.append((node, labels, places))
        return "step", len(self.steps) - 1

    def dependent(self) -> dict[Value, Labels]:
        """What the steps make that depends on a product, with its labels."""
        found: dict[tuple[str, int], tuple[Value, Labels]] = {}
        for at, (node, labels, places) in enumerate(self.steps):
            if node.op == "dot_general" or any(p in found for p in places if isinstance(p, tuple)):
                found["step", at] = (node.result, labels)
        return dict(found.values())

    def number(self, place: tuple[str, int]) -> int:
        """The number that a place has in the finished program."""
        kind, index = place
        return index if kind == "leaf" else len(self.values) + index

    def program(self, result: tuple[str, int]) -> Program:
        """What was collected, as a program with this result."""
        steps = tuple(self.finished(*step) for step in self.steps)
        return Program(tuple(self.labels), steps, self.number(result))

    def finished(self, node: Node, labels: Labels, places: list[Any]) -> Step:
        operands = tuple((p.const,) if isinstance(p, Value) else self.number(p) for p in places)
        known = tuple(
            operand_key(p) if isinstance(p, Value) else o for p, o in zip(places, operands, strict=True)
        )
        params = {k: None if k in _SHARDINGS else _plain(param) for k, param in node.params.items()}
        shape, dtype = node.result.shape, node.result.dtype
        key = (node.op, params_key(params), known, labels, shape, str(dtype))
        ranks = tuple(v.ndim for v in node.operands)
        return Step(key, node.op, node.primitive, params, shape, dtype, operands, labels, ranks)


def _plain(param: Any) -> Any:
    """A parameter with whole numbers in place of arrays of none dimensions."""
    if isinstance(param, tuple):
        return tuple(_plain(p) for p in param)
    return int(param) if getattr(param, "shape", None) == () and hasattr(param, "item") else param


def _is_scalar(value: Value) -> bool:
    return value.is_const and value.ndim == 0


def _is_plain(node: Node) -> bool:
    """Whether a node leaves shardings to JAX and has one result."""
    free = all(is_open(node.params.get(name)) for name in _SHARDINGS)
    return free and len(node.results) == 1 and not node.effects
