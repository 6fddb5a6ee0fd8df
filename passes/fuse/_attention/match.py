"""Finding attention: a product with softmax weights whose scores are themselves a product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import MOVES, Labels, dot_axes, dot_numbers, sources
from lepton_jax.passes.fuse._attention.program import Builder, Program

_FAR: Final = 16
"""So many operations are followed between the weights and their exponential, and the like."""

_SAME: Final = frozenset({"convert_element_type", "copy", "copy_p", "stop_gradient"})

_RANDOM: Final = frozenset({"random_bits", "random_unwrap", "threefry2x32", "rng_bit_generator"})


@dataclass(frozen=True, eq=False)
class Found:
    """Attention in a graph.

    Attributes:
        dot: the product of weights and values.
        side: which of its operands the weights are.
        exp: what exponentiates the scores.
        scores: the scores, masked and biased, before the softmax.
        labels: their query and key axes.
        top: the maximum over keys that is subtracted, None where none is.
        sums: the sums of the exponentials over the keys.
        divided: whether the weights are divided by the sum before the product.
        builder: the operations behind the scores.
        program: the scores, from its leaves.
        weights: from the exponentials to the product's operand.
        moves: the operations of `weights`, as they stand in the graph.
    """

    dot: Node
    side: int
    exp: Node
    scores: Value
    labels: Labels
    top: Node | None
    sums: tuple[Node, ...]
    divided: bool
    builder: Builder
    program: Program
    weights: Program
    moves: tuple[Node, ...]

    @property
    def size(self) -> tuple[int, int]:
        """The number of queries and of keys."""
        query, key = self.labels
        assert query is not None and key is not None
        return self.scores.shape[query], self.scores.shape[key]


@dataclass(frozen=True, eq=False)
class _Path:
    """From the product's operand back to the exponential: moves, the divisor, the key axis there."""

    moves: list[Node]
    divisor: Value | None
    inverse: bool
    exp: Node
    key: int


def find(dot: Node) -> Found | str | None:
    """The attention that ends in a product.

    Returns:
        None if there is nothing like it; a text if it is nearly one, saying what it lacks.
    """
    contract, _ = dot_numbers(dot)
    if len(contract[0]) != 1:
        return None
    for side in (0, 1):
        path = _to_exp(dot.operands[side], contract[side][0])
        if isinstance(path, _Path):
            return _complete(dot, side, path)
        if path is not None:
            return path
    return None


def _to_exp(value: Value, axis: int) -> _Path | str | None:
    moves: list[Node] = []
    divisor, inverse = None, False
    for _ in range(_FAR):
        node = value.node
        if node is None:
            return None
        if node.op == "exp":
            return _Path(moves[::-1], divisor, inverse, node, axis)
        if node.op in ("div", "mul"):
            quotient = _quotient(node, axis)
            if quotient is None or divisor is not None:
                return _reason(node)
            value, divisor = quotient
            inverse = node.op == "mul"
            continue
        if node.op not in MOVES and node.op not in _SAME:
            return _reason(node)
        before = sources(node, axis)
        if before is None or before[0] is None:
            return None
        moves.append(node)
        value, axis = node.operands[0], before[0]
    return None


def _quotient(node: Node, axis: int) -> tuple[Value, Value] | None:
    """What is divided and what divides, where the divisor is the same for all keys."""
    left, right = node.operands
    pairs = [(left, right)] if node.op == "div" else [(left, right), (right, left)]
    for whole, part in pairs:
        if whole.shape == node.result.shape and _is_row(part, axis):
            return whole, part
    return None


def _is_row(value: Value, axis: int) -> bool:
    """Whether a value is the same along an axis."""
    if value.ndim == 0 or value.shape[axis] == 1:
        return True
    return value.node is not None and value.op == "broadcast_in_dim" and sources(value.node, axis) == [None]


def _reason(node: Node) -> str | None:
    """Why weights that go through `node` are left alone, if weights they are."""
    if node.op not in ("mul", "div", "select_n") or not any(_near_exp(v) for v in node.operands):
        return None
    if any(drawn(v) for v in node.operands):
        return "the weights have dropout"
    return f"the weights go through {node.op} before they meet the values"


def ancestors(value: Value, most: int) -> Iterator[Node]:
    """The operations that a value is made of, nearest first, so many at the most."""
    seen: set[Node] = set()
    queue = [value.node]
    while queue and len(seen) < most:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        queue += [v.node for v in node.operands]


def _near_exp(value: Value) -> bool:
    for _ in range(4):
        node = value.node
        if node is None or node.op == "exp":
            return node is not None
        if node.op not in MOVES | _SAME | {"div", "mul"}:
            return False
        value = node.operands[0]
    return False


def drawn(value: Value) -> bool:
    """Whether a value is made of random numbers."""
    return any(node.op in _RANDOM for node in ancestors(value, 64))


