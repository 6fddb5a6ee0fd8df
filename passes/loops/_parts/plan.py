"""In which order the carries of a loop can be solved for all iterations at once, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._counted.places import step_of
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.loops._recurrence.forms import FORMS, choice_of, form_of
from lepton_jax.passes.loops._recurrence.linear import Layout, layout_of
from lepton_jax.passes.loops._recurrence.paths import path_layout

REDUCTIONS: Final = {
    "add": "add",
    "add_any": "add",
    "mul": "mul",
    "max": "max",
    "min": "min",
    "and": "and",
    "or": "or",
    "xor": "xor",
}
"""Operations that a carry may accumulate with."""

SIMPLE: Final = frozenset({"counter", "shift", "reduction"})
EVERY: Final = SIMPLE | {*FORMS, "joint", "paths"}


@dataclass(frozen=True, slots=True)
class Step:
    """How one carry is solved.

    Attributes:
        carry: the body's input.
        next: what the body returns for it.
        kind: `counter` (adds a constant), `shift` (its next value does not depend on it), `reduction`
            (accumulated, and read by nothing else), one of the forms in `forms`, `joint` (see `linear`)
            or `paths` (see there).
        op: the operation of a reduction, the comparison of a choice, or the kind of sum of `paths`.
        term: what a reduction accumulates, or the other candidate of a choice.
        asks: whether a choice asks if the other candidate is better than the carry.
        others: carries that are solved together with this one, each with what the body returns for it.
        layout: how `joint` carries, and those of `paths`, are put together.
    """

    carry: Value
    next: Value
    kind: str
    op: str = ""
    term: Value | None = None
    asks: bool = False
    others: tuple[tuple[Value, Value], ...] = ()
    layout: Layout | None = None

    @property
    def pairs(self) -> list[tuple[Value, Value]]:
        """All carries that it solves, each with what the body returns for it."""
        return [(self.carry, self.next), *self.others]


def plan(scan: Scan, kinds: frozenset[str]) -> list[Step] | str:
    """The carries in an order in which each depends only on those before; or why there is none.

    Args:
        kinds: the ways that are allowed.
    """
    depends = scan.dependence()
    masks = [0 if v.is_const else depends[v] >> 1 for v in scan.next]
    unsolved = set(range(len(scan.carries)))
    steps: list[Step] = []
    reason = ""
    while unsolved:
        found: Step | None = None
        for i in sorted(unsolved):
            others = sum(1 << j for j in unsolved if j != i)
            if masks[i] & others:
                reason = reason or f"carry {i} depends on others that depend on it or cannot be solved"
                continue
            found = _step(scan, i, bool(masks[i] >> i & 1), kinds)
            if found is not None:
                break
            reason = f"carry {i} is not a recurrence that can be solved here"
        if found is None and "joint" in kinds:
            found = _joint(scan, masks, unsolved)
        if found is None:
            return reason
        steps.append(found)
        unsolved -= {scan.carries.index(carry) for carry, _ in found.pairs}
    return sorted(steps, key=lambda step: step.kind == "reduction")


def _joint(scan: Scan, masks: list[int], unsolved: set[int]) -> Step | None:
    """The smallest group of carries that depend on no others, if they are jointly linear in themselves."""
    group = min((_closure(i, masks, unsolved) for i in sorted(unsolved)), key=len)
    pairs = [(scan.carries[i], scan.next[i]) for i in sorted(group)]
    if not any(masks[i] >> j & 1 for i in group for j in group):
        return None
    carries, nexts = [carry for carry, _ in pairs], [new for _, new in pairs]
    layout = layout_of(scan, carries, nexts)
    if layout is not None:
        return Step(*pairs[0], "joint", others=tuple(pairs[1:]), layout=layout)
    paths = path_layout(scan, carries, nexts)
    if paths is None:
        return None
    return Step(*pairs[0], "paths", paths[0], others=tuple(pairs[1:]), layout=paths[1])


def _closure(start: int, masks: list[int], unsolved: set[int]) -> set[int]:
    """The unsolved carries that a carry depends on, directly or not, and itself."""
    found, stack = {start}, [start]
    while stack:
        mask = masks[stack.pop()]
        new = {j for j in unsolved - found if mask >> j & 1}
        found |= new
        stack += new
    return found


def _step(scan: Scan, i: int, on_itself: bool, kinds: frozenset[str]) -> Step | None:
    carry, after = scan.carries[i], scan.next[i]
    if after is carry or _jax.is_extended(carry.dtype):
        return None
    if not on_itself:
        return None if after.is_const or "shift" not in kinds else Step(carry, after, "shift")
    if step_of(carry, after) is not None and "counter" in kinds:
        return Step(carry, after, "counter")
    reduction = _reduction(scan, i)
    if reduction is not None and "reduction" in kinds:
        return reduction
    form = form_of(scan, carry, after) if kinds - SIMPLE else None
    if form is None or form not in kinds:
        return None
    choice = choice_of(carry, after) if form == "picked" else None
    if choice is None:
        return Step(carry, after, form)
    op, other, asks = choice
    return Step(carry, after, form, op, other, asks=asks)


def _reduction(scan: Scan, i: int) -> Step | None:
    """A carry that only its own accumulation reads."""
    carry, after = scan.carries[i], scan.next[i]
    node = after.node
    if node is None or node.op not in REDUCTIONS or list(after.uses) != [(scan.body.ret, i)]:
        return None
    if _readers(carry) != [node]:
        return None
    term = node.operands[1] if node.operands[0] is carry else node.operands[0]
    if term.is_const or term.shape != carry.shape:
        return None
    if REDUCTIONS[node.op] == "mul" and not is_tame(term, scan.length):
        return None
    return Step(carry, after, "reduction", REDUCTIONS[node.op], term)


def _readers(value: Value) -> list[Node]:
    return [user for user, _ in value.uses]


def is_tame(value: Value, length: int) -> bool:
    """Whether products of so many elements cannot overflow; whole numbers may, they wrap around."""
    if np.issubdtype(value.dtype, np.integer):
        return True
    if np.issubdtype(value.dtype, np.complexfloating):
        return False
    facts = facts_of(value)
    bound = max(abs(facts.least), abs(facts.most))
    return bound <= 1 or length * math.log(bound) < 0.5 * math.log(float(jnp.finfo(value.dtype).max))
