"""What operations do to lanes: axes of the carries of a loop along which a linear step mixes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import is_spread_along

Axes = tuple[int, ...]


def sizes_along(value: Value, axes: Axes) -> tuple[int, ...]:
    """The sizes of a value along some axes."""
    return tuple(value.shape[a] for a in axes)


@dataclass(slots=True)
class Walk:
    """What is known half way.

    Attributes:
        lanes: the lane axes of each value that depends on the carries.
        uniform: for each lane axis, whether all factors so far are the same along it.
    """

    lanes: dict[Value, Axes]
    uniform: list[bool]

    def moving(self, node: Node) -> list[int]:
        """The operands that depend on the carries."""
        return [i for i, v in enumerate(node.operands) if v in self.lanes]

    def only(self, node: Node, *positions: int) -> Axes | None:
        """The lanes of a node's moving operands, if all are among `positions` and have the same."""
        inside = self.moving(node)
        found = {self.lanes[node.operands[i]] for i in inside}
        return found.pop() if len(found) == 1 and set(inside) <= {*positions} else None

    def fits(self, node: Node, reads: Sequence[Value], lanes: Axes) -> bool:
        """Whether a node that takes some values keeps the sizes of the lanes."""
        sizes = {sizes_along(v, self.lanes[v]) for v in reads if v in self.lanes}
        sizes |= {sizes_along(v, lanes) for v in node.results}
        return len(sizes) == 1

    def multiply(self, factor: Value, lanes: Axes) -> None:
        """Note along which lanes a factor varies that meets values with these lanes."""
        for k, axis in enumerate(lanes):
            self.uniform[k] = self.uniform[k] and _is_uniform(factor, axis)


def _is_uniform(value: Value, axis: int) -> bool:
    """Whether a value is the same all along the axis."""
    return value.ndim == 0 or value.shape[axis] == 1 or is_spread_along(value, axis)


Transfer = Callable[[Node, Walk], Axes | None]


def _every(node: Node, walk: Walk) -> Axes | None:
    """Sums, differences, signs: any operand may move."""
    return walk.only(node, 0, 1)


def _product(node: Node, walk: Walk) -> Axes | None:
    inside = walk.moving(node)
    if len(inside) != 1 or (node.op == "div" and inside != [0]):
        return None
    lanes = walk.lanes[node.operands[inside[0]]]
    walk.multiply(node.operands[1 - inside[0]], lanes)
    return lanes


def _choice(node: Node, walk: Walk) -> Axes | None:
    lanes = walk.only(node, *range(1, len(node.operands)))
    if lanes is not None:
        walk.multiply(node.operands[0], lanes)
    return lanes


def _broadcast(node: Node, walk: Walk) -> Axes | None:
    lanes = walk.only(node, 0)
    return None if lanes is None else tuple(node.params["broadcast_dimensions"][a] for a in lanes)


def without(lanes: Axes | None, gone: Sequence[int]) -> Axes | None:
    """Where lanes are when axes are gone that must not be lanes."""
    if lanes is None or set(lanes) & set(gone):
        return None
    return tuple(a - sum(1 for d in gone if d < a) for a in lanes)


def _squeeze(node: Node, walk: Walk) -> Axes | None:
    rank = node.operands[0].ndim
    return without(walk.only(node, 0), [d % rank for d in node.params["dimensions"]])


def _reduce(node: Node, walk: Walk) -> Axes | None:
    return without(walk.only(node, 0), node.params["axes"])


def _reshape(node: Node, walk: Walk) -> Axes | None:
    lanes = walk.only(node, 0)
    if lanes is None or node.params.get("dimensions") is not None:
        return None
    before, after = node.operands[0].shape, node.result.shape
    front = _common(before, after)
    back = min(_common(before[::-1], after[::-1]), len(before) - front, len(after) - front)
    shift = len(after) - len(before)
    if not all(a < front or a >= len(before) - back for a in lanes):
        return None
    return tuple(a if a < front else a + shift for a in lanes)


def _common(x: Sequence[int], y: Sequence[int]) -> int:
    """How many sizes two shapes have in common at the front."""
    return next((i for i, (n, m) in enumerate(zip(x, y, strict=False)) if n != m), min(len(x), len(y)))


def _transpose(node: Node, walk: Walk) -> Axes | None:
    lanes = walk.only(node, 0)
    order = tuple(node.params["permutation"])
    return None if lanes is None else tuple(order.index(a) for a in lanes)


