"""Which function of its carry the step of a loop is: found out by looking at each operation on the way.

Both forms are closed under composition, and so is a whole stretch of iterations one of them:

- `affine`: a·h + b, element by element;
- `clamped`: min(max(h + a, low), high), element by element.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._parts.piece import makers
from lepton_jax.passes.loops._parts.scan import Scan

FORMS: Final = ("affine", "clamped")


def form_of(scan: Scan, carry: Value, after: Value) -> str | None:
    """The form of a carry's next value, where it is one of them in the carry."""
    needed = makers([after], lambda value: False)
    moving = {carry}
    order = [node for node in scan.body if node in needed]
    on_path: list[Node] = []
    for node in order:
        if any(v in moving for v in node.operands):
            moving.update(node.results)
            on_path.append(node)
    for form in FORMS:
        if _may_start(form, carry) and all(_CHECKS[form](node, moving, carry) for node in on_path):
            return form
    return None


def _may_start(form: str, carry: Value) -> bool:
    if _jax.is_extended(carry.dtype):
        return False
    if form == "affine":
        return bool(carry.dtype != np.bool_)
    if not np.issubdtype(carry.dtype, np.inexact) and not _is_small_float(carry):
        return False
    return not np.issubdtype(carry.dtype, np.complexfloating)


def _is_small_float(carry: Value) -> bool:
    return str(carry.dtype) in ("bfloat16", "float16")


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


_CHECKS: Final = {"affine": _affine, "clamped": _clamped}
