"""Carries that were solved become scanned inputs: the loop no longer hands them on."""

from __future__ import annotations

import math
from typing import Any

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._counted.places import step_of
from lepton_jax.passes.loops._parts.compared import is_compared
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
from lepton_jax.passes.loops._recurrence import affine, bounds, choices, solve
from lepton_jax.passes.loops._recurrence.interpret import both_bits, coefficients
from lepton_jax.passes.loops._recurrence.joint import joint, joint_coefficients
from lepton_jax.passes.loops._recurrence.trellis import along_paths, path_coefficients
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write_before

RULES = {
    "counter": "counted-iterations",
    "shift": "shifted-carry",
    "affine": "linear-recurrence",
    "clamped": "clamped-recurrence",
    "damped": "clamped-recurrence",
    "held": "held-carry",
    "bits": "bit-recurrence",
    "picked": "best-so-far",
}
"""What the change is called, by the kind of step."""


def rule_of(step: Step) -> str:
    """What solving a step is called."""
    if step.kind == "paths":
        return "log-sum-recurrence" if step.op == "log" else "best-path-recurrence"
    if step.kind == "joint":
        return "coupled-recurrence" if step.others else "matrix-recurrence"
    return RULES[step.kind]


def solve_carry(node: Node, step: Step) -> None:
    """Compute the carries of a step for all iterations before the loop, and let the loop scan over them."""
    solved = _SOLVERS[step.kind](node, step)
    scan = Scan(node)
    places = [scan.carries.index(carry) for carry, _ in step.pairs]
    for place, (_, _, last) in zip(places, solved, strict=True):
        node.results[place].replace_uses(last)
    for (_, new), (after, _, _) in zip(step.pairs, solved, strict=True):
        replace_stacked(node, new, after)
    for place, (_, new), (after, _, _) in zip(places, step.pairs, solved, strict=True):
        scan = Scan(node)
        if _is_read(scan, new, place) and not is_compared(scan, new):
            new.replace_uses(add_scanned(node, after, new))
    for (carry, _), (_, before, _) in zip(step.pairs, solved, strict=True):
        if carry.uses:
            carry.replace_uses(add_scanned(node, before, carry))
    for place in sorted(places, reverse=True):
        drop_carry(node, place)
    drop_unread(node)
    for value in dict.fromkeys(value for each in solved for value in each):
        if value.node is not None and value.node.alive:
            erase_dead(value.node)


def _is_read(scan: Scan, new: Value, position: int) -> bool:
    """Whether the body reads what it returns for a carry."""
    return new.node is not None and any(use != (scan.body.ret, position) for use in new.uses)


Solved = tuple[Value, Value, Value]


def _init(node: Node, step: Step) -> Value:
    scan = Scan(node)
    return scan.init[scan.carries.index(step.carry)]


def _counter(node: Node, step: Step) -> list[Solved]:
    scan = Scan(node)
    by, reverse = step_of(step.carry, step.next), node.params["reverse"]
    made = rewrite(solve.count, _init(node, step), length=scan.length, by=by, reverse=reverse)
    return _triples(write_before(made, node, RULES["counter"]))


def _shift(node: Node, step: Step) -> list[Solved]:
    scan = Scan(node)
    rule = RULES["shift"]
    known = scan.result_of(step.next) if step.next in scan.scanned else None
    if known is None:
        piece, leaves = cut(scan.body, [step.next])
        (known,) = write_batched(scan, piece, leaves, rule)
    made = rewrite(solve.history, known, _init(node, step), reverse=node.params["reverse"])
    return _triples(write_before(made, node, rule))


def _recurrence(node: Node, step: Step) -> list[Solved]:
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
    step_by_step = {"piece": piece, "mapped": mapped, "carry": leaves.index(step.carry)}
    solution = _solution(node, step, parts, values, step_by_step)
    return _finished(write_before(solution, node, rule), parts)


