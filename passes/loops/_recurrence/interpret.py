"""The coefficients of a step: its graph run on functions of the carry instead of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.export import bind
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.loops._parts.piece import Piece
from lepton_jax.passes.loops._recurrence.bounds import shifted

Parts = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A function of the carry h, by its coefficients.

    Attributes:
        parts: what is held (`held`), factor and addend (`affine`), shift, lower and upper bound (`clamped`),
            or factor, addend and both bounds (`damped`), all of the carry's shape.
        forgets: where something else was put in the place of the carry.
    """

    parts: Parts
    forgets: Any = np.False_


def coefficients(
    *args: Any, piece: Piece, mapped: tuple[bool, ...], length: int, carry: int, form: str
) -> list[Any]:
    """The coefficients of the steps of all iterations, stacked, and where they forget the carry.

    Args:
        args: what the piece takes besides the carry.
        mapped: which of them hold a value for each iteration.
        carry: the position of the carry among the piece's arguments.
        form: one of `held`, `affine`, `clamped` and `damped`.
    """
    value = piece.graph.inputs[carry]
    start = Step(_START[form](np.dtype(value.dtype)))

    def one(*args: Any) -> Parts:
        step = interpret(piece.graph, [*args[:carry], start, *args[carry:]], form)
        parts = [jnp.broadcast_to(jnp.asarray(x, value.dtype), value.shape) for x in step.parts]
        return *parts, jnp.broadcast_to(step.forgets, value.shape)

    axes = tuple(0 if each else None for each in mapped)
    if not args:
        return [jnp.broadcast_to(x, (length, *x.shape)) for x in one()]
    return list(jax.vmap(one, in_axes=axes, axis_size=length)(*args))


def both_bits(*args: Any, piece: Piece, mapped: tuple[bool, ...], length: int, carry: int) -> list[Any]:
    """What the steps of all iterations make of bits that are not set, and of those that are, stacked.

    Args:
        args: what the piece takes besides the carry; for the rest see `coefficients`.
    """
    value = piece.graph.inputs[carry]
    zero = jnp.zeros(value.shape, value.dtype)

    def one(*args: Any) -> list[Any]:
        return [piece(*args[:carry], h, *args[carry:])[0] for h in (zero, ~zero)]

    if not args:
        return [jnp.broadcast_to(x, (length, *value.shape)) for x in one()]
    return list(jax.vmap(one, in_axes=tuple(0 if m else None for m in mapped), axis_size=length)(*args))


def interpret(graph: Graph, args: Sequence[Any], form: str) -> Step:
    """The only output of a graph as a function of the argument that is a `Step`."""
    env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))

    def read(value: Value) -> Any:
        if not value.is_const:
            return env[value]
        known = _jax.plain_constant(value.const) if value.ndim == 0 else None
        return value.const if known is None else known.astype(value.dtype)

    with _jax.Placement() as placement:
        for node in graph:
            operands = [read(value) for value in node.operands]
            with placement.at(node.source, node.context):
                results: Sequence[Any] = (
                    [Step(_TRANSFERS[form](node, operands), _forgets(node, operands))]
                    if any(isinstance(x, Step) for x in operands)
                    else bind(node, operands)
                )
            env.update(zip(node.results, results, strict=True))
    found = read(graph.outputs[0])
    assert isinstance(found, Step)
    return found


def _forgets(node: Node, operands: list[Any]) -> Any:
    """Where the result of a node does not depend on the carry any more, because something else was chosen."""
    if node.op == "select_n":
        known = [x.forgets if isinstance(x, Step) else np.True_ for x in operands[1:]]
        if not any(isinstance(x, jax.Array) for x in known) and len({bool(x) for x in known}) == 1:
            return known[0]
        shape = node.result.shape
        return lax.select_n(operands[0], *(jnp.broadcast_to(x, shape) for x in known))
    found = [x.forgets for x in operands if isinstance(x, Step)]
    return found[0] if len(found) == 1 else jnp.logical_and(*found)


def _start_held(dtype: Any) -> Parts:
    return (np.zeros((), dtype),)


def _start_affine(dtype: Any) -> Parts:
    return np.ones((), dtype), np.zeros((), dtype)


def _start_clamped(dtype: Any) -> Parts:
    return np.zeros((), dtype), np.asarray(-np.inf, dtype), np.asarray(np.inf, dtype)


def _start_damped(dtype: Any) -> Parts:
    return np.ones((), dtype), *_start_clamped(dtype)


def _is_known(x: Any, number: float) -> bool:
    return isinstance(x, np.ndarray | np.generic) and x.ndim == 0 and bool(x == number)


def _plus(x: Any, y: Any) -> Any:
    return y if _is_known(x, 0) else x if _is_known(y, 0) else x + y


def _times(x: Any, y: Any) -> Any:
    """A product; known zeros and ones are not computed."""
    if _is_known(x, 0) or _is_known(y, 1):
        return x
    return y if _is_known(x, 1) else x * y


