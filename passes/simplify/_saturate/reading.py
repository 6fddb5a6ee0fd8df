"""How operations on arrays read as operations on matrices.

In a frame with batch dimensions `b`, an array of shape `b` is a number, `b + (n,)` a column, and
`b + (..., n)` a matrix with n columns, whose rows are all dimensions before, taken together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Node, Value

_LEAST: Final = 1e-6
_MOST: Final = 1e6
"""Numbers of this size are calculated with; others are arrays like any."""

Term = tuple[Any, ...]
"""An operation of the language, then the numbers of the terms that it is applied to, or what a leaf holds."""


@dataclass(frozen=True)
class Frame:
    """What all arrays of an island have in common.

    Attributes:
        batch: the leading dimensions, over which everything is repeated.
        dtype: of all arrays, and of what products add up in.
        precision: of the products.
        accumulate: their preferred_element_type.
        context: JAX's equation context.
    """

    batch: tuple[int, ...]
    dtype: Any
    precision: Any
    accumulate: Any
    context: Any

    @classmethod
    def of(cls, dot: Node) -> Frame | None:
        """The frame in which a product can be read; None where there is none."""
        _, (batch, _) = dot.params["dimension_numbers"]
        dtype = dot.result.dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            return None
        accumulate = dot.params.get("preferred_element_type")
        if accumulate is not None and accumulate != dtype:
            return None
        shape = tuple(dot.result.shape[: len(batch)])
        return cls(shape, dtype, dot.params.get("precision"), accumulate, dot.context)


class Sight(NamedTuple):
    """How a value is looked at: transposed or not; a float is a number that is known."""

    value: Value | float
    turned: bool = False


class Form(NamedTuple):
    """An operation as a term of the algebra, whose result is perhaps transposed."""

    op: str
    parts: tuple[Sight, ...]
    turned: bool = False


def read(node: Node, frame: Frame) -> Form | None:
    """What an operation is in a frame, or None where it is nothing that the algebra knows."""
    return READERS[node.op](node, frame)


def seen(shape: tuple[int, ...], frame: Frame) -> tuple[int, int] | None:
    """The rows and columns of an array of this shape; None where it does not have the frame's batch."""
    depth = len(frame.batch)
    if shape[:depth] != frame.batch:
        return (1, 1) if shape == () else None
    inner = shape[depth:]
    if len(inner) < 2:
        return math.prod(inner), 1
    return math.prod(inner[:-1]), inner[-1]


def _product(node: Node, frame: Frame) -> Form | None:
    a, b = node.operands
    depth = len(frame.batch)
    (left, right), (batch_left, batch_right) = node.params["dimension_numbers"]
    every = tuple(range(depth))
    if tuple(batch_left) != every or tuple(batch_right) != every or a.dtype != frame.dtype:
        return None
    if node.params.get("precision") != frame.precision or node.params.get("out_sharding") is not None:
        return None
    if node.params.get("preferred_element_type") != frame.accumulate:
        return None
    if seen(a.shape, frame) is None or seen(b.shape, frame) is None or b.dtype != frame.dtype:
        return None
    (rows_a, columns_a), (rows_b, columns_b) = _groups(a, depth), _groups(b, depth)
    if tuple(left) == columns_a:
        turned_a, free_a = False, rows_a
    elif tuple(left) == rows_a:
        turned_a, free_a = True, columns_a
    else:
        return None
    if tuple(right) == rows_b:
        turned_b, free_b = False, columns_b
    elif tuple(right) == columns_b:
        turned_b, free_b = True, rows_b
    else:
        return None
    parts = (Sight(a, turned_a), Sight(b, turned_b))
    if len(free_b) == 1:
        return Form("Mul", parts, turned=not free_a)
    return Form("Mul", parts) if not free_b and len(free_a) < 2 else None


