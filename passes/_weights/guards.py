"""Selections between a weight and itself, as `vmap` writes them in front of branches."""

from __future__ import annotations

from typing import Final

from lepton_jax.ir.binding import parameters_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes._weights.copies import Places, copied
from lepton_jax.rewrite import PassContext, erase_dead

_RULE: Final = "weight-for-all-branches"

_VIEWS: Final = frozenset(
    {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "convert_element_type"}
)


def take_off_guards(graph: Graph, ctx: PassContext) -> None:
    """Let what reads a guarded weight read the weight itself.

    Where a predicate differs from example to example, `vmap` runs all branches of a `cond` on all examples.
    In front of each it writes `select_n(taken, stop_gradient(w), w)` for all that the branch reads, so that
    examples that do not take it have no part in gradients. The value is `w` in any case. Gradients of
    weights are then sums over all examples: those that do not take the branch add zeros, as long as what
    the branch reads is finite.
    """
    while guards := [node for node in graph.walk() if is_guard(node)]:  # those of branches in branches after
        early = parameters_of(graph, ctx.params)
        fired = False
        for node in guards:
            cases = node.operands[1:]
            if early.get(cases[0]) and ctx.fire(_RULE, node):
                node.result.replace_uses(next((v for v in cases if not _is_stopped(v)), cases[0]))
                erase_dead(node)
                fired = True
        if not fired:
            return


def is_guard(node: Node) -> bool:
    """Whether a selection's cases differ in their gradients alone."""
    if node.op != "select_n":
        return False
    first, *others = node.operands[1:]
    return all(_are_alike(first, other) for other in others)


def is_guarded(value: Value) -> bool:
    """Whether a value, or another view of it, is a case of a guard."""
    work = [value]
    for each in work:
        for node, _ in each.uses:
            if is_guard(node):
                return True
            if node.op in _VIEWS or node.op == "stop_gradient":
                work.append(node.result)
    return False


def _are_alike(left: Value, right: Value) -> bool:
    """Whether two values are the same up to `stop_gradient`."""
    while True:
        (left, here), (right, there) = _origin(left), _origin(right)
        a, b = left.node, right.node
        if left is right or here != there or a is None or b is None:
            return left is right and here == there
        if (
            a.op not in _VIEWS
            or a.op != b.op
            or a.params != b.params
            or len(a.operands) + len(b.operands) > 2
        ):
            return False
        left, right = a.operands[0], b.operands[0]


def _origin(value: Value) -> tuple[Value, Places]:
    """The furthest array that a value is copies of, and where its axes are in the value."""
    return [(value, tuple(range(value.ndim))), *copied(value, stopped=True)][-1]


def _is_stopped(value: Value) -> bool:
    """Whether no gradient goes through a case."""
    while value.node is not None and value.node.op in _VIEWS:
        value = value.node.operands[0]
    return value.node is not None and value.node.op == "stop_gradient"