def _minus(x: Any, y: Any) -> Any:
    return x if _is_known(y, 0) else -y if _is_known(x, 0) else x - y


def _split(operands: list[Any]) -> tuple[Parts, Any]:
    """The coefficients of the one operand that moves, and the other operand."""
    left, right = operands
    return (left.parts, right) if isinstance(left, Step) else (right.parts, left)


def _linear(node: Node, operands: list[Any]) -> Parts:
    """Moves, negation, sums and differences."""
    if node.op in ("copy", "convert_element_type"):
        return tuple(operands[0].parts)
    if node.op == "neg":
        return tuple(-part for part in operands[0].parts)
    left, right = operands
    if isinstance(left, Step) and isinstance(right, Step):
        pairs = zip(left.parts, right.parts, strict=True)
        return tuple(_minus(x, y) if node.op == "sub" else _plus(x, y) for x, y in pairs)
    (a, b), other = _split(operands)
    if node.op != "sub":
        return a, _plus(b, other)
    return (a, _minus(b, other)) if isinstance(left, Step) else (-a, _minus(other, b))


def _affine(node: Node, operands: list[Any]) -> Parts:
    """a·h + b under one operation."""
    if node.op == "select_n":
        return _selected(node, operands, (0, None))
    if node.op == "div":
        a, b = operands[0].parts
        return a / operands[1], b if _is_known(b, 0) else b / operands[1]
    if node.op == "mul":
        (a, b), other = _split(operands)
        return _times(a, other), _times(b, other)
    return _linear(node, operands)


def _clamped(node: Node, operands: list[Any]) -> Parts:
    """min(max(h + a, low), high) under one operation."""
    if node.op == "select_n":
        return _selected(node, operands, (0, None, None))
    if node.op in ("copy", "convert_element_type"):
        return tuple(operands[0].parts)
    if node.op == "clamp":
        least, step, most = operands
        a, *bounds = step.parts
        return a, *(_least(_most(bound, least), most) for bound in bounds)
    (a, *bounds), other = _split(operands)
    if node.op in ("max", "min"):
        join = _most if node.op == "max" else _least
        return a, *(join(bound, other) for bound in bounds)
    by = -other if node.op == "sub" else other
    return _plus(a, by), *(bound if _is_infinite(bound) else shifted(bound, by) for bound in bounds)


def _held(node: Node, operands: list[Any]) -> Parts:
    """The carry, or something else."""
    return tuple(operands[0].parts) if node.op == "copy" else _selected(node, operands, (None,))


def _damped(node: Node, operands: list[Any]) -> Parts:
    """min(max(a·h + b, low), high) under one operation."""
    if node.op == "select_n":
        return _selected(node, operands, (0, None, None, None))
    if node.op not in ("mul", "div"):
        a = next(x.parts[0] for x in operands if isinstance(x, Step))
        return a, *_clamped(node, [Step(x.parts[1:]) if isinstance(x, Step) else x for x in operands])
    (a, b, *bounds), by = _split(operands)
    times = _times if node.op == "mul" else _over
    scaled = [x if _is_infinite(x) else jnp.where(jnp.isinf(x), x, times(x, by)) for x in bounds]
    return times(a, by), times(b, by), *scaled


def _over(x: Any, y: Any) -> Any:
    return x if _is_known(x, 0) else x / y


def _is_infinite(x: Any) -> bool:
    return _is_known(x, math.inf) or _is_known(x, -math.inf)


def _most(x: Any, y: Any) -> Any:
    """The larger of two, where infinities that are known are not computed with."""
    return y if _is_known(x, -math.inf) else x if _is_known(x, math.inf) else jnp.maximum(x, y)


def _least(x: Any, y: Any) -> Any:
    """The smaller of two, likewise."""
    return y if _is_known(x, math.inf) else x if _is_known(x, -math.inf) else jnp.minimum(x, y)


def _selected(node: Node, operands: list[Any], still: Parts) -> Parts:
    """One of several steps; a case that does not move is the constant function.

    Args:
        still: the coefficients of a constant function, None in place of the constant.
    """
    which, *cases = operands
    value = node.results[0]

    def chosen(parts: Parts) -> Any:
        if all(isinstance(x, np.ndarray | np.generic) and _is_known(x, parts[0]) for x in parts):
            return parts[0]
        filled = [jnp.broadcast_to(jnp.asarray(x, value.dtype), value.shape) for x in parts]
        return lax.select_n(which, *filled)

    steps = [
        case.parts if isinstance(case, Step) else tuple(case if p is None else np.asarray(p) for p in still)
        for case in cases
    ]
    return tuple(map(chosen, zip(*steps, strict=True)))


Transfer = Callable[[Node, list[Any]], Parts]

_START: Final = {
    "held": _start_held,
    "affine": _start_affine,
    "clamped": _start_clamped,
    "damped": _start_damped,
}
_TRANSFERS: Final[dict[str, Transfer]] = {
    "held": _held,
    "affine": _affine,
    "clamped": _clamped,
    "damped": _damped,
}
