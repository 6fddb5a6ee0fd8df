"""Scores that a few more columns are joined to, as attention sinks are, in two parts.

    softmax(concatenate([scores, sink]))[..., :-1] → exp(scores - m) / (sum(exp(scores - m)) + exp(sink - m))

with m = max(max(scores), sink). The gradient, where the program holds it, is taken apart in the same way.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import ELEMENTWISE, MOVES, result_axis
from lepton_jax.passes.fuse._attention.cutting import Limits
from lepton_jax.passes.fuse._attention.path import is_row
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "attention-sink"

_MOST: Final = 256
_DEEPEST: Final = 8
_FEW: Final = 16
"""The joined columns are at most one in so many."""

_REDUCTIONS: Final = ("reduce_sum", "reduce_max")


@dataclass(frozen=True, eq=False)
class Joined:
    """What depends on an array that was joined.

    Attributes:
        lengths: those of its parts.
        axes: the joined axis of every array that has it.
        nodes: what makes them, in order.
        ends: what reads them and has that axis no longer.
    """

    lengths: tuple[int, ...]
    axes: dict[Value, int]
    nodes: tuple[Node, ...]
    ends: tuple[Node, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the parts begin."""
        return tuple(sum(self.lengths[:at]) for at in range(len(self.lengths)))


def unjoin(node: Node, ctx: PassContext, limits: Limits) -> None:
    """Take scores apart that something was joined to, if that is cut off again from their weights."""
    if not _may_pay(node, limits):
        return
    joined = _region(node)
    if joined is None or not any(n.op == "exp" for n in joined.nodes):
        return
    if not any(end.op in ("slice", "split") for end in joined.ends) or not ctx.fire(RULE, node):
        return
    _write(node, joined)


def _may_pay(node: Node, limits: Limits) -> bool:
    if not node.result.is_static or len(node.operands) > 3:
        return False
    axis = int(node.params["dimension"])
    lengths = sorted(v.shape[axis] for v in node.operands)
    most, rest = lengths[-1], sum(lengths[:-1])
    large = most >= min(limits.masked, limits.open) and math.prod(node.result.shape) >= limits.scores
    return bool(large and 0 < rest * _FEW <= most)


def _region(node: Node) -> Joined | None:
    """What depends on the joined array, None where some of it cannot be taken apart."""
    axis = int(node.params["dimension"])
    lengths = tuple(v.shape[axis] for v in node.operands)
    axes = {node.result: axis}
    joined = Joined(lengths, axes, (), ())
    queue, ends = [node.result], dict[Node, None]()
    for value in queue:
        for user, position in list(value.uses):
            if len(axes) > _MOST:
                return None
            along = _followed(user, position, axes[value])
            if along is not None:
                if user.result not in axes:
                    axes[user.result] = along
                    queue.append(user.result)
            elif _is_end(user, axes[value], joined):
                ends[user] = None
            else:
                return None
    made = {value.node for value in axes} - {node}
    assert node.graph is not None
    return Joined(lengths, axes, tuple(n for n in node.graph if n in made), tuple(ends))


def _followed(user: Node, position: int, axis: int) -> int | None:
    """The joined axis of a reader's result, None where it has none."""
    if user.effects or len(user.results) != 1:
        return None
    if user.op in _REDUCTIONS:
        gone = {int(a) for a in user.params["axes"]}
        return None if axis in gone else axis - sum(g < axis for g in gone)
    if user.op not in ELEMENTWISE | MOVES:
        return None
    return result_axis(user, position, axis)


def _is_end(user: Node, axis: int, joined: Joined) -> bool:
    """Whether a reader sums the joined axis away, or cuts out of one part."""
    if user.op in _REDUCTIONS:
        return axis in {int(a) for a in user.params["axes"]}
    return user.op in ("slice", "split") and all(at is not None for at, _, _ in _cuts(user, axis, joined))


def _cuts(cut: Node, axis: int, joined: Joined) -> list[tuple[int | None, tuple[int, ...], tuple[int, ...]]]:
    """For each result of a slice or a split the part that it is cut out of, and where it begins and ends."""
    shape = cut.operands[0].shape
    spans: list[tuple[list[int], list[int]]] = []
    if cut.op == "slice":
        strides = cut.params["strides"]
        if strides is None or all(int(n) == 1 for n in strides):
            starts, limits = ([int(n) for n in cut.params[f"{x}_indices"]] for x in ("start", "limit"))
            spans.append((starts, limits))
    elif int(cut.params["axis"]) == axis:
        first = 0
        for length in map(int, cut.params["sizes"]):
            spans.append(([0] * len(shape), list(shape)))
            spans[-1][0][axis], spans[-1][1][axis] = first, first + length
            first += length
    found: list[tuple[int | None, tuple[int, ...], tuple[int, ...]]] = []
    for start, limit in spans or [([], [])]:
        part = None
        for at, (offset, length) in enumerate(zip(joined.offsets, joined.lengths, strict=True)):
            if start and offset <= start[axis] and limit[axis] <= offset + length:
                part = at
                start[axis], limit[axis] = start[axis] - offset, limit[axis] - offset
                break
        found.append((part, tuple(start), tuple(limit)))
    return found


