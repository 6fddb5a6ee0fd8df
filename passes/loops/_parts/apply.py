"""Carries that were solved become scanned inputs: the loop no longer hands them on."""

from __future__ import annotations

import math
from typing import Any

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._counted.places import step_of
from lepton_jax.passes.loops._parts.piece import cut
from lepton_jax.passes.loops._parts.plan import Step, is_tame
from lepton_jax.passes.loops._parts.scan import (
    Scan,
    add_scanned,
    drop_carry,
    drop_unread,
    replace_stacked,
    write_batched,
)
from lepton_jax.passes.loops._recurrence import solve
from lepton_jax.passes.loops._recurrence.interpret import coefficients
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write_before

RULES = {
    "counter": "counted-iterations",
    "shift": "shifted-carry",
    "affine": "linear-recurrence",
    "clamped": "clamped-recurrence",
    "matrix": "matrix-recurrence",
}
"""What the change is called, by the kind of step."""


def solve_carry(node: Node, step: Step) -> None:
    """Compute a carry for all iterations before the loop, and let the loop scan over it."""
    after, before, last = _SOLVERS[step.kind](node, step)
    scan = Scan(node)
    position = scan.carries.index(step.carry)
    node.results[position].replace_uses(last)
    replace_stacked(node, step.next, after)
    if _is_read(Scan(node), step, position):
        step.next.replace_uses(add_scanned(node, after, step.next))
    if step.carry.uses:
        step.carry.replace_uses(add_scanned(node, before, step.carry))
    drop_carry(node, position)
    drop_unread(node)
    for value in (after, before, last):
        if value.node is not None and value.node.alive:
            erase_dead(value.node)


def _is_read(scan: Scan, step: Step, position: int) -> bool:
    """Whether the body reads what it returns for the carry."""
    return step.next.node is not None and any(use != (scan.body.ret, position) for use in step.next.uses)


Solved = tuple[Value, Value, Value]


def _init(node: Node, step: Step) -> Value:
    scan = Scan(node)
    return scan.init[scan.carries.index(step.carry)]


def _counter(node: Node, step: Step) -> Solved:
    scan = Scan(node)
    by, reverse = step_of(step.carry, step.next), node.params["reverse"]
    made = rewrite(solve.count, _init(node, step), length=scan.length, by=by, reverse=reverse)
    a, b, c = write_before(made, node, RULES["counter"])
    return a, b, c


def _shift(node: Node, step: Step) -> Solved:
    scan = Scan(node)
    rule = RULES["shift"]
    known = scan.result_of(step.next) if step.next in scan.scanned else None
    if known is None:
        piece, leaves = cut(scan.body, [step.next])
        (known,) = write_batched(scan, piece, leaves, rule)
    made = rewrite(solve.history, known, _init(node, step), reverse=node.params["reverse"])
    a, b, c = write_before(made, node, rule)
    return a, b, c


def _recurrence(node: Node, step: Step) -> Solved:
    scan = Scan(node)
    rule = RULES[step.kind]
    piece, leaves = cut(scan.body, [step.next])
    values, mapped = scan.fed([leaf for leaf in leaves if leaf is not step.carry])
    made = rewrite(
        coefficients,
        *values,
        piece=piece,
        mapped=mapped,
        length=scan.length,
        carry=leaves.index(step.carry),
        form=step.kind,
    )
    parts = write_before(made, node, rule)
    init, reverse = _init(node, step), node.params["reverse"]
    solution = _solution(step.kind, init, parts, scan.length, reverse)
    a, b, c = write_before(solution, node, rule)
    for part in parts:
        if part.node is not None and part.node.alive:
            erase_dead(part.node)
    return a, b, c


def _solution(kind: str, init: Value, parts: list[Value], length: int, reverse: bool) -> Rewrite:
    """The cheapest way to compose steps with these coefficients."""
    if kind == "clamped":
        shift, low, high = parts
        has_low, has_high = not _is_splat(low, -math.inf), not _is_splat(high, math.inf)
        if _is_splat(shift, 0) and has_low != has_high:
            op, bound = ("max", low) if has_low else ("min", high)
            return rewrite(solve.accumulate, init, bound, op=op, reverse=reverse)
        bounds = [low] * has_low + [high] * has_high
        return rewrite(solve.clamped, init, shift, *bounds, low=has_low, high=has_high, reverse=reverse)
    factor, addend = parts
    if kind == "affine" and _is_splat(factor, 1):
        return rewrite(solve.accumulate, init, addend, op="add", reverse=reverse)
    from_zero = _is_splat(init, 0)
    if kind == "matrix":
        return rewrite(solve.matrix, init, factor, addend, reverse=reverse, from_zero=from_zero)
    safe = is_tame(factor, length)
    return rewrite(solve.affine, init, factor, addend, reverse=reverse, safe=safe, from_zero=from_zero)


def _is_splat(value: Value, wanted: float) -> bool:
    known = facts_of(value).splat
    return known is not None and bool(known == wanted)


_SOLVERS: dict[str, Any] = {
    "counter": _counter,
    "shift": _shift,
    "affine": _recurrence,
    "clamped": _recurrence,
    "matrix": _recurrence,
}
