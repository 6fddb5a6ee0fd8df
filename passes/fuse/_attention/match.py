"""Finding attention: a product with softmax weights whose scores are themselves a product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import MOVES, Labels, dot_axes, dot_numbers, operand_labels
from lepton_jax.passes.fuse._attention.path import (
    SAME,
    Path,
    Row,
    behind,
    is_divided_later,
    is_row,
    masked_of,
    to_exp,
)
from lepton_jax.passes.fuse._attention.program import Builder, Program

Sums = tuple[tuple[Node, ...], tuple[Node, ...]]
"""Sums over the keys of one array, and the masks that make it of the exponentials."""


@dataclass(frozen=True, eq=False)
class Found:
    """Attention in a graph.

    Attributes:
        dot: the product of weights and values.
        side: which of its operands the weights are.
        exp: what exponentiates the scores.
        scores: the scores, masked and biased, before the softmax.
        labels: their query and key axes.
        shift: what is subtracted from the scores, None where nothing is.
        top: the maximum over keys, if that is what is subtracted.
        tops: all maxima of the scores over the keys.
        sums: the sums of the exponentials, as they are or masked, over the keys.
        others: such sums of the same scores with something else subtracted, and what.
        divided: whether the weights are divided by the sum before the product, and not masked.
        rows: what else is done to whole rows of weights before the product.
        builder: the operations behind the scores.
        program: the scores, from its leaves.
        late: the operations from the exponentials to the product's operand, and to what is summed.
        weights: from the exponentials to the product's operand.
        summed: from the exponentials to what is summed.
        moves: the operations from the exponentials to the product's operand, as they stand in the graph.
        masked: whether masks or factors are among them, or among those to what is summed.
        counted_masks: the masks of what is summed, and whether they are True where a key is not seen.
    """

    dot: Node
    side: int
    exp: Node
    scores: Value
    labels: Labels
    shift: Value | None
    top: Node | None
    tops: tuple[Node, ...]
    sums: tuple[Node, ...]
    others: tuple[tuple[Node, Value], ...]
    divided: bool
    rows: tuple[Row, ...]
    builder: Builder
    program: Program
    late: Builder
    weights: Program
    summed: Program
    moves: tuple[Node, ...]
    masked: bool
    counted_masks: tuple[tuple[Value, bool], ...]

    @property
    def ends(self) -> tuple[Node, ...]:
        """What reads the scores or weights and becomes a result of the blocked form."""
        return (self.dot, *self.tops, *self.sums, *(node for node, _ in self.others))

    @property
    def size(self) -> tuple[int, int]:
        """The number of queries and of keys."""
        query, key = self.labels
        assert query is not None and key is not None
        return self.scores.shape[query], self.scores.shape[key]


def find(dot: Node) -> Found | str | None:
    """The attention that ends in a product.

    Returns:
        None if there is nothing like it; a text if it is nearly one, saying what it lacks.
    """
    contract, _ = dot_numbers(dot)
    if len(contract[0]) != 1:
        return None
    for side in (0, 1):
        path = to_exp(dot.operands[side], contract[side][0])
        if isinstance(path, Path):
            return _complete(dot, side, path)
        if path is not None:
            return path
    return None


def _complete(dot: Node, side: int, path: Path) -> Found | str | None:
    scores, shift = _shifted(path.exp, path.key)
    (sums, masks), divided, rows = _divided(path)
    masked = path.is_masked or any(node.op not in SAME for node in masks)
    others = () if masked else tuple(_siblings(path.exp, scores, path.key))
    scaled = any(row.kind in ("mul", "div") for row in rows)
    if not sums and not others and not scaled:
        return None
    if any(_moves_before(path, row) for row in rows):
        return "the weights are moved before they are divided"
    tops = tuple(
        user
        for user in scores.users()
        if user.op == "reduce_max" and [int(a) for a in user.params["axes"]] == [path.key]
    )
    top = None if shift is None else behind(shift)
    others_divide = divided or others or scaled
    if shift is not None and top not in tops and not others_divide and not is_divided_later(dot, sums):
        return "what is subtracted from the scores is not their maximum"
    for labels, weights_labels in _labels(dot, side, path):
        builder = Builder()
        program = builder.program(builder.add(scores, labels))
        if any(_is_score(step.op, step.operands, program) for step in program.steps):
            late, end, number = _weights(path, masks, labels, weights_labels)
            if late.dependent():
                return "the weights are multiplied by another product"
            return Found(
                dot=dot,
                side=side,
                exp=path.exp,
                scores=scores,
                labels=labels,
                shift=shift,
                top=top if top in tops else None,
                tops=tops,
                sums=sums,
                others=others,
                divided=divided,
                rows=rows,
                builder=builder,
                program=program,
                late=late,
                weights=late.program(end),
                summed=late.program(number if masked else late.leaf(path.exp.result, labels)),
                moves=path.steps,
                masked=masked,
                counted_masks=_choices(masks),
            )
    return None


def _shifted(exp: Node, key: int) -> tuple[Value, Value | None]:
    """The scores in an exponent, and what is subtracted from them."""
    exponent = exp.operands[0]
    if exponent.node is not None and exponent.op == "sub":
        left, right = exponent.node.operands
        if left.shape == exponent.shape and is_row(right, key):
            return left, right
    return exponent, None


def _divided(path: Path) -> tuple[Sums, bool, tuple[Row, ...]]:
    """The sums of the exponentials, whether the weights are divided by them, and what else is done to rows.

    Of several kinds of sums, masked and not, those count that divide the weights; where exponentials are
    masked, the division is one among others.
    """
    kinds: list[Sums] = []
    for value, masks in masked_of(path.exp.result, path.key):
        nodes = tuple(u for u in value.users() if _sums_keys(u, path.key))
        if nodes:
            kinds.append((nodes, masks))
    for sums, masks in kinds:
        for row in path.rows:
            if _divides_by(row, sums):
                plain = all(node.op in SAME for node in masks) and not path.is_masked
                plain = plain and all(r.kind != "nan" for r in path.rows)
                return (sums, masks), plain, tuple(r for r in path.rows if r is not row or not plain)
    return (kinds[0] if kinds else ((), ())), False, path.rows


def _choices(masks: tuple[Node, ...]) -> tuple[tuple[Value, bool], ...]:
    """The conditions of masks that choose, and whether they are True for zero."""
    chosen = [node for node in masks if node.op == "select_n"]
    return tuple((node.operands[0], facts_of(node.operands[2]).is_zero) for node in chosen)


def _is_score(op: str, operands: tuple[Any, ...], program: Program) -> bool:
    """Whether a step is a product of what depends on queries alone with what depends on keys alone."""
    if op != "dot_general":
        return False
    marks = [program.leaves[o] for o in operands if isinstance(o, int) and o < len(program.leaves)]
    return sorted((q is None, k is None) for q, k in marks) == [(False, True), (True, False)]


def _divides_by(row: Row, sums: tuple[Node, ...]) -> bool:
    """Whether weights are divided by one of these sums."""
    value = row.value
    if row.kind not in ("mul", "div") or value is None:
        return False
    if row.kind == "mul":
        node = behind(value)
        if node is not None and node.op == "div" and facts_of(node.operands[0]).is_one:
            value = node.operands[1]
        elif node is not None and node.op == "integer_pow" and node.params["y"] == -1:
            value = node.operands[0]
        else:
            return False
    return behind(value) in sums


def _moves_before(path: Path, row: Row) -> bool:
    return any(node.op in MOVES for node in path.steps[: row.before])


def _sums_keys(node: Node, key: int) -> bool:
    return node.op == "reduce_sum" and [int(a) for a in node.params["axes"]] == [key]


def _siblings(exp: Node, scores: Value, key: int) -> Iterator[tuple[Node, Value]]:
    """Sums of other exponentials of the same scores, and what is subtracted from the scores in them."""
    for user in scores.users():
        if user.op != "sub" or user.operands[0] is not scores or not is_row(user.operands[1], key):
            continue
        for power in user.result.users():
            if power.op == "exp" and power is not exp:
                for node in power.result.users():
                    if _sums_keys(node, key):
                        yield node, user.operands[1]


def _labels(dot: Node, side: int, path: Path) -> Iterator[tuple[Labels, list[Labels]]]:
    """Candidates for the query axis, largest first: labels of the scores, and of what each move makes."""
    weights = dot.operands[side]
    contract, _ = dot_numbers(dot)
    free = dot_axes(dot)[:2][side]
    for query in sorted(free, key=lambda d: -weights.shape[d]):
        axes: list[Labels] = [(query, contract[side][0])]
        for node, at in zip(reversed(path.steps), reversed(path.sides), strict=True):
            marks = operand_labels(node, axes[-1])
            if marks is None or None in marks[at]:
                break
            axes.append(marks[at])
        else:
            yield axes[-1], axes[::-1]


def _weights(
    path: Path, masks: tuple[Node, ...], labels: Labels, axes: list[Labels]
) -> tuple[Builder, tuple[str, int], tuple[str, int]]:
    """The steps from the exponentials to the product's operand and to what is summed, with both places.

    Divisions are left out.
    """
    builder = Builder({path.exp.result: labels})
    places = {path.exp.result: builder.leaf(path.exp.result, labels)}
    end = number = places[path.exp.result]
    for node, side, marks in zip(path.steps, path.sides, axes[1:], strict=True):
        end = _append(builder, node, side, marks, end)
        places[node.result] = end
    for node in masks:
        side = next(at for at, v in enumerate(node.operands) if v in places and places[v] == number)
        if node.result not in places:
            places[node.result] = _append(builder, node, side, labels, number)
        number = places[node.result]
    return builder, end, number


def _append(
    builder: Builder, node: Node, side: int, marks: Labels, place: tuple[str, int]
) -> tuple[str, int]:
    """Add a step on weights that have a place, and on what else it reads."""
    places: list[Any] = []
    for at, (value, theirs) in enumerate(zip(node.operands, operand_labels(node, marks) or [], strict=True)):
        if at == side:
            places.append(place)
        else:
            places.append(value if value.is_const and value.ndim == 0 else builder.add(value, theirs))
    return builder.append(node, marks, places)