def _part(node: Node, walk: Walk) -> Axes | None:
    """Slices: what they do along lanes, `fits` finds out."""
    return walk.only(node, 0)


def _update(node: Node, walk: Walk) -> Axes | None:
    lanes = walk.only(node, 0, 1)
    if lanes is not None and sizes_along(node.operands[1], lanes) != sizes_along(node.operands[0], lanes):
        walk.uniform[:] = [False] * len(lanes)
    return lanes


def _concatenate(node: Node, walk: Walk) -> Axes | None:
    lanes = walk.only(node, *range(len(node.operands)))
    return _without_moving(lanes, [node.params["dimension"]])


def _stack(node: Node, walk: Walk) -> Axes | None:
    lanes = walk.only(node, *range(len(node.operands)))
    axis = node.params["axis"] % node.result.ndim
    return None if lanes is None else tuple(a + (a >= axis) for a in lanes)


def _split(node: Node, walk: Walk) -> Axes | None:
    return _without_moving(walk.only(node, 0), [node.params["axis"]])


def _rev(node: Node, walk: Walk) -> Axes | None:
    return _without_moving(walk.only(node, 0), node.params["dimensions"])


def _cumsum(node: Node, walk: Walk) -> Axes | None:
    return _without_moving(walk.only(node, 0), [node.params["axis"]])


def _pad(node: Node, walk: Walk) -> Axes | None:
    touched = [d for d, config in enumerate(node.params["padding_config"]) if tuple(config) != (0, 0, 0)]
    return _without_moving(walk.only(node, 0), touched)


def _without_moving(lanes: Axes | None, mixed: Sequence[int]) -> Axes | None:
    """The lanes, unless an operation mixes along one of them."""
    return None if lanes is None or {*lanes} & {*mixed} else lanes


def _scatter(node: Node, walk: Walk) -> Axes | None:
    """One update at a known place: linear in what is updated and in the update."""
    out, index, update = node.operands
    numbers = node.params["dimension_numbers"]
    inserted = tuple(numbers.inserted_window_dims)
    if math.prod(index.shape[:-1]) != 1 or index in walk.lanes or numbers.operand_batching_dims:
        return None
    if update.ndim != out.ndim - len(inserted) or len(numbers.update_window_dims) != update.ndim:
        return None
    lanes = walk.lanes.get(out)
    if update in walk.lanes:
        kept = [d for d in range(out.ndim) if d not in inserted]
        placed = tuple(kept[a] for a in walk.lanes[update])
        lanes = placed if lanes in (None, placed) else None
    window = {d for d in range(out.ndim) if d not in inserted}
    if update.shape != tuple(out.shape[d] for d in sorted(window)):
        return None
    return _without_moving(lanes, tuple(numbers.scatter_dims_to_operand_dims))


def _dot(node: Node, walk: Walk) -> Axes | None:
    inside = walk.moving(node)
    if len(inside) != 1 or node.params.get("out_sharding") is not None:
        return None
    (side,) = inside
    contracting, batch = node.params["dimension_numbers"]
    value = node.operands[side]
    free = [d for d in range(value.ndim) if d not in contracting[side] and d not in batch[side]]
    other = node.operands[1 - side].ndim - len(contracting[1 - side]) - len(batch[1 - side])
    skipped = len(batch[side]) + (other if side == 1 else 0)
    places: list[int] = []
    for k, axis in enumerate(walk.lanes[value]):
        if axis in contracting[side]:
            return None
        if axis in batch[side]:
            walk.uniform[k] = False
            places.append(list(batch[side]).index(axis))
        else:
            places.append(skipped + free.index(axis))
    return tuple(places)


TRANSFERS: Final[dict[str, Transfer]] = {
    "copy": _every,
    "convert_element_type": _every,
    "neg": _every,
    "add": _every,
    "add_any": _every,
    "sub": _every,
    "mul": _product,
    "div": _product,
    "select_n": _choice,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reduce_sum": _reduce,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _part,
    "dynamic_slice": _part,
    "dynamic_update_slice": _update,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "rev": _rev,
    "cumsum": _cumsum,
    "pad": _pad,
    "scatter": _scatter,
    "dot_general": _dot,
}
"""Where the lanes of a node's results are, or None where it mixes lanes or is not linear."""
