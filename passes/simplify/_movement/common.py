"""What the rules on data movement share: who made a value, when a rule steps aside, small replacements."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Final

import jax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.rewrite import PassContext, node_rule


def made_by(value: Value, node: Node, *ops: str) -> Node | None:
    """The operation that makes `value`, if it is one of `ops` that may be merged with `node`.

    Both must stand in the same equation context (mesh, compute type, metadata) and have known shapes.
    """
    maker = value.node
    if maker is None or maker.op not in ops or maker.context is not node.context:
        return None
    if not all(operand.is_static for operand in maker.operands) or not value.is_static:
        return None
    return maker


def is_free(node: Node) -> bool:
    """Whether an operation that moves data leaves the sharding of its result to JAX."""
    return node.params.get("sharding") is None and node.params.get("out_sharding") is None


def spread_from(value: Value) -> tuple[Value, tuple[int, ...]] | None:
    """The array that a value repeats over further dimensions, and which of its dimensions are the array's.

    None where a dimension of size one is stretched, or the sharding is given.
    """
    node = value.node
    if node is None or node.op != "broadcast_in_dim" or not is_free(node) or len(node.operands) != 1:
        return None
    source, places = node.operands[0], tuple(map(int, node.params["broadcast_dimensions"]))
    return (source, places) if source.shape == tuple(value.shape[d] for d in places) else None


def is_spread_along(value: Value, axis: int) -> bool:
    """Whether a broadcast makes a value the same all along an axis."""
    node = value.node
    if node is None or node.op != "broadcast_in_dim":
        return False
    dims = node.params["broadcast_dimensions"]
    return axis not in dims or bool(node.operands[0].shape[dims.index(axis)] == 1)


def used_once(value: Value) -> bool:
    """Whether one operation reads the value, at one position."""
    return len(value.uses) == 1


def size(shape: tuple[int, ...]) -> int:
    """The number of elements."""
    return math.prod(shape)


def is_plain(value: Value) -> bool:
    """Whether the value knows of no mesh, so that a constant may stand for it."""
    sharding = getattr(value.aval, "sharding", None)
    return sharding is None or bool(sharding.mesh.empty)


def unplaced(node: Node, ctx: PassContext) -> str | None:
    """Rules step aside where arrays carry shardings, or vary over different axes of a mesh.

    There a rewrite, exact in numbers, could move data between devices or give a result of another type.
    """
    wanted = _variation(node.results[0])
    for value in _involved(node):
        if _is_sharded(value):
            return "an array in it carries a sharding"
        if _variation(value) != wanted:
            return "the arrays in it vary over different mesh axes"
    return None


movement_rule: Final = functools.partial(node_rule, guard=unplaced)
"""A node rule that steps aside where arrays carry shardings."""


def _involved(node: Node) -> Iterator[Value]:
    yield from node.results
    for value in node.operands:
        if not value.is_const:
            yield value
        if value.node is not None:
            yield from (operand for operand in value.node.operands if not operand.is_const)


def _is_sharded(value: Value) -> bool:
    if is_plain(value):
        return False
    spec = value.aval.sharding.spec
    return any(axes is not None for axes in spec) or bool(spec.unreduced)


def _variation(value: Value) -> Any:
    """The manual mesh axes that a value varies over."""
    return getattr(value.aval, "manual_axis_type", None)


def bind(*arrays: jax.Array, primitive: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    """The primitive itself, so that parameters that only some versions of JAX know stay as they are."""
    return primitive.bind(*arrays, **dict(params))


def changed(node: Node, **params: Any) -> dict[str, Any]:
    """Arguments of `bind` that run a node's operation with some parameters changed."""
    return {"primitive": node.primitive, "params": tuple({**node.params, **params}.items())}


def itself(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Its arguments: for operations with several results that are there already."""
    return arrays


# Dimensions of size one


def dropped(longer: tuple[int, ...], shorter: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions of size one whose removal makes `shorter` of `longer`; None where it does not."""
    at = 0
    gone = []
    for d, length in enumerate(longer):
        if at < len(shorter) and length == shorter[at]:
            at += 1
        elif length == 1:
            gone.append(d)
        else:
            return None
    return tuple(gone) if at == len(shorter) else None


def without_units(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The dimensions that are not of size one, with their sizes."""
    return [(d, length) for d, length in enumerate(shape) if length != 1]


def place(shape: tuple[int, ...], where: dict[int, int], rank: int) -> tuple[int, ...] | None:
    """Broadcast dimensions for an operand of `shape` whose larger dimensions go to `where`.

    Dimensions of size one take any place that keeps the order.

    Returns:
        Strictly increasing dimensions below `rank`, or None where there are none.
    """
    found: list[int] = []
    for d, length in enumerate(shape):
        least = found[-1] + 1 if found else 0
        place = least if length == 1 else where[d]
        if place < least or place >= rank:
            return None
        found.append(place)
    return tuple(found)
