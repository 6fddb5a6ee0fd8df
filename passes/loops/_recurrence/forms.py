"""Which function of its carry the step of a loop is: found out by looking at each operation on the way.

All are closed under composition: a whole stretch of iterations is one of them too. Element by element:

- `held`: h, or something else, by a choice that does not look at h;
- `affine`: a·h + b;
- `clamped`: min(max(h + a, low), high);
- `damped`: min(max(a·h + b, low), high), with a from 0 to 1;
- `bits`: any function of single bits;
- `picked`: the better of h and something else, by a comparison.

Where a choice puts something else in the place of the carry, what was before it is forgotten, NaN too.
"""

from __future__ import annotations

from typing import Final

import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._parts.piece import makers
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.simplify._demand.makers import ELEMENTWISE

FORMS: Final = ("held", "affine", "clamped", "damped", "bits", "picked")

_LOGIC: Final = frozenset({"and", "or", "xor", "not", "copy", "eq", "ne", "select_n"})


def form_of(scan: Scan, carry: Value, after: Value) -> str | None:
    """The form of a carry's next value, where it is one of them in the carry."""
    if _jax.is_extended(carry.dtype):
        return None
    needed = makers([after], lambda value: False)
    moving = {carry}
    order = [node for node in scan.body if node in needed]
    on_path: list[Node] = []
    for node in order:
        if any(v in moving for v in node.operands):
            moving.update(node.results)
            on_path.append(node)
    for form, check in _CHECKS.items():
        if _may_start(form, carry) and all(check(node, moving, carry) for node in on_path):
            return form
    return None if choice_of(carry, after) is None else "picked"


def choice_of(carry: Value, after: Value) -> tuple[str, Value, bool] | None:
    """How the better of a carry and something else is chosen, as in where(x > h, x, h).

    Returns:
        The comparison, what is compared with the carry, and whether the comparison asks if that is better,
        as in x > h; otherwise it asks if the carry is, as in h >= x.
    """
    node = after.node
    if node is None or node.op != "select_n" or len(node.operands) != 3:
        return None
    test = node.operands[0].node
    if test is None or test.op not in _FLIPPED or carry not in node.operands[1:]:
        return None
    other = node.operands[1] if node.operands[2] is carry else node.operands[2]
    if {*test.operands} != {carry, other} or other is carry or other.is_const:
        return None
    winner = node.operands[2]
    op = test.op if test.operands[0] is winner else _FLIPPED[test.op]
    return op, other, winner is other


_FLIPPED: Final = {"gt": "lt", "lt": "gt", "ge": "le", "le": "ge"}


def _may_start(form: str, carry: Value) -> bool:
    if form == "held":
        return True
    if form == "bits":
        return bool(jnp.issubdtype(carry.dtype, np.integer) or carry.dtype == np.bool_)
    if form == "affine":
        return bool(carry.dtype != np.bool_)
    return bool(jnp.issubdtype(carry.dtype, np.floating))


def _like(node: Node, carry: Value) -> bool:
    """Whether a node has one result, of the carry's shape and dtype."""
    return len(node.results) == 1 and (node.result.shape, node.result.dtype) == (carry.shape, carry.dtype)


def _elementwise(node: Node, moving: set[Value], carry: Value) -> bool:
    """What both elementwise forms allow: signs aside, sums with what does not move, and choices."""
    if not _like(node, carry):
        return False
    if node.op in ("copy", "convert_element_type"):
        return True
    if node.op in ("add", "add_any"):
        return len([v for v in node.operands if v in moving]) == 1
    if node.op == "sub":
        return node.operands[0] in moving and node.operands[1] not in moving
    return node.op == "select_n" and node.operands[0] not in moving


def _affine(node: Node, moving: set[Value], carry: Value) -> bool:
    if not _like(node, carry):
        return False
    if node.op in ("add", "add_any", "sub", "neg"):
        return True
    if node.op == "mul":
        return len([v for v in node.operands if v in moving]) == 1
    if node.op == "div":
        inexact = not np.issubdtype(carry.dtype, np.integer)
        return inexact and node.operands[1] not in moving
    return _elementwise(node, moving, carry)


def _clamped(node: Node, moving: set[Value], carry: Value) -> bool:
    if not _like(node, carry):
        return False
    if node.op in ("max", "min"):
        return len([v for v in node.operands if v in moving]) == 1
    if node.op == "clamp":
        return node.operands[1] in moving and not {node.operands[0], node.operands[2]} & moving
    return _elementwise(node, moving, carry)


def _damped(node: Node, moving: set[Value], carry: Value) -> bool:
    if not _like(node, carry):
        return False
    if node.op in ("mul", "div"):
        inside = [i for i, v in enumerate(node.operands) if v in moving]
        if len(inside) != 1 or (node.op == "div" and inside != [0]):
            return False
        facts = facts_of(node.operands[1 - inside[0]])
        return bool(facts.least >= 1 if node.op == "div" else facts.least >= 0 and facts.most <= 1)
    return _clamped(node, moving, carry)


def _held(node: Node, moving: set[Value], carry: Value) -> bool:
    if not _like(node, carry):
        return False
    return node.op == "copy" or (node.op == "select_n" and node.operands[0] not in moving)


def _bits(node: Node, moving: set[Value], carry: Value) -> bool:
    """Logic on bits; any elementwise operation where there is only one of them, such as thresholds."""
    if len(node.results) != 1 or node.result.shape != carry.shape:
        return False
    if carry.dtype == np.bool_:
        return node.op in _LOGIC or node.op in ELEMENTWISE
    if node.op not in _LOGIC or node.op in ("eq", "ne") or node.result.dtype != carry.dtype:
        return False
    return node.op != "select_n" or node.operands[0] not in moving


_CHECKS: Final = {"held": _held, "affine": _affine, "clamped": _clamped, "damped": _damped, "bits": _bits}
