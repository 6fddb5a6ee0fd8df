"""Carries that are linear where sums are maxima, or log(Σ exp), and products are sums.

h_j ← max_i(h_i + A_ij) + b_j finds the best path through states (Viterbi), with log(Σ exp) for the maximum it
is the forward algorithm of hidden Markov models and of CTC.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.export import bind
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.loops._recurrence import semiring
from lepton_jax.passes.loops._recurrence.clusters import LogSum, log_sum
from lepton_jax.passes.loops._recurrence.lanes import TRANSFERS, Axes, Walk, without
from lepton_jax.passes.loops._recurrence.linear import Layout, Transit, best_layout

_MOST_STATES: Final = 32


@dataclass(frozen=True, slots=True)
class Move:
    """A node on the way from carries to their next values.

    Attributes:
        node: the node.
        sum: what it is the logarithm of, for the end of a `LogSum`.
    """

    node: Node
    sum: LogSum | None

    @property
    def reads(self) -> Sequence[Value]:
        """What it takes."""
        return self.node.operands if self.sum is None else self.sum.terms


def moves(body: Graph, carries: Iterable[Value], outputs: Iterable[Value]) -> tuple[list[Move], set[Value]]:
    """The operations that make values, what is inside of logarithms left out, and the values that move."""
    moving = set(carries)
    for node in body:
        if any(v in moving for v in node.operands):
            moving.update(node.results)
    found: dict[Node, Move] = {}
    stack = list(outputs)
    while stack:
        value = stack.pop()
        maker = value.node
        if maker is None or maker in found or value.is_const:
            continue
        found[maker] = Move(maker, log_sum(maker) if value in moving else None)
        stack += found[maker].reads
    return [found[node] for node in body if node in found], moving


def path_layout(scan: Scan, carries: Sequence[Value], nexts: Sequence[Value]) -> tuple[str, Layout] | None:
    """The kind of sum with which the next values of carries are linear in them, and how; if there is one."""
    dtype = carries[0].dtype
    if any(c.dtype != dtype or c.aval.size == 0 for c in carries) or _jax.is_extended(dtype):
        return None
    if not jnp.issubdtype(dtype, np.floating):
        return None
    order, moving = moves(scan.body, carries, nexts)
    path = [move for move in order if any(v in moving for v in move.node.operands)]
    kinds = {_KINDS[move.node.op] for move in path if move.node.op in _KINDS}
    kinds |= {"log" for move in path if move.sum is not None}
    if len(kinds) != 1 or not all(_may_stand(move, moving, dtype) for move in path):
        return None

    steps: list[Transit] = [(move.node, move.reads, functools.partial(_lanes, move)) for move in path]
    layout = best_layout(steps, carries, nexts, _MOST_STATES)
    return None if layout is None else (kinds.pop(), layout)


def _lanes(move: Move, walk: Walk) -> Axes | None:
    """Where the lanes of a result are."""
    if move.sum is not None:
        return _summed(move.sum, walk)
    found: Axes | None = _TRANSFERS[move.node.op](move.node, walk)
    return found


def _may_stand(move: Move, moving: set[Value], dtype: Any) -> bool:
    if any(v.dtype != dtype for v in move.node.results):
        return False
    if move.sum is not None:
        return True
    inside = [i for i, v in enumerate(move.node.operands) if v in moving]
    if move.node.op in ("add", "add_any"):
        return len(inside) == 1
    if move.node.op == "sub":
        return inside == [0]
    return move.node.op in _TRANSFERS


def _summed(sums: LogSum, walk: Walk) -> Axes | None:
    found = {walk.lanes[v] for v in sums.terms if v in walk.lanes}
    if len(found) != 1:
        return None
    (lanes,) = found
    if sums.kept:
        return None if {*lanes} & {*sums.axes} else lanes
    return without(lanes, sums.axes)


def _factor(node: Node, walk: Walk) -> Axes | None:
    """Sums, which are the products here."""
    (inside,) = walk.moving(node)
    lanes = walk.lanes[node.operands[inside]]
    walk.multiply(node.operands[1 - inside], lanes)
    return lanes


_KINDS: Final = {"max": "max", "reduce_max": "max", "min": "min", "reduce_min": "min"}

_ADDED: Final[dict[str, tuple[int, ...] | None]] = {
    "max": None,
    "min": None,
    "concatenate": None,
    "stack": None,
    "pad": None,
    "dynamic_update_slice": (0, 1),
    "scatter": (0, 2),
}
"""The operands of which a result is the sum, each alone: all, or some of them."""

_TRANSFERS: Final[dict[str, Any]] = {
    **{
        op: TRANSFERS[op]
        for op in (
            *("copy", "broadcast_in_dim", "squeeze", "reshape", "transpose", "slice", "dynamic_slice"),
            *("dynamic_update_slice", "concatenate", "split", "rev", "pad", "scatter", "select_n", "stack"),
        )
    },
    "add": _factor,
    "add_any": _factor,
    "sub": _factor,
    "max": TRANSFERS["add"],
    "min": TRANSFERS["add"],
    "reduce_max": TRANSFERS["reduce_sum"],
    "reduce_min": TRANSFERS["reduce_sum"],
}


def follow(
    graph: Graph, args: Sequence[Any], carries: Sequence[int], kind: str, *, linear: bool
) -> list[Any]:
    """The outputs of a graph.

    Args:
        args: its inputs.
        carries: the positions of the carries among them.
        kind: the kind of sum: `max`, `min` or `log`.
        linear: leave out what is added to what moves.
    """
    env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))
    order, moving = moves(graph, [graph.inputs[i] for i in carries], graph.outputs)

    def read(value: Value) -> Any:
        if not value.is_const:
            return env[value]
        known = _jax.plain_constant(value.const) if value.ndim == 0 else None
        return value.const if known is None else known.astype(value.dtype)

    def read_for(move: Move, position: int, value: Value) -> Any:
        if not linear or value in moving or not _is_added(move, position):
            return read(value)
        return semiring.nothing(tuple(value.shape), value.dtype, kind)

    with _jax.Placement() as placement:
        for move in order:
            node = move.node
            moves_on = any(v in moving for v in node.operands)
            operands = [read_for(move, i, v) if moves_on else read(v) for i, v in enumerate(move.reads)]
            with placement.at(node.source, node.context):
                results = bind(node, operands) if move.sum is None else [_sum(move.sum, operands)]
            env.update(zip(node.results, results, strict=True))
    return [read(v) for v in graph.outputs]


def _is_added(move: Move, position: int) -> bool:
    if move.sum is not None:
        return True
    if move.node.op == "select_n":
        return position > 0
    places = _ADDED.get(move.node.op, ())
    return places is None or position in places


def _sum(sums: LogSum, terms: list[Any]) -> Any:
    found = terms[0]
    for term in terms[1:]:
        found = semiring.plus(found, term, "log")
    if not sums.axes:
        return found
    found_total = semiring.total(found, sums.axes, "log")
    return jnp.expand_dims(found_total, sums.axes) if sums.kept else found_total