def _groups(value: Value, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions of an array that are its rows, and those that are its columns."""
    rank = value.ndim
    if rank < depth + 2:
        return tuple(range(depth, rank)), ()
    return tuple(range(depth, rank - 1)), (rank - 1,)


def _sum(node: Node, frame: Frame) -> Form | None:
    a, b = node.operands
    if a.shape != b.shape or a.shape[: len(frame.batch)] != frame.batch:
        return None
    return Form("Sub" if node.op == "sub" else "Add", (Sight(a), Sight(b)))


def _negative(node: Node, frame: Frame) -> Form | None:
    value = node.operands[0]
    return None if value.shape[: len(frame.batch)] != frame.batch else Form("Neg", (Sight(value),))


def _transpose(node: Node, frame: Frame) -> Form | None:
    value, depth = node.operands[0], len(frame.batch)
    swapped = (*range(depth), depth + 1, depth)
    if value.ndim != depth + 2 or value.shape[:depth] != frame.batch:
        return None
    return Form("T", (Sight(value),)) if tuple(node.params["permutation"]) == swapped else None


def _renamed(node: Node, frame: Frame) -> Form | None:
    """Dimensions of length one come and go, or rows are taken together."""
    value, depth = node.operands[0], len(frame.batch)
    if node.op == "reshape" and node.params.get("dimensions") is not None:
        return None
    if math.prod(value.shape) != math.prod(node.result.shape) or value.dtype != frame.dtype:
        return None
    if value.shape[:depth] != frame.batch or node.result.shape[:depth] != frame.batch:
        return None
    before, after = seen(value.shape, frame), seen(node.result.shape, frame)
    if before is None or after is None:
        return None
    if before == after:
        return Form("Same", (Sight(value),))
    return Form("Same", (Sight(value),), turned=True) if 1 in after and before == after[::-1] else None


def _elementwise_product(node: Node, frame: Frame) -> Form | None:
    shape = node.result.shape
    if shape[: len(frame.batch)] != frame.batch or any(v.dtype != frame.dtype for v in node.operands):
        return None
    first, second = (_factor(value, shape, frame) for value in node.operands)
    if first is None or second is None:
        return None
    if first[0] == "Had" == second[0]:
        op = {0: "Scale", 1: "Rows"}.get(len(shape) - len(frame.batch), "Had")
        return Form(op, (first[1], second[1]))
    if {first[0], second[0]} == {"Rows", "Cols"}:
        column, row = (first[1], second[1]) if first[0] == "Rows" else (second[1], first[1])
        return Form("Mul", (column, row._replace(turned=not row.turned)))
    if second[0] == "Had":
        return Form(first[0], (first[1], second[1]))
    return Form(second[0], (second[1], first[1])) if first[0] == "Had" else None


def _factor(value: Value, shape: tuple[int, ...], frame: Frame) -> tuple[str, Sight] | None:
    """How an operand of an elementwise product scales the other: `Scale`, `Rows`, `Cols`, or else `Had`."""
    number = _known(value)
    if number is not None and _LEAST < abs(number) < _MOST:
        return "Scale", Sight(number)
    depth, maker = len(frame.batch), value.node
    if maker is not None and maker.op == "broadcast_in_dim" and maker.operands[0].shape == ():
        return "Scale", Sight(maker.operands[0])
    if value.shape == () and shape != ():
        return "Scale", Sight(value)
    if maker is not None and maker.op == "broadcast_in_dim" and value.shape == shape:
        source = maker.operands[0]
        places = tuple(maker.params["broadcast_dimensions"])
        if (
            len(shape) != depth + 2
            or source.shape[:depth] != frame.batch
            or places[:depth] != (*range(depth),)
        ):
            return "Had", Sight(value)
        inner = zip(places[depth:], source.shape[depth:], strict=True)
        long = [place for place, length in inner if length != 1]
        if long == [depth + 1] and source.shape[-1] == shape[-1]:
            return "Cols", Sight(source, turned=source.ndim == depth + 2)
        if long == [depth] and source.shape[depth] == shape[depth]:
            return "Rows", Sight(source)
        return "Had", Sight(value)
    if value.shape == shape:
        return "Had", Sight(value)
    if depth == 0 and len(shape) == 2 and value.shape == (1, shape[1]):
        return "Cols", Sight(value, turned=True)
    if depth == 0 and len(shape) == 2 and value.shape == (shape[0], 1):
        return "Rows", Sight(value)
    return None


def _quotient(node: Node, frame: Frame) -> Form | None:
    """A quotient by a number that is known, and whose reciprocal is neither huge nor tiny."""
    value, divisor = node.operands
    number = _known(divisor)
    if number is None or value.shape[: len(frame.batch)] != frame.batch:
        return None
    if value.shape != node.result.shape or not _LEAST < abs(number) < _MOST:
        return None
    return Form("Scale", (Sight(1.0 / number), Sight(value)))


def _known(value: Value) -> float | None:
    """The number that a scalar constant holds."""
    if value.node is not None and value.node.op == "broadcast_in_dim" and value.node.operands[0].shape == ():
        value = value.node.operands[0]
    if not value.is_const or value.shape != ():
        return None
    return float(np.asarray(value.const))


READERS: Final[Mapping[str, Callable[[Node, Frame], Form | None]]] = {
    "dot_general": _product,
    "add": _sum,
    "add_any": _sum,
    "sub": _sum,
    "neg": _negative,
    "mul": _elementwise_product,
    "div": _quotient,
    "transpose": _transpose,
    "reshape": _renamed,
    "squeeze": _renamed,
    "broadcast_in_dim": _renamed,
}
"""For each operation of the algebra how it is read."""