def _complete(dot: Node, side: int, path: _Path) -> Found | str | None:
    exponent = path.exp.operands[0]
    scores, shift = exponent, None
    if exponent.node is not None and exponent.op == "sub":
        left, right = exponent.node.operands
        if left.shape == exponent.shape and _is_row(right, path.key):
            scores, shift = left, right
    sums = tuple(_sums(path.exp.result, path.key))
    divided = path.divisor is not None
    if path.divisor is not None and not _divides_by_sum(path, sums):
        return "the weights are divided by something else than their sum"
    if not sums:
        return None
    top = None if shift is None else _top(shift, scores, path.key)
    if shift is not None and top is None and not divided:
        return "what is subtracted from the scores is not their maximum"
    for labels, weights_labels in _labels(dot, side, path, scores):
        builder = Builder()
        program = builder.program(builder.add(scores, labels))
        if any(_is_score(step.op, step.operands, program) for step in program.steps):
            weights = _weights(path, labels, weights_labels)
            parts = (labels, top, sums, divided, builder, program, weights, tuple(path.moves))
            return Found(dot, side, path.exp, scores, *parts)
    return None


def _is_score(op: str, operands: tuple[Any, ...], program: Program) -> bool:
    """Whether a step is a product of what depends on queries alone with what depends on keys alone."""
    if op != "dot_general":
        return False
    marks = [program.leaves[o] for o in operands if isinstance(o, int) and o < len(program.leaves)]
    return sorted((q is None, k is None) for q, k in marks) == [(False, True), (True, False)]


def _divides_by_sum(path: _Path, sums: tuple[Node, ...]) -> bool:
    divisor = path.divisor
    assert divisor is not None
    if path.inverse:
        node = _plain(divisor)
        if node is not None and node.op == "div" and facts_of(node.operands[0]).is_one:
            divisor = node.operands[1]
        elif node is not None and node.op == "integer_pow" and node.params["y"] == -1:
            divisor = node.operands[0]
        else:
            return False
    return _plain(divisor) in sums


def _plain(value: Value) -> Node | None:
    """What makes a value, apart from conversions and axes of size one."""
    for _ in range(_FAR):
        node = value.node
        if node is None:
            return None
        if node.op not in _SAME and not _is_view(node) and not _is_max_of_nothing(node):
            return node
        value = next(v for v in node.operands if node.op != "max" or not _is_nothing(v))
    return None


def _is_view(node: Node) -> bool:
    """Whether a node only adds or drops axes of size one, or repeats along others."""
    if node.op == "broadcast_in_dim":
        return True
    units = [[d for d in v.shape if d != 1] for v in (node.operands[0], node.results[0])]
    return node.op in ("reshape", "squeeze") and units[0] == units[1]


def _is_max_of_nothing(node: Node) -> bool:
    return node.op == "max" and sum(map(_is_nothing, node.operands)) == 1


def _is_nothing(value: Value) -> bool:
    splat = facts_of(value).splat
    return splat is not None and splat == -float("inf")


def _sums(exp: Value, key: int) -> Iterator[Node]:
    """The sums of the exponentials over the keys."""
    for user in exp.users():
        if user.op == "reduce_sum" and [int(a) for a in user.params["axes"]] == [key]:
            yield user
        elif user.op == "convert_element_type":
            for after in user.result.users():
                if after.op == "reduce_sum" and [int(a) for a in after.params["axes"]] == [key]:
                    yield after


def _top(shift: Value, scores: Value, key: int) -> Node | None:
    """The maximum of the scores, if that is what is subtracted."""
    node = _plain(shift)
    if node is None or node.op != "reduce_max" or [int(a) for a in node.params["axes"]] != [key]:
        return None
    return node if node.operands[0] is scores else None


def _labels(dot: Node, side: int, path: _Path, scores: Value) -> Iterator[tuple[Labels, list[Labels]]]:
    """Candidates for the query axis, largest first: labels of the scores, and of what each move makes."""
    weights = dot.operands[side]
    contract, _ = dot_numbers(dot)
    free = dot_axes(dot)[:2][side]
    for query in sorted(free, key=lambda d: -weights.shape[d]):
        axes: list[Labels] = [(query, contract[side][0])]
        for node in reversed(path.moves):
            queries, keys = (sources(node, a) for a in axes[-1] if a is not None)
            if queries is None or keys is None or queries[0] is None or keys[0] is None:
                break
            axes.append((queries[0], keys[0]))
        else:
            yield axes[-1], axes[::-1]


def _weights(path: _Path, labels: Labels, axes: list[Labels]) -> Program:
    """The moves between the exponentials and the product, the division left out."""
    builder = Builder({path.exp.result: labels})
    place = builder.leaf(path.exp.result, labels)
    for node, marks in zip(path.moves, axes[1:], strict=True):
        place = builder.append(node, marks, [place])
    return builder.program(place)
