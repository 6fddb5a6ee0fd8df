"""Recurrences of best paths and of sums over all paths, by a parallel scan over matrices of scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.loops._parts.piece import Piece
from lepton_jax.passes.loops._recurrence import semiring
from lepton_jax.passes.loops._recurrence.joint import pack, unpack
from lepton_jax.passes.loops._recurrence.linear import Layout
from lepton_jax.passes.loops._recurrence.paths import follow
from lepton_jax.passes.loops._recurrence.solve import Carry, history


def path_coefficients(
    *args: Any,
    piece: Piece,
    mapped: tuple[bool, ...],
    length: int,
    carries: tuple[int, ...],
    layout: Layout,
    kind: str,
) -> list[Any]:
    """The matrices (length, states, states, *lanes) and addends (length, states, *lanes) of all iterations.

    The addend is the step where no state can be reached, a column of the matrix what one state adds to it.
    Lanes along which the matrix stays the same have size 1 in it.

    Args:
        args: what the piece takes besides the carries.
        mapped: which of them hold a value for each iteration.
        carries: the positions of the carries among the piece's arguments.
        kind: the kind of sum: `max`, `min` or `log`.
    """
    avals = [piece.graph.inputs[i] for i in carries]
    shapes = tuple(tuple(v.shape) for v in avals)
    sizes = tuple(shapes[0][a] for a in layout.lanes[0])
    dtype = avals[0].dtype

    def one(*args: Any) -> tuple[Any, Any]:
        def step(packed: Any, linear: bool) -> Any:
            given = dict(zip(carries, unpack(packed, layout.lanes, shapes), strict=True))
            rest = iter(args)
            inputs = [given[i] if i in given else next(rest) for i in range(len(piece.graph.inputs))]
            found = follow(piece.graph, inputs, carries, kind, linear=linear)
            outputs = [jnp.broadcast_to(y, shape) for y, shape in zip(found, shapes, strict=True)]
            return pack(outputs, layout.lanes).astype(dtype)

        nowhere = semiring.nothing((layout.states, *sizes), dtype, kind)

        def column(here: Any) -> Any:
            at = lax.broadcast_in_dim(here, nowhere.shape, (0,))
            return step(jnp.where(at, jnp.zeros_like(nowhere), nowhere), True)

        columns = jax.vmap(column, out_axes=1)(jnp.eye(layout.states, dtype=bool))
        for axis, same in enumerate(layout.uniform):
            columns = lax.slice_in_dim(columns, 0, 1, axis=axis + 2) if same else columns
        return columns, step(nowhere, False)

    if not args:
        return [jnp.broadcast_to(x, (length, *x.shape)) for x in one()]
    return list(jax.vmap(one, in_axes=tuple(0 if m else None for m in mapped), axis_size=length)(*args))


def along_paths(*args: Any, layout: Layout, reverse: bool, kind: str) -> list[Carry]:
    """h_i ← Σ_j (M_ij + h_j) + b_i, with the sum of the kind.

    Args:
        args: the initial carries, matrices and addends.
    """
    *init, m, b = args
    shapes = tuple(tuple(h.shape) for h in init)
    dtype = init[0].dtype
    wide = jnp.promote_types(b.dtype, jnp.float32)
    m, b, start = m.astype(wide), b.astype(wide), pack(init, layout.lanes).astype(wide)

    def applied(m: Any, h: Any) -> Any:
        """M h in every iteration and lane."""
        return semiring.total(m + h[:, None], (2,), kind)

    def then(x: Any, y: Any) -> Any:
        (m1, b1), (m2, b2) = x, y
        both = semiring.total(m2[:, :, :, None] + m1[:, None], (2,), kind)
        return both, semiring.plus(applied(m2, b1), b2, kind)

    at = slice(-1, None) if reverse else slice(0, 1)
    first = semiring.plus(applied(m[at], start[None]), b[at], kind)
    b = lax.concatenate([b[:-1], first] if reverse else [first, b[1:]], 0)
    whole = lax.associative_scan(then, (m, b), reverse=reverse)[1].astype(dtype)
    found = jax.vmap(lambda h: unpack(h, layout.lanes, shapes))(whole)
    return [history(h, start, reverse=reverse) for h, start in zip(found, init, strict=True)]
