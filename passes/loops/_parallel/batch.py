"""The loop that is left when nothing but sums is handed on: all iterations at once, or in chunks."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.loops._parts.piece import Piece, batched, cut
from lepton_jax.passes.loops._parts.plan import Step
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.loops._recurrence.solve import reduced
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import write


def run_at_once(node: Node, steps: list[Step], chunk: int, rule: str) -> None:
    """Replace a scan whose carries are all reductions.

    Args:
        steps: its carries.
        chunk: how many iterations may run at once.
    """
    scan = Scan(node)
    terms = {step.carry: step for step in steps}
    order = [terms[carry] for carry in scan.carries]
    outputs = [step.term for step in order if step.term is not None]
    piece, leaves = cut(scan.body, [*outputs, *scan.stacked])
    values, mapped = scan.fed(leaves)
    made = rewrite(
        at_once,
        *scan.init,
        *values,
        piece=piece,
        mapped=mapped,
        length=scan.length,
        chunk=chunk,
        ops=tuple(step.op for step in order),
    )
    write(made, node, rule)
    erase_dead(node)


def at_once(
    *args: Any, piece: Piece, mapped: tuple[bool, ...], length: int, chunk: int, ops: tuple[str, ...]
) -> list[Any]:
    """Reductions of the first outputs of a piece over all iterations, and its other outputs stacked.

    Args:
        args: initial values of the reductions, then what the piece takes.
        mapped: which of the latter hold a value for each iteration.
        chunk: how many iterations run at once.
        ops: the reductions.
    """
    init, rest = list(args[: len(ops)]), list(args[len(ops) :])

    def some(state: list[Any], values: list[Any], count: int) -> tuple[list[Any], list[Any]]:
        if values:
            outputs = batched(*values, piece=piece, mapped=mapped, length=count)
        else:
            outputs = [lax.broadcast(x, (count,)) for x in piece()]
        terms, ys = outputs[: len(ops)], outputs[len(ops) :]
        return [reduced(s, t, op) for s, t, op in zip(state, terms, ops, strict=True)], ys

    if chunk >= length:
        state, ys = some(init, rest, length)
        return [*state, *ys]
    whole = length // chunk * chunk

    def part(x: Any, first: int, last: int) -> Any:
        return lax.slice_in_dim(x, first, last, axis=0)

    def step(state: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        moving = iter(xs)
        values = [next(moving) if m else v for m, v in zip(mapped, rest, strict=True)]
        return some(state, values, chunk)

    cut_up = [
        part(x, 0, whole).reshape(whole // chunk, chunk, *x.shape[1:])
        for m, x in zip(mapped, rest, strict=True)
        if m
    ]
    state, ys = lax.scan(step, init, cut_up, length=whole // chunk)
    ys = [y.reshape(whole, *y.shape[2:]) for y in ys]
    if whole < length:
        last = [part(x, whole, length) if m else x for m, x in zip(mapped, rest, strict=True)]
        state, more = some(state, last, length - whole)
        ys = [jax.numpy.concatenate(pair) for pair in zip(ys, more, strict=True)]
    return [*state, *ys]
