"""While loops that are known to run so many times."""

from __future__ import annotations

from typing import Any

from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.loops._counted.places import known_number, step_of
from lepton_jax.passes.loops._parts.piece import Piece, cut
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write

RULE = "known-trips"

_MOST = 1 << 31


def known_trips(node: Node, ctx: PassContext) -> None:
    """A while loop that counts to a known number is a scan.

    while((i, c): i < 10; (i + 1, f(c))) from i = 0 → scan(c: f(c)) of length 10
    """
    trips = _trips(node)
    if trips is None or not ctx.fire(RULE, node):
        return
    cond, body = node.params["cond_nconsts"], node.params["body_nconsts"]
    inner = node.regions[1]
    piece, leaves = cut(inner, inner.outputs)
    arrays = [leaf for leaf in leaves if leaf.is_const]
    taken = {v: i for i, v in enumerate([*inner.inputs[:body], *arrays, *inner.inputs[body:]])}
    made = rewrite(
        counted,
        *node.operands[cond : cond + body],
        *arrays,
        *node.operands[cond + body :],
        piece=piece,
        taken=tuple(taken[leaf] for leaf in leaves),
        consts=body + len(arrays),
        length=trips,
    )
    write(made, node, RULE)
    erase_dead(node)


def counted(*args: Any, piece: Piece, taken: tuple[int, ...], consts: int, length: int) -> list[Any]:
    """A loop that runs `length` times.

    Args:
        args: constants of the loop, then the initial carries.
        piece: the body, which takes those of the constants and carries that `taken` says.
    """
    fixed = list(args[:consts])

    def step(state: list[Any], _: None) -> tuple[list[Any], None]:
        given = [*fixed, *state]
        return piece(*(given[i] for i in taken)), None

    return list(lax.scan(step, list(args[consts:]), None, length=length)[0])


def _trips(node: Node) -> int | None:
    """How often a while loop runs its body, if it counts up to a known number, or down."""
    cond, body = node.regions
    if node.effects or any(n.effects for region in node.regions for n in region.walk()):
        return None
    test = cond.outputs[0].node
    if test is None or test.op not in _TESTS or cond.outputs[0].shape:
        return None
    left, right = test.operands
    flipped = _carry(node, left) is None
    counter, bound = (right, left) if flipped else (left, right)
    position = _carry(node, counter)
    if position is None:
        return None
    limit = known_number(_outer(node, bound))
    consts = node.params["body_nconsts"]
    by = step_of(body.inputs[consts + position], body.outputs[position])
    first = known_number(node.operands[node.params["cond_nconsts"] + consts + position])
    if limit is None or by is None or first is None:
        return None
    return _count(_FLIPPED[test.op] if flipped else test.op, first, by, limit)


_TESTS = ("lt", "le", "gt", "ge")
_FLIPPED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


def _count(test: str, first: int, by: int, limit: int) -> int | None:
    """How many numbers first, first + by, ... pass a test, before the first that does not."""
    if test in ("gt", "ge"):
        first, by, limit, test = -first, -by, -limit, "lt" if test == "gt" else "le"
    if by <= 0:
        return None
    missing = limit - first + (test == "le")
    trips = max(0, -(-missing // by))
    return trips if limit + by < _MOST and first > -_MOST and trips < _MOST else None


def _carry(node: Node, value: Value) -> int | None:
    """Which carry an input of the condition is."""
    inputs = node.regions[0].inputs[node.params["cond_nconsts"] :]
    return next((i for i, v in enumerate(inputs) if v is value), None)


def _outer(node: Node, value: Value) -> Value:
    """What a constant of the condition, or an unchanged carry, is outside; any other value is itself."""
    inputs = node.regions[0].inputs
    position = next((i for i, v in enumerate(inputs) if v is value), None)
    if position is None:
        return value
    consts = node.params["cond_nconsts"]
    if position < consts:
        return node.operands[position]
    position -= consts
    body, skip = node.regions[1], node.params["body_nconsts"]
    if body.outputs[position] is not body.inputs[skip + position]:
        return value
    outer: Value = node.operands[consts + skip + position]
    return outer
