"""Recurrences of several numbers: h ← M_t h + b_t in each lane, by a parallel scan over the matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.loops._parts.piece import Piece
from lepton_jax.passes.loops._recurrence.lanes import Axes
from lepton_jax.passes.loops._recurrence.linear import Layout
from lepton_jax.passes.loops._recurrence.solve import Carry, history, stepwise

Shapes = tuple[tuple[int, ...], ...]

_FEW: Final = 8
"""Products of matrices up to this size are elementwise products and sums, which fuse."""


def pack(carries: Sequence[Any], lanes: tuple[Axes, ...]) -> Any:
    """The carries as one array (states, *lanes)."""
    columns = [
        jnp.moveaxis(jnp.asarray(c), axes, range(-len(axes), 0)).reshape(-1, *(c.shape[a] for a in axes))
        for c, axes in zip(carries, lanes, strict=True)
    ]
    return lax.concatenate(columns, 0) if len(columns) > 1 else columns[0]


def unpack(packed: Any, lanes: tuple[Axes, ...], shapes: Shapes) -> list[Any]:
    """The carries that an array (states, *lanes) holds."""
    found: list[Any] = []
    start = 0
    for axes, shape in zip(lanes, shapes, strict=True):
        rest = [n for a, n in enumerate(shape) if a not in axes]
        part = lax.slice_in_dim(packed, start, start + math.prod(rest), axis=0)
        part = part.reshape(*rest, *packed.shape[1:])
        found.append(jnp.moveaxis(part, range(-len(axes), 0), axes))
        start += math.prod(rest)
    return found


def joint_coefficients(
    *args: Any,
    piece: Piece,
    mapped: tuple[bool, ...],
    length: int,
    carries: tuple[int, ...],
    layout: Layout,
) -> list[Any]:
    """The matrices (length, states, states, *lanes) and addends (length, states, *lanes) of all iterations.

    The addend is the step at zero, a column of the matrix its derivative in the direction of one state.
    Lanes along which the matrix stays the same have size 1 in it.

    Args:
        args: what the piece takes besides the carries.
        mapped: which of them hold a value for each iteration.
        carries: the positions of the carries among the piece's arguments.
    """
    avals = [piece.graph.inputs[i] for i in carries]
    shapes = tuple(tuple(v.shape) for v in avals)
    sizes = tuple(shapes[0][a] for a in layout.lanes[0])

    def one(*args: Any) -> tuple[Any, Any]:
        def step(packed: Any) -> Any:
            given = dict(zip(carries, unpack(packed, layout.lanes, shapes), strict=True))
            rest = iter(args)
            inputs = [given[i] if i in given else next(rest) for i in range(len(piece.graph.inputs))]
            outputs = [jnp.broadcast_to(y, s) for y, s in zip(piece(*inputs), shapes, strict=True)]
            return pack(outputs, layout.lanes).astype(avals[0].dtype)

        zero = jnp.zeros((layout.states, *sizes), avals[0].dtype)

        def column(direction: Any) -> Any:
            along = lax.broadcast_in_dim(direction, zero.shape, (0,))
            return jax.jvp(step, (zero,), (along,))[1]

        columns = jax.vmap(column, out_axes=1)(jnp.eye(layout.states, dtype=zero.dtype))
        for axis, same in enumerate(layout.uniform):
            columns = lax.slice_in_dim(columns, 0, 1, axis=axis + 2) if same else columns
        return columns, step(zero)

    if not args:
        return [jnp.broadcast_to(x, (length, *x.shape)) for x in one()]
    return list(jax.vmap(one, in_axes=tuple(0 if m else None for m in mapped), axis_size=length)(*args))


def joint(
    *args: Any,
    piece: Piece,
    mapped: tuple[bool, ...],
    length: int,
    carries: tuple[int, ...],
    layout: Layout,
    reverse: bool,
) -> list[Carry]:
    """h ← M h + b.

    Products of matrices lose digits that the loop keeps: where steps rotate or grow, errors of one
    part are carried over to another. So the solution is corrected once by what it leaves over. Where
    the correction is not small, or something is not finite, the loop runs step by step.

    Args:
        args: the initial carries, matrices and addends, and what the piece takes besides the carries.
        piece: the step as it was written.
        mapped: which of the piece's other arguments hold a value for each iteration.
    """
    count = len(carries)
    init, (m, b), rest = args[:count], args[count : count + 2], args[count + 2 :]
    shapes = tuple(tuple(h.shape) for h in init)
    wide = jnp.promote_types(b.dtype, jnp.float32)
    m, b, start = m.astype(wide), b.astype(wide), pack(init, layout.lanes).astype(wide)
    rough = _scan(m, b, start, reverse)
    before = _shifted(rough, start, reverse)
    correction = _scan(m, _times(m, before) + b - rough, jnp.zeros_like(start), reverse)
    corrected = (rough + correction).astype(init[0].dtype)
    allowed = 4 * math.sqrt(float(jnp.finfo(wide).eps)) * jnp.max(jnp.abs(rough), 0)
    small = jnp.all(jnp.abs(correction) <= allowed)
    fine = lax.bitwise_and(jnp.all(jnp.isfinite(corrected)), small)
    whole = lax.cond(
        fine,
        lambda: jax.vmap(lambda h: unpack(h, layout.lanes, shapes))(corrected),
        lambda: stepwise(
            init, rest, piece=piece, mapped=mapped, carries=carries, length=length, reverse=reverse
        ),
    )
    return [history(h, first, reverse=reverse) for h, first in zip(whole, init, strict=True)]


def _shifted(h: Any, start: Any, reverse: bool) -> Any:
    """The states before every iteration."""
    return lax.concatenate([h[1:], start[None]] if reverse else [start[None], h[:-1]], 0)


def _scan(m: Any, b: Any, start: Any, reverse: bool) -> Any:
    """The states after every iteration."""
    at = slice(-1, None) if reverse else slice(0, 1)
    first = b[at] + _times(m[at], start[None])
    b = lax.concatenate([b[:-1], first] if reverse else [first, b[1:]], 0)

    def then(x: Any, y: Any) -> Any:
        (m1, b1), (m2, b2) = x, y
        return _compose(m2, m1), _times(m2, b1) + b2

    return lax.associative_scan(then, (m, b), reverse=reverse)[1]


def _times(m: Any, h: Any) -> Any:
    """M h in every iteration and lane."""
    if m.shape[1] > _FEW:
        return _einsum("tij...,tj...->ti...", m, h)
    return jnp.sum(m * h[:, None], 2)


def _compose(m2: Any, m1: Any) -> Any:
    """The product of matrices in every iteration and lane."""
    if m1.shape[1] > _FEW:
        return _einsum("tij...,tjk...->tik...", m2, m1)
    return jnp.sum(m2[:, :, :, None] * m1[:, None], 2)


def _einsum(spec: str, x: Any, y: Any) -> Any:
    return jnp.einsum(spec, x, y, precision=lax.Precision.HIGHEST)
