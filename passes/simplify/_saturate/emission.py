"""Writing a choice of ways back into the graph.

Arrays are written without their dimensions of length one: a column and a row are both vectors, so
that transposing one is nothing, and products with vectors are written as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._saturate.extraction import Choice
from lepton_jax.passes.simplify._saturate.islands import Island
from lepton_jax.passes.simplify._saturate.pricing import Variant
from lepton_jax.passes.simplify._saturate.reading import Frame
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import write_before

Shape = tuple[int, int]


class Writer:
    """Writes the classes of an island, each once, where they are first needed."""

    def __init__(
        self, island: Island, choice: Choice, shapes: list[Shape], moved: Mapping[Value, Value], rule: str
    ) -> None:
        self.island = island
        self.moved = moved
        self.frame = island.frame
        self.choice = choice
        self.shapes = shapes
        self.rule = rule
        self.done: dict[int, Value] = {}

    def output(self, number: int, value: Value, node: Node) -> Value:
        """A class before a node, in the shape of the value that it replaces."""
        made = self.written(number, node)
        return made if made.shape == value.shape else self.call(node, _reshaped, made, shape=value.shape)

    def written(self, number: int, node: Node) -> Value:
        """A class before a node, without dimensions of length one."""
        known = self.done.get(number)
        if known is None:
            known = self.done[number] = self.way(number, self.choice.ways[number], node)
        return known

    def scaled(self, factor: int, number: int, node: Node) -> Value:
        """A class times a number."""
        value, way = self.written(number, node), self.choice.ways[factor]
        if way.op == "Num":
            return self.call(node, _times, value, number=way.payload)
        return self.call(node, _scaled, self.written(factor, node), value, batch=len(self.frame.batch))

    def way(self, number: int, way: Variant, node: Node) -> Value:
        if way.op == "Scale":
            return self.scaled(way.children[0], way.children[1], node)
        if way.op == "ScaledMul":
            return self.scaled_product(way, node)
        operands = [self.written(child, node) for child in way.children]
        match way.op:
            case "Leaf":
                assert isinstance(way.payload, int)
                leaf = self.island.leaves[way.payload]
                while leaf in self.moved:
                    leaf = self.moved[leaf]
                shape = squeezed(self.shapes[number], self.frame)
                if leaf.shape in (shape, ()):
                    return leaf
                return self.call(node, _reshaped, leaf, shape=shape)
            case "Num":
                return self.call(node, _number, number=way.payload, dtype=np.dtype(self.frame.dtype))
            case "Mul":
                return self.product(way.children, way.turned, operands, node)
            case "T":
                if 1 in self.shapes[number]:
                    return operands[0]
                return self.call(node, _transposed, *operands)
            case "Rows" | "Cols":
                batch, last = len(self.frame.batch), way.op == "Cols"
                return self.call(node, _stretched, *operands, batch=batch, last=last)
            case op:
                return self.call(node, _ELEMENTWISE[op], *operands)

    def scaled_product(self, way: Variant, node: Node) -> Value:
        factor, *children = way.children
        sizes = [math.prod(self.shapes[child]) for child in children]
        small = sizes.index(min(sizes))
        operands = [
            self.scaled(factor, child, node) if place == small else self.written(child, node)
            for place, child in enumerate(children)
        ]
        return self.product(children, way.turned, operands, node)

    def product(
        self, children: Sequence[int], turned: tuple[bool, bool], operands: list[Value], node: Node
    ) -> Value:
        a, b = (self.shapes[child] for child in children)
        batch = len(self.frame.batch)
        rows, inner = a[::-1] if turned[0] else a
        columns = b[0 if turned[1] else 1]
        if inner == 1:
            shape = squeezed((rows, columns), self.frame)
            return self.call(node, _outer, *operands, shape=shape, batch=batch, tall=rows != 1)
        left = batch + (rows != 1 and not turned[0])
        right = batch + (columns != 1 and turned[1])
        every = tuple(range(batch))
        return self.call(
            node,
            _multiplied,
            *operands,
            dimensions=(((left,), (right,)), (every, every)),
            precision=self.frame.precision,
            accumulate=self.frame.accumulate,
        )

    def call(self, node: Node, fun: Callable[..., jax.Array], *values: Value, **static: Any) -> Value:
        (made,) = write_before(rewrite(fun, *values, **static), node, self.rule)
        return made


def squeezed(shape: Shape, frame: Frame) -> tuple[int, ...]:
    """The shape in which a matrix is written."""
    return (*frame.batch, *(length for length in shape if length != 1))


def _reshaped(array: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    return lax.reshape(array, shape)


def _transposed(array: jax.Array) -> jax.Array:
    return lax.transpose(array, (*range(array.ndim - 2), array.ndim - 1, array.ndim - 2))


def _number(*, number: float, dtype: Any) -> jax.Array:
    return lax.full((), number, dtype)


def _times(array: jax.Array, *, number: float) -> jax.Array:
    return lax.neg(array) if number == -1.0 else lax.mul(array, np.asarray(number, array.dtype))


def _scaled(number: jax.Array, array: jax.Array, *, batch: int) -> jax.Array:
    if 0 < number.ndim < array.ndim:
        number = lax.broadcast_in_dim(number, array.shape, range(batch))
    return lax.mul(array, number)


def _stretched(factor: jax.Array, array: jax.Array, *, batch: int, last: bool) -> jax.Array:
    """Rows, or columns, times the numbers of a vector."""
    if factor.ndim <= batch:
        return _scaled(factor, array, batch=batch)
    if factor.ndim < array.ndim:
        place = array.ndim - 1 if last else batch
        factor = lax.broadcast_in_dim(factor, array.shape, (*range(batch), place))
    return lax.mul(array, factor)


def _outer(a: jax.Array, b: jax.Array, *, shape: tuple[int, ...], batch: int, tall: bool) -> jax.Array:
    """A column times a row; either may be a number."""
    every = tuple(range(batch))
    if a.ndim > batch or len(shape) == batch:
        a = a if a.shape == shape else lax.broadcast_in_dim(a, shape, (*every, batch))
    if b.ndim > batch:
        b = b if b.shape == shape else lax.broadcast_in_dim(b, shape, (*every, batch + tall))
    return _scaled(b, a, batch=batch) if b.ndim < a.ndim else _scaled(a, b, batch=batch)


def _multiplied(a: jax.Array, b: jax.Array, *, dimensions: Any, precision: Any, accumulate: Any) -> jax.Array:
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=accumulate)


_ELEMENTWISE: Final[Mapping[str, Callable[..., jax.Array]]] = {"Add": lax.add, "Sub": lax.sub, "Had": lax.mul}