def _solution(
    node: Node, step: Step, parts: list[Value], values: list[Value], step_by_step: dict[str, Any]
) -> Rewrite:
    """The cheapest way to compose steps with these coefficients.

    Args:
        parts: the coefficients.
        values: what the step reads besides the carry.
        step_by_step: what it takes to run the loop as it was.
    """
    init, reverse, length = _init(node, step), node.params["reverse"], node.params["length"]
    *parts, last = parts
    forgets = [] if _is_splat(last, 0) else [last]
    if step.kind == "held":
        return rewrite(choices.held, init, *parts, last, reverse=reverse)
    if step.kind in ("clamped", "damped"):
        *parts, low, high = parts
        has_low, has_high = not _is_splat(low, -math.inf), not _is_splat(high, math.inf)
        if step.kind == "clamped" and _is_splat(parts[0], 0) and has_low != has_high and not forgets:
            op, bound = ("max", low) if has_low else ("min", high)
            return rewrite(solve.accumulate, init, bound, op=op, reverse=reverse)
        rest = [low] * has_low + [high] * has_high + forgets
        solver = bounds.clamped if step.kind == "clamped" else bounds.damped
        return rewrite(solver, init, *parts, *rest, low=has_low, high=has_high, reverse=reverse)
    factor, addend = parts
    if _is_splat(factor, 1) and not forgets:
        return rewrite(solve.accumulate, init, addend, op="add", reverse=reverse)
    from_zero = _is_splat(init, 0)
    if is_tame(factor, length):
        return rewrite(affine.affine, init, factor, addend, *forgets, reverse=reverse, from_zero=from_zero)
    return rewrite(
        affine.affine_or_stepwise,
        init,
        factor,
        addend,
        *forgets,
        *values,
        reverse=reverse,
        from_zero=from_zero,
        forgetful=bool(forgets),
        length=length,
        **step_by_step,
    )


def _picked(node: Node, step: Step) -> list[Solved]:
    """What the carry is compared with, for all iterations, then the best so far."""
    scan, rule = Scan(node), RULES["picked"]
    assert step.term is not None
    known = scan.result_of(step.term) if step.term in scan.scanned else None
    if known is None:
        piece, leaves = cut(scan.body, [step.term])
        (known,) = write_batched(scan, piece, leaves, rule)
    reverse = node.params["reverse"]
    made = rewrite(choices.picked, _init(node, step), known, op=step.op, asks=step.asks, reverse=reverse)
    return _triples(write_before(made, node, rule))


def _bits(node: Node, step: Step) -> list[Solved]:
    """What the steps make of bits that are set, and of those that are not."""
    scan, rule = Scan(node), RULES["bits"]
    piece, leaves = cut(scan.body, [step.next])
    values, mapped = scan.fed([leaf for leaf in leaves if leaf is not step.carry])
    made = rewrite(
        both_bits, *values, piece=piece, mapped=mapped, length=scan.length, carry=leaves.index(step.carry)
    )
    parts = write_before(made, node, rule)
    solution = rewrite(choices.bits, _init(node, step), *parts, reverse=node.params["reverse"])
    return _finished(write_before(solution, node, rule), parts)


def _joint(node: Node, step: Step) -> list[Solved]:
    rule = rule_of(step)
    init, values, static = _coupled(node, step)
    parts = write_before(rewrite(joint_coefficients, *values, **static), node, rule)
    made = rewrite(joint, *init, *parts, *values, reverse=node.params["reverse"], **static)
    return _finished(write_before(made, node, rule), parts)


def _paths(node: Node, step: Step) -> list[Solved]:
    rule = rule_of(step)
    init, values, static = _coupled(node, step)
    parts = write_before(rewrite(path_coefficients, *values, kind=step.op, **static), node, rule)
    solution = rewrite(
        along_paths, *init, *parts, layout=step.layout, reverse=node.params["reverse"], kind=step.op
    )
    return _finished(write_before(solution, node, rule), parts)


def _coupled(node: Node, step: Step) -> tuple[list[Value], list[Value], dict[str, Any]]:
    """Of a step of several carries: their first values, what it reads besides, and how it makes them."""
    scan = Scan(node)
    carries = [carry for carry, _ in step.pairs]
    piece, leaves = cut(scan.body, [new for _, new in step.pairs])
    values, mapped = scan.fed([leaf for leaf in leaves if leaf not in carries])
    static = {
        "piece": piece,
        "mapped": mapped,
        "length": scan.length,
        "carries": tuple(map(leaves.index, carries)),
        "layout": step.layout,
    }
    return [scan.init[scan.carries.index(carry)] for carry in carries], values, static


def _triples(values: list[Value]) -> list[Solved]:
    return list(zip(values[::3], values[1::3], values[2::3], strict=True))


def _finished(values: list[Value], parts: list[Value]) -> list[Solved]:
    """The solution, without coefficients that it does not read."""
    for part in parts:
        if part.node is not None and part.node.alive:
            erase_dead(part.node)
    return _triples(values)


def _is_splat(value: Value, wanted: float) -> bool:
    known = facts_of(value).splat
    return known is not None and bool(known == wanted)


_SOLVERS: dict[str, Any] = {
    "counter": _counter,
    "shift": _shift,
    "affine": _recurrence,
    "clamped": _recurrence,
    "damped": _recurrence,
    "held": _recurrence,
    "bits": _bits,
    "picked": _picked,
    "joint": _joint,
    "paths": _paths,
}