class _Writer:
    """Writes every array that has the joined axis as its parts."""

    def __init__(self, node: Node, joined: Joined) -> None:
        self.joined = joined
        self.parts: dict[Value, tuple[Value, ...]] = {node.result: tuple(node.operands)}
        self.beside: dict[tuple[Value, int], tuple[Value, ...]] = {}

    def of(self, value: Value, axis: int, before: Node, depth: int = 0) -> tuple[Value, ...]:
        """The parts of a value along an axis; where it is the same along it, the value itself."""
        if value.ndim == 0 or value.shape[axis] == 1:
            return (value,) * len(self.joined.lengths)
        if value in self.parts:
            return self.parts[value]
        if (value, axis) not in self.beside:
            self.beside[value, axis] = self.made(value, axis, before, depth)
        return self.beside[value, axis]

    def made(self, value: Value, axis: int, before: Node, depth: int) -> tuple[Value, ...]:
        """The parts of a value that does not depend on the joined array."""
        node = value.node
        if node is not None and node.op in ELEMENTWISE and len(node.results) == 1 and depth < _DEEPEST:
            return self.applied(node, axis, before, depth + 1)
        return tuple(self.cut(value, axis, at, before) for at in range(len(self.joined.lengths)))

    def applied(self, node: Node, axis: int, before: Node, depth: int = 0) -> tuple[Value, ...]:
        """An operation on the parts of its operands; `axis` is that of its result."""
        every = []
        for position, value in enumerate(node.operands):
            along = self.joined.axes.get(value)
            if along is None and node.op in ELEMENTWISE and value.ndim == node.result.ndim:
                along = axis
            if along is None or (position and node.op not in ELEMENTWISE):
                every.append((value,) * len(self.joined.lengths))
            else:
                every.append(self.of(value, along, before, depth))
        found = []
        for length, operands in zip(self.joined.lengths, zip(*every, strict=True), strict=True):
            params = dict(node.params)
            for name in {"shape", "new_sizes"} & set(params):
                params[name] = _with(node.result.shape, axis, length)
            made = rewrite(_bound, *operands, primitive=node.primitive, params=tuple(sorted(params.items())))
            found.append(write_before(made, before, RULE)[0])
        return tuple(found)

    def cut(self, value: Value, axis: int, at: int, before: Node) -> Value:
        """One part of a value."""
        offset, length = self.joined.offsets[at], self.joined.lengths[at]
        node, shape = value.node, _with(value.shape, axis, length)
        made = rewrite(_sliced, value, axis=axis, start=offset, length=length)
        if node is not None and node.op == "broadcast_in_dim" and is_row(value, axis):
            places = tuple(int(d) for d in node.params["broadcast_dimensions"])
            made = rewrite(_repeated, *node.operands, shape=shape, places=places)
        elif node is not None and node.op == "pad":
            inside = _fits(node, axis, offset, length)
            if inside:
                return node.operands[0]
            if inside is not None:
                made = rewrite(_repeated, node.operands[1], shape=shape, places=())
        return write_before(made, before, RULE)[0]

    def end(self, node: Node) -> None:
        """Write what reads the joined axis away."""
        value = node.operands[0]
        axis = self.joined.axes[value]
        parts = self.parts[value]
        results = []
        if node.op in _REDUCTIONS:
            axes = tuple(int(a) for a in node.params["axes"])
            results = write_before(rewrite(_reduced, *parts, op=node.op, axes=axes), node, RULE)
        else:
            for at, starts, limits in _cuts(node, axis, self.joined):
                assert at is not None
                results += write_before(rewrite(_cut, parts[at], starts=starts, limits=limits), node, RULE)
        for old, new in zip(node.results, results, strict=True):
            old.replace_uses(new)
        erase_dead(node)


def _write(node: Node, joined: Joined) -> None:
    graph, writer = node.graph, _Writer(node, joined)
    assert graph is not None
    inner, ends = set(joined.nodes), set(joined.ends)
    for current in list(graph):
        if current in inner:
            axis = joined.axes[current.result]
            writer.parts[current.result] = writer.applied(current, axis, current)
        elif current in ends:
            writer.end(current)
    for current in reversed((node, *joined.nodes)):
        if current.alive:
            erase_dead(current)


def _with(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return tuple(length if d == axis else n for d, n in enumerate(shape))


def _bound(*operands: Any, primitive: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    return primitive.bind(*operands, **primitive.get_bind_params(dict(params)))


def _fits(pad: Node, axis: int, offset: int, length: int) -> bool | None:
    """Whether a part of a padded array is what was padded; None where it is not padding alone either."""
    config = [tuple(int(n) for n in line) for line in pad.params["padding_config"]]
    if any(line != (0, 0, 0) for d, line in enumerate(config) if d != axis) or config[axis][2]:
        return None
    first = config[axis][0]
    end = first + pad.operands[0].shape[axis]
    if (offset, offset + length) == (first, end):
        return True
    return False if offset + length <= first or end <= offset else None


def _repeated(x: Any, *, shape: tuple[int, ...], places: tuple[int, ...]) -> Any:
    return lax.broadcast_in_dim(x, shape, places)


def _sliced(x: Any, *, axis: int, start: int, length: int) -> Any:
    return lax.slice_in_dim(x, start, start + length, axis=axis)


def _cut(x: Any, *, starts: tuple[int, ...], limits: tuple[int, ...]) -> Any:
    return lax.slice(x, starts, limits)


def _reduced(*parts: Any, op: str, axes: tuple[int, ...]) -> Any:
    if op == "reduce_max":
        return functools.reduce(lax.max, [lax.reduce_max(x, axes) for x in parts])
    return functools.reduce(lax.add, [lax.reduce_sum(x, axes) for x in parts])
