"""Matrices of known form, as recipes for applying them without forming them.

A recipe is a nested tuple of operations and numbers of arrays, so that it can be a static argument:

    ("identity",)                the identity
    ("diagonal", i)              diagonal, with the vector i
    ("main", i)                  diagonal, with the main diagonal of the matrix i
    ("number", i, r)             the number i times r
    ("neg", r), ("add", r, s), ("sub", r, s), ("transpose", r), ("product", r, s)
    ("outer", i, j)              the vector i times the vector j transposed
    ("kron", r, s)               the Kronecker product of r and s
    ("rows", i, n)               the rows of the identity of n rows in the order i
    ("permutation", rows)        the same with known numbers
    ("ones", m, n)               ones everywhere
    ("dense", i)                 the matrix i
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._chains.labels import is_plain_dot

Recipe = tuple[Any, ...]

_DEEPEST: Final = 6

_SHAPED: Final = frozenset({"convert_element_type", "select_n", "eq"})
_BUILT: Final = frozenset(
    {"broadcast_in_dim", "mul", "neg", "add", "sub", "add_any", "transpose", "reshape", "gather", *_SHAPED}
)


class Reader:
    """Finds the form of matrices, and numbers the arrays that the recipe needs."""

    def __init__(self) -> None:
        self.values: list[Value] = []

    def number(self, value: Value) -> int:
        """The number of an array."""
        for i, known in enumerate(self.values):
            if known is value:
                return i
        self.values.append(value)
        return len(self.values) - 1

    def read(self, value: Value, depth: int = _DEEPEST) -> Recipe | None:
        """The form of a matrix (two dimensions); None if it has none that would help."""
        if value.ndim != 2 or depth == 0:
            return None
        if value.is_const:
            return self.constant(value)
        node = value.node
        if node is None or node.op not in _BUILT:
            return None
        if node.op in _SHAPED:
            return self.shaped(value, node)
        if node.op == "broadcast_in_dim":
            return self.ones(node.operands[0], value.shape) if node.operands[0].ndim == 0 else None
        if node.op == "gather":
            return self.rows(node)
        if node.op == "reshape":
            return self.kron(node, depth)
        if node.op == "mul":
            return self.scaled(node, depth)
        if node.op in ("neg", "transpose"):
            inner = self.read(node.operands[0], depth - 1)
            return None if inner is None else (node.op, inner)
        return self.total(node, depth)

    def constant(self, value: Value) -> Recipe | None:
        facts = facts_of(value)
        if facts.identity:
            return ("identity",)
        if facts.permutation and facts.constant is not None:
            return ("permutation", tuple(int(i) for i in np.argmax(facts.constant != 0, axis=1)))
        return None

    def shaped(self, value: Value, node: Node) -> Recipe | None:
        facts = facts_of(value)
        if facts.identity:
            return ("identity",)
        if not facts.diagonal or value.shape[0] != value.shape[1]:
            return None
        band = facts_of(node.operands[0]).band if node.op == "select_n" else None
        if band is not None and (band.low, band.high, band.inside) == (0, 0, True):
            return self.along(node.operands[2])
        return ("main", self.number(value))

    def along(self, value: Value) -> Recipe:
        """The diagonal matrix with the main diagonal of a value, which may be spread from a vector."""
        if value.ndim == 0:
            return ("number", self.number(value), ("identity",))
        node = value.node
        if node is not None and node.op == "broadcast_in_dim":
            source = node.operands[0]
            if source.ndim == 1 and source.shape[0] == value.shape[node.params["broadcast_dimensions"][0]]:
                return ("diagonal", self.number(source))
            if source.ndim == 0:
                return ("number", self.number(source), ("identity",))
        return ("main", self.number(value))

    def scaled(self, node: Node, depth: int) -> Recipe | None:
        for a, b in (node.operands, node.operands[::-1]):
            if a.ndim == 0:
                inner = self.read(b, depth - 1)
                return None if inner is None else ("number", self.number(a), inner)
            if b.shape == node.result.shape and b.op in _SHAPED and facts_of(b).identity:
                if a.shape == b.shape:
                    return self.along(a)
                vector = _vector(a)
                return None if vector is None else ("diagonal", self.number(vector))
        return self.outer(node)

    def outer(self, node: Node) -> Recipe | None:
        """A column times a row."""
        sides: list[Value | None] = [None, None]
        for value in node.operands:
            inner = value.node
            if inner is None or inner.op != "broadcast_in_dim" or inner.operands[0].ndim != 1:
                return None
            (place,) = inner.params["broadcast_dimensions"]
            if inner.operands[0].shape[0] != node.result.shape[place]:
                return None
            sides[place] = inner.operands[0]
        column, row = sides
        return None if column is None or row is None else ("outer", self.number(column), self.number(row))

    def ones(self, number: Value, shape: tuple[int, ...]) -> Recipe:
        """A matrix with one number everywhere."""
        return ("number", self.number(number), ("ones", *shape))

    def total(self, node: Node, depth: int) -> Recipe | None:
        shape = node.result.shape
        if any(v.ndim and v.shape != shape for v in node.operands):
            return None  # a row or a column, repeated
        held = len(self.values)
        found = [
            (self.ones(v, shape) if v.ndim == 0 else None)
            or self.read(v, depth - 1)
            or self.product(v, depth)
            for v in node.operands
        ]
        if all(recipe is None for recipe in found):
            return None
        parts = [r or ("dense", self.number(v)) for r, v in zip(found, node.operands, strict=True)]
        if may_cancel(node.op, *parts):
            del self.values[held:]
            return None
        return ("sub" if node.op == "sub" else "add", *parts)

    def product(self, value: Value, depth: int) -> Recipe | None:
        """A product of two matrices, as a term of a sum."""
        node = value.node
        if node is None or node.op != "dot_general" or not is_plain_dot(node):
            return None
        (left, right), batch = node.params["dimension_numbers"]
        a, b = node.operands
        if len(left) != 1 or batch[0] or (a.ndim, b.ndim) != (2, 2):
            return None
        first = self.read(a, depth - 1) or ("dense", self.number(a))
        second = self.read(b, depth - 1) or ("dense", self.number(b))
        first = first if left[0] == 1 else ("transpose", first)
        return ("product", first, second if right[0] == 0 else ("transpose", second))

    def rows(self, node: Node) -> Recipe | None:
        """Rows of the identity, taken by indices that are in bounds."""
        table, index = node.operands
        numbers = node.params["dimension_numbers"]
        plain = (
            numbers.offset_dims == (1,)
            and numbers.collapsed_slice_dims == (0,)
            and numbers.start_index_map == (0,)
            and not numbers.operand_batching_dims
            and tuple(node.params["slice_sizes"]) == (1, table.shape[1])
        )
        if not plain or "PROMISE_IN_BOUNDS" not in str(node.params["mode"]) or index.ndim != 2:
            return None
        return (
            ("rows", self.number(index), table.shape[0])
            if table.op in _SHAPED and facts_of(table).identity
            else None
        )

    def kron(self, node: Node, depth: int) -> Recipe | None:
        """reshape(a[:, None, :, None] * b[None, :, None, :])"""
        inner = node.operands[0].node
        if inner is None or inner.op != "mul" or inner.result.ndim != 4:
            return None
        p, q, r, s = inner.result.shape
        if node.result.shape != (p * q, r * s) or node.params.get("dimensions") is not None:
            return None
        sides: dict[tuple[int, ...], Value] = {}
        for value in inner.operands:
            made = value.node
            if made is None or made.op != "broadcast_in_dim" or made.operands[0].ndim != 2:
                return None
            places = tuple(int(d) for d in made.params["broadcast_dimensions"])
            if made.operands[0].shape != tuple((p, q, r, s)[d] for d in places):
                return None
            sides[places] = made.operands[0]
        if set(sides) != {(0, 2), (1, 3)}:
            return None
        parts = [self.read(v, depth - 1) or ("dense", self.number(v)) for v in (sides[0, 2], sides[1, 3])]
        return ("kron", *parts, (p, q, r, s))


def may_cancel(op: str, first: Recipe, second: Recipe) -> bool:
    """Whether two matrices are full and, as people write such sums, near each other: W - U @ V, U @ V - c.

    What is left of them is small, and so is its error; of W @ x - U @ (V @ x) nothing but rounding may be.
    """
    near = op == "sub" or _has_ones(first) or _has_ones(second)
    return near and _is_full(first) and _is_full(second)


def _has_ones(recipe: Recipe) -> bool:
    return recipe[0] == "ones" or any(map(_has_ones, _parts(recipe)))


def _is_full(recipe: Recipe) -> bool:
    """Whether a matrix has numbers everywhere."""
    parts = [_is_full(part) for part in _parts(recipe)]
    return recipe[0] in ("ones", "outer", "dense") or (all(parts) if recipe[0] == "kron" else any(parts))


def _parts(recipe: Recipe) -> list[Recipe]:
    return [part for part in recipe if isinstance(part, tuple) and part and isinstance(part[0], str)]


def diagonal_vector(value: Value) -> Value | None:
    """The vector (or number) on the main diagonal of a diagonal matrix, where the program has it."""
    reader = Reader()
    match reader.read(value):
        case ("diagonal", int(i)) | ("number", int(i), ("identity",)):
            return reader.values[i]
    return None


def _vector(value: Value) -> Value | None:
    """The vector that is spread over the rows or columns of a matrix."""
    node = value.node
    if node is None or node.op != "broadcast_in_dim" or node.operands[0].ndim != 1:
        return None
    source = node.operands[0]
    return source if source.shape[0] == max(value.shape) else None
