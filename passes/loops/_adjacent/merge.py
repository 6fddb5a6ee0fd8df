"""The loop that does the work of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import lax

from lepton_jax.ir.export import bind
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._adjacent.pair import VIEWS, Pair
from lepton_jax.passes.loops._parts.piece import Piece, cut
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

Place = tuple[str, int]
"""Where the body takes an argument from: `const`, `state`, `row`, `stacked` by the first, `between`;
`single` is an array of one row that stands for all rows."""


class _Operands:
    """The operands of the new loop, each once."""

    def __init__(self) -> None:
        self.consts: list[Value] = []
        self.single: list[Value] = []
        self.rows: list[Value] = []

    def const(self, value: Value) -> Place:
        return "const", _position(self.consts, value)

    def row(self, value: Value) -> Place:
        return "row", _position(self.rows, value)


def _position(values: list[Value], value: Value) -> int:
    if not any(v is value for v in values):
        values.append(value)
    return next(i for i, v in enumerate(values) if v is value)


def merge(pair: Pair, rule: str) -> Node:
    """Put one loop in place of two; returns it."""
    graph = pair.first.graph
    assert graph is not None
    for node in pair.early:
        graph.move(node, pair.first)
    first, second = Scan(pair.first), Scan(pair.second)
    given = _Operands()
    stacked = {v: i for i, v in enumerate(pair.first.results[len(first.carries) :])}
    results = {v: i for i, v in enumerate(pair.results)}
    one, leaves = cut(first.body, first.body.outputs)
    from_first = [_place(leaf, first, given, {}, 0) for leaf in leaves]
    between, leaves = cut(graph, pair.results, lambda value: value not in pair.made or value in stacked)
    from_between = [_row_of(leaf, pair, given, stacked, rule) for leaf in leaves]
    two, leaves = cut(second.body, second.body.outputs)
    from_second = [_place(leaf, second, given, results, len(first.carries)) for leaf in leaves]
    made = rewrite(
        side_by_side,
        *given.consts,
        *given.single,
        *first.init,
        *second.init,
        *given.rows,
        counts=(len(given.consts), len(given.single), len(first.carries), len(second.carries)),
        programs=(one, between, two),
        places=(tuple(from_first), tuple(from_between), tuple(from_second)),
        length=first.length,
        reverse=pair.first.params["reverse"],
        unroll=pair.first.params["unroll"],
    )
    values = iter(write_before(made, pair.first, rule))
    a, b = len(first.carries), len(second.carries)
    order = [*pair.first.results[:a], *pair.second.results[:b]]
    order += [*pair.first.results[a:], *pair.second.results[b:]]
    loop = pair.first.prev
    for old, new in zip(order, values, strict=True):
        old.replace_uses(new)
    erase_dead(pair.second)
    erase_dead(pair.first)
    while loop is not None and loop.op != "scan":
        loop = loop.prev
    assert loop is not None
    return loop


def _place(leaf: Value, scan: Scan, given: _Operands, results: dict[Value, int], skip: int) -> Place:
    """Where a body takes one of its inputs from.

    Args:
        results: what the first loop determines, for the second.
        skip: how many carries stand before those of this loop.
    """
    if leaf.is_const:
        return given.const(leaf)
    if leaf in scan.carries:
        return "state", skip + scan.carries.index(leaf)
    outer = scan.outer[leaf]
    if leaf in scan.consts:
        return given.const(outer)
    return ("between", results[outer]) if outer in results else given.row(outer)


def _row_of(leaf: Value, pair: Pair, given: _Operands, stacked: dict[Value, int], rule: str) -> Place:
    """Where a row of a value between the loops comes from; what has no rows is the same for all."""
    if leaf in stacked:
        return "stacked", stacked[leaf]
    if not leaf.ndim:
        return given.const(leaf)
    if leaf.shape[0] != pair.first.params["length"]:
        return "single", _position(given.single, leaf)
    maker = leaf.node
    repeats = maker is not None and maker.op == "broadcast_in_dim"
    if maker is not None and repeats and 0 not in maker.params["broadcast_dimensions"]:
        (row,) = write_before(rewrite(_one_row, leaf), pair.first, rule)
        return "single", _position(given.single, row)
    return given.row(leaf)


def _one_row(x: Any) -> Any:
    return lax.slice_in_dim(x, 0, 1)


def side_by_side(
    *args: Any,
    counts: tuple[int, int, int, int],
    programs: tuple[Piece, Piece, Piece],
    places: tuple[tuple[Place, ...], ...],
    length: int,
    reverse: bool,
    unroll: int,
) -> list[Any]:
    """Two loops in one.

    Args:
        args: what is the same on every iteration, arrays of a single row, the initial carries of both,
            and what is scanned.
        counts: how many there are of the first and second, and carries of the one loop and the other.
        programs: a step of the first, what is between them on arrays, and a step of the second.
        places: where each of them takes its arguments from.

    Returns:
        The carries of the first, of the second, what the first stacks, and what the second does.
    """
    consts, singles, a, b = counts
    fixed, rest = args[:consts], args[consts:]
    single, rest = rest[:singles], rest[singles:]
    init, scanned = rest[: a + b], rest[a + b :]
    one, between, two = programs

    def step(state: list[Any], rows: list[Any]) -> tuple[list[Any], list[Any]]:
        known: dict[str, Sequence[Any]] = {"const": fixed, "state": state, "row": rows}
        known["single"] = [x[0] for x in single]

        def taken(which: int) -> list[Any]:
            return [known[kind][i] for kind, i in places[which]]

        left = one(*taken(0))
        known["stacked"] = left[a:]
        known["between"] = on_a_row(between, taken(1))
        right = two(*taken(2))
        return [*left[:a], *right[:b]], [*left[a:], *right[b:]]

    state, ys = lax.scan(step, list(init), list(scanned), length=length, reverse=reverse, unroll=unroll)
    return [*state, *ys]


def on_a_row(piece: Piece, args: Sequence[Any]) -> list[Any]:
    """What elementwise operations and views of arrays give for one row of each."""
    env: dict[Value, Any] = dict(zip(piece.graph.inputs, args, strict=True))

    def read(value: Value) -> Any:
        return value.const if value.is_const else env[value]

    for node in piece.graph:
        operands = [read(v) for v in node.operands]
        if node.op in VIEWS:
            env[node.result] = operands[0].reshape(node.result.shape[1:])
        else:
            env.update(zip(node.results, bind(node, operands), strict=True))
    return [read(v) for v in piece.graph.outputs]
