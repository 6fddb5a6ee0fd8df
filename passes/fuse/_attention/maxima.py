"""The derivative of the maxima that are subtracted from the scores, where it does not cancel out.

The weights of a softmax do not change with what is subtracted from the scores, so its derivative is nothing.
Exponentials and sums on their own change, and so does a quotient with something added to the sum.
"""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import MOVES
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.order import sort
from lepton_jax.passes.fuse._attention.path import SAME, behind
from lepton_jax.passes.fuse._attention.region import Region
from lepton_jax.passes.fuse._attention.running import near_top
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

Degree = tuple[int, int]
"""How a number changes where c more is subtracted from the scores: by a·c, and by the factor exp(m·c)."""

_SMALL: Final = 1e-4


class _UnknownError(Exception):
    """A number changes in another way."""


def tracks(found: Found, region: Region) -> bool:
    """Whether the derivative of the maxima counts, in a program that does not hold its own gradient."""
    if region.sinks or not found.tops or not _is_differentiated(found):
        return False
    try:
        _check(found, region)
    except _UnknownError:
        return True
    return False


def _is_differentiated(found: Found) -> bool:
    """Whether something reads a maximum other than through `stop_gradient`."""
    stack, seen = [node.result for node in found.tops], set[Value]()
    while stack:
        value = stack.pop()
        for user in value.users():
            if user.op in MOVES | SAME - {"stop_gradient"}:
                stack += [v for v in user.results if v not in seen]
                seen.update(user.results)
            elif user.op != "stop_gradient":
                return True
    return False


def _check(found: Found, region: Region) -> None:
    """Follow what changes with what is subtracted, until it does not.

    Raises:
        _UnknownError: something changes that is a result, or is not followed.
    """
    graph, shift = found.dot.graph, None if found.shift is None else behind(found.shift)
    if graph is None or shift is None:
        raise _UnknownError
    known: dict[Value, Degree] = {node.result: (1, 0) for node in found.tops}
    for node in graph:
        if any(v in region.labels for v in node.results) and node is not shift:
            continue
        degree: Degree = (0, 0)
        if node is shift:
            degree = (1, 0)
        elif node in found.tops:
            continue
        elif node in found.sums:
            degree = (0, -1)
        elif node in (other for other, _ in found.others):
            raise _UnknownError
        elif node is found.dot:
            degree = _of_product(found, known)
        elif any(v in known for v in node.operands):
            degree = _of(node, [known.get(v, (0, 0)) for v in node.operands], found)
        if degree != (0, 0):
            known |= dict.fromkeys(node.results, degree)
    if any(v in known for v in graph.outputs):
        raise _UnknownError


def _of_product(found: Found, known: dict[Value, Degree]) -> Degree:
    """How the product of weights and values changes."""
    times = 0 if found.divided else -1
    for row in found.rows:
        added, factor = known.get(row.value, (0, 0)) if row.value is not None else (0, 0)
        if added:
            raise _UnknownError
        times += factor if row.kind == "mul" else -factor if row.kind == "div" else 0
    return 0, times


def _of(node: Node, parts: list[Degree], found: Found) -> Degree:
    """How the result of an operation changes."""
    (added, factor), (other, times) = parts[0], parts[-1]
    if node.op in MOVES | SAME - {"stop_gradient"} or node.op in ("reduce_sum", "slice"):
        return added, factor
    if node.op == "neg":
        return -added, factor
    if node.op in ("mul", "div") and not added and not other:
        return 0, factor + times if node.op == "mul" else factor - times
    if node.op in ("add", "sub", "add_any") and not factor and not times:
        return added - other if node.op == "sub" else added + other, 0
    if node.op in ("add", "sub", "max", "min") and parts[0] == parts[1]:
        return added, factor
    if node.op in ("add", "max") and not found.masked and _is_small(node.operands, found):
        return max(parts[0], parts[1], key=lambda d: abs(d[1]))
    if node.op == "exp" and not factor:
        return 0, added
    if node.op == "log" and not added:
        return factor, 0
    raise _UnknownError


def _is_small(operands: list[Value], found: Found) -> bool:
    """Whether a sum of exponentials, which is one at least, meets a very small number."""
    splats = [facts_of(v).splat for v in operands]
    small = [s is not None and bool(0 <= s <= _SMALL) for s in splats]
    sums = [behind(v) in found.sums for v in operands]
    return found.top is not None and small != sums and sorted(small) == sorted(sums) == [False, True]


def loosen(found: Found) -> tuple[Node, ...]:
    """Let a gradient in the program find the scores that are the maximum of their row, up to rounding.

    Returns:
        What tells which they are.
    """
    made = []
    for user, other in _compared(found):
        (value,) = write_before(rewrite(near_top, found.scores, other), user, "attention")
        user.result.replace_uses(value)
        erase_dead(user)
        assert value.node is not None
        made.append(value.node)
    return tuple(made)


def _compared(found: Found) -> list[tuple[Node, Value]]:
    """Where a gradient in the program asks which scores are the maximum of their row, and with what."""
    asked = []
    for user in found.scores.users():
        if user.op == "eq" and user.graph is not None:
            other = user.operands[user.operands[0] is found.scores]
            if behind(other) in found.tops and other.ndim == found.scores.ndim:
                asked.append((user, other))
    return asked


def ties_count(found: Found) -> bool:
    """Whether the gradient depends on which scores, of so few bits that many are equal, are the maximum.

    Divided by their sum, weights do not depend on what is subtracted; by one more than that, they do. Scores
    that are computed again in more bits have other ties.
    """
    few, others = found.scores.dtype.itemsize < 4, any(row.value is not None for row in found.rows)
    return few and others and bool(_compared(found))


def at_least_one(node: Node, near: tuple[Node, ...]) -> None:
    """Let the keys that reach a maximum, which a gradient divides by, be at least one."""
    operand = node.operands[0]
    while operand.node is not None and operand.op == "convert_element_type":
        operand = operand.node.operands[0]
    if node.op != "reduce_sum" or (operand.op != "eq" and operand.node not in near) or node.graph is None:
        return
    uses = list(node.result.uses)
    (safe,) = write_before(rewrite(_one_or_more, node.result), node.graph.ret, "attention")
    for user, position in uses:
        user.set_operand(position, safe)
    sort(node.graph)


def _one_or_more(count: Any) -> Any:
    return jnp.maximum(count, jnp.ones_like(count))
