"""Comparisons: eq, ne, lt, le, gt, ge. None of them has a derivative, so only values count."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from jax import lax

from lepton_jax.ir.facts import Facts, facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.convert import loses_nothing
from lepton_jax.passes.simplify._algebra.operands import (
    fill,
    is_bool,
    is_int,
    keep,
    kind_of,
    made_by,
    number_facts,
    number_of,
    only_here,
)
from lepton_jax.rewrite import PassContext, Rule, node_rule, rewrite
from lepton_jax.rewrite.rule import Outcome

ORDERED: Final = ("lt", "le", "gt", "ge")
COMPARISONS: Final = ("eq", "ne", *ORDERED)

_PYTHON: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    name: getattr(operator, name) for name in COMPARISONS
}
_LAX: Final[Mapping[str, Callable[..., Any]]] = {name: getattr(lax, name) for name in COMPARISONS}
_OPPOSITE: Final[Mapping[str, str]] = {
    "eq": "ne",
    "ne": "eq",
    "lt": "ge",
    "ge": "lt",
    "gt": "le",
    "le": "gt",
}
_MIRRORED: Final[Mapping[str, str]] = {"eq": "eq", "ne": "ne", "lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


@node_rule(*COMPARISONS, needs_static=False)
def compare_with_self(node: Node, ctx: PassContext) -> Outcome:
    """x < x → false; x == x and x <= x → true, x != x → false, where x is known not to be NaN"""
    x, y = node.operands
    if x is not y or kind_of(x.dtype) == "other":
        return None
    if node.op in ("lt", "gt"):
        return fill(node, False)
    if not facts_of(x).no_nan:
        ctx.miss("compare-with-self", node, "the operand may be NaN")
        return None
    return fill(node, node.op != "ne")


@node_rule(*COMPARISONS, needs_static=False)
def compare_ranges(node: Node, ctx: PassContext) -> Outcome:
    """x < y → true or false, where the ranges of x and y leave no doubt"""
    x, y = node.operands
    if kind_of(x.dtype) not in ("int", "bool", "float"):
        return None
    a, b = facts_of(x), facts_of(y)
    of_nan = node.op == "ne"
    certain = _certain(node.op, (a.least, a.most), (b.least, b.most))
    if certain is None and node.op in ("eq", "ne") and (_apart(a, b) or _apart(b, a)):
        certain = of_nan
    if certain is None or (certain != of_nan and not (a.no_nan and b.no_nan)):
        return None
    return fill(node, certain)


def _apart(a: Facts, b: Facts) -> bool:
    """Whether one is never zero and the other is zero."""
    return a.nonzero and b.is_zero


def _certain(op: str, a: tuple[float, float], b: tuple[float, float]) -> bool | None:
    """The result for numbers in two ranges, NaN aside, if there is but one."""
    if op in ("gt", "ge"):
        return _certain(_MIRRORED[op], b, a)
    if op in ("eq", "ne"):
        if a[1] < b[0] or b[1] < a[0]:
            return op == "ne"
        return op == "eq" if a[0] == a[1] == b[0] == b[1] else None
    if op == "lt":
        return True if a[1] < b[0] else False if a[0] >= b[1] else None
    return True if a[1] <= b[0] else False if a[0] > b[1] else None


@node_rule("not", needs_static=False)
def not_of_comparison(node: Node, ctx: PassContext) -> Outcome:
    """not (x < y) → x >= y, where neither is known to be NaN; not (x == y) → x != y always"""
    inner = made_by(node.operands[0], *COMPARISONS)
    if inner is None or not only_here(inner.result) or kind_of(inner.operands[0].dtype) == "other":
        return None
    if inner.op in ORDERED and not all(facts_of(v).no_nan for v in inner.operands):
        ctx.miss("not-of-comparison", node, "an operand may be NaN, which makes both comparisons false")
        return None
    return rewrite(_LAX[_OPPOSITE[inner.op]], *inner.operands)


@node_rule(*COMPARISONS, needs_static=False)
def compare_choice(node: Node, ctx: PassContext) -> Outcome:
    """A comparison of c with 0 or 1 as a condition p says → p, not p, true or false.

    Examples: convert(p) > 0 → p, select(p, 0, 2) < 1 → not p, p == true → p.
    """
    a, b = node.operands
    op = node.op
    number = number_of(b)
    if number is None:
        a, number, op = b, number_of(a), _MIRRORED[op]
    choice = None if number is None or a.shape != node.result.shape else _choice(a)
    if choice is None:
        return None
    p, if_false, if_true = choice
    compare = _PYTHON[op]
    outcomes = bool(compare(if_false, number)), bool(compare(if_true, number))
    if outcomes[0] == outcomes[1]:
        return fill(node, outcomes[0])
    if outcomes[1]:
        return keep(p, node)
    return rewrite(lax.bitwise_not, p) if p.shape == node.result.shape else None


def _choice(value: Value) -> tuple[Value, Any, Any] | None:
    """(condition, number where it is false, number where it is true) of a choice of two numbers."""
    if is_bool(value):
        return value, False, True
    node = made_by(value, "convert_element_type", "select_n")
    if node is None or not is_bool(node.operands[0]) or kind_of(value.dtype) not in ("int", "float"):
        return None
    if node.op == "convert_element_type":
        return node.operands[0], 0, 1
    if len(node.operands) != 3:
        return None
    if_false, if_true = number_of(node.operands[1]), number_of(node.operands[2])
    return None if if_false is None or if_true is None else (node.operands[0], if_false, if_true)


@node_rule("eq", "ne", needs_static=False)
def compare_difference_with_zero(node: Node, ctx: PassContext) -> Outcome:
    """x - y == 0 → x == y, for integers"""
    difference, zero = node.operands
    inner = made_by(difference, "sub") if is_int(difference) and number_facts(zero).is_zero else None
    if inner is None or difference.shape != node.result.shape:
        return None
    return rewrite(_LAX[node.op], *inner.operands)


@node_rule(*COMPARISONS, needs_static=False)
def compare_before_widening(node: Node, ctx: PassContext) -> Outcome:
    """convert(x) < convert(y) → x < y, where x and y have one dtype and the conversion loses nothing"""
    a, b = (made_by(value, "convert_element_type") for value in node.operands)
    if a is None or b is None:
        return None
    (x,), (y,) = a.operands, b.operands
    if x.dtype != y.dtype or is_bool(x) or not all(loses_nothing(v, a.result.dtype) for v in (x, y)):
        return None
    return rewrite(_LAX[node.op], x, y)


RULES: Final[tuple[Rule, ...]] = (
    compare_with_self,
    compare_ranges,
    not_of_comparison,
    compare_choice,
    compare_difference_with_zero,
    compare_before_widening,
)
