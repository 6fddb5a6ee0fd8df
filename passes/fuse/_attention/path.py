"""The way from the product of weights and values back to the exponentials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from lepton_jax.ir.facts import facts_of
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._attention.axes import MOVES, sources

_FAR: Final = 16
"""So many operations are followed between the weights and their exponential, and the like."""

_NEAR: Final = 6

SAME: Final = frozenset({"convert_element_type", "copy", "copy_p", "stop_gradient"})

_RANDOM: Final = frozenset({"random_bits", "random_unwrap", "threefry2x32", "rng_bit_generator"})


@dataclass(frozen=True, eq=False)
class Row:
    """What is done to all weights of a query alike.

    Attributes:
        kind: "mul" and "div": multiplied or divided by the value, which has one number for all keys;
            "seen": zero where the value, a mask, lets the query see no key; "nan": zero where they are NaN.
        value: None for "nan".
        negated: whether the mask is True where a key is not seen.
        before: how many steps of the path come before.
    """

    kind: Literal["mul", "div", "seen", "nan"]
    value: Value | None
    before: int
    negated: bool = False


@dataclass(frozen=True, eq=False)
class Path:
    """From the exponentials to the operand of the product.

    Attributes:
        exp: what exponentiates the scores.
        key: the key axis there.
        steps: moves, conversions, masks that make weights zero, and products with other factors.
        sides: which operand of each step the weights are.
        rows: what is done to whole rows of weights.
    """

    exp: Node
    key: int
    steps: tuple[Node, ...]
    sides: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def is_masked(self) -> bool:
        """Whether weights are masked or multiplied on their way."""
        return any(node.op not in MOVES | SAME for node in self.steps)


def to_exp(value: Value, axis: int) -> Path | str | None:
    """The path that ends in a value with a key axis.

    Returns:
        None if there is nothing like it; a text if it is nearly one, saying what is in the way.
    """
    steps: list[tuple[Node, int]] = []
    rows: list[Row] = []
    for _ in range(_FAR):
        node = value.node
        if node is None:
            return None
        if node.op == "exp":
            count = len(steps)
            turned = tuple(Row(r.kind, r.value, count - r.before, r.negated) for r in reversed(rows))
            nodes, sides = zip(*reversed(steps), strict=True) if steps else ((), ())
            return Path(node, axis, nodes, sides, turned)
        if node.op in ("div", "mul"):
            quotient = _quotient(node, axis)
            if quotient is not None:
                value, divisor = quotient
                rows.append(Row("div" if node.op == "div" else "mul", divisor, len(steps)))
                continue
        if node.op in ("div", "mul", "select_n"):
            position = _masked(node)
            if position is None:
                return _reason(node)
            if node.op == "select_n" and _is_nan(node, position):
                rows.append(Row("nan", None, len(steps)))
            else:
                if node.op == "select_n":
                    rows.append(Row("seen", node.operands[0], len(steps), negated=position == 1))
                steps.append((node, position))
            value = node.operands[position]
            continue
        if node.op not in MOVES and node.op not in SAME:
            return _reason(node)
        before = sources(node, axis)
        if before is None or before[0] is None:
            return None
        steps.append((node, 0))
        value, axis = node.operands[0], before[0]
    return None


def _quotient(node: Node, axis: int) -> tuple[Value, Value] | None:
    """What is divided and what divides, where the divisor is the same for all keys."""
    left, right = node.operands
    pairs = [(left, right)] if node.op == "div" else [(left, right), (right, left)]
    for whole, part in pairs:
        if whole.shape == node.result.shape and is_row(part, axis):
            return whole, part
    return None


def is_row(value: Value, axis: int) -> bool:
    """Whether a value is the same along an axis."""
    if value.ndim == 0 or value.shape[axis] == 1:
        return True
    return value.node is not None and value.op == "broadcast_in_dim" and sources(value.node, axis) == [None]


def _masked(node: Node) -> int | None:
    """Which operand is the weights, where an operation makes some of them zero or multiplies them."""
    operands, found = node.operands, []
    if node.op == "select_n" and len(operands) == 3 and operands[0].shape == node.result.shape:
        found = [at for at in (1, 2) if facts_of(operands[3 - at]).is_zero and _near_exp(operands[at])]
    elif node.op == "mul":
        found = [at for at in (0, 1) if _near_exp(operands[at])]
    if len(found) != 1 or operands[found[0]].shape != node.result.shape or any(map(drawn, operands)):
        return None
    return found[0]


def _has_product(node: Node) -> bool:
    """Whether a factor of weights is made of a product, as in a gradient."""
    factors = [v for v in node.operands if node.op == "mul" and not _near_exp(v)]
    return any(maker.op == "dot_general" for v in factors for maker in ancestors(v, _FAR))


def _is_nan(node: Node, position: int) -> bool:
    """Whether a choice gives zero for NaN and the weights otherwise."""
    condition, weights = node.operands[0].node, node.operands[position]
    return (
        position == 1
        and condition is not None
        and condition.op == "ne"
        and all(v is weights for v in condition.operands)
    )


def masked_of(value: Value, key: int) -> Iterator[tuple[Value, tuple[Node, ...]]]:
    """A value of exponentials and those that masks make of it, with the masks; conversions are among them."""
    found: list[tuple[Value, tuple[Node, ...]]] = [(value, ())]
    for current, nodes in found:
        yield current, nodes
        for user in current.users() if len(nodes) < _NEAR else ():
            keeps = user.op in SAME
            if user.op == "select_n" or (user.op == "mul" and not any(is_row(v, key) for v in user.operands)):
                position = None if _has_product(user) else _masked(user)
                keeps = position is not None and user.operands[position] is current
            if keeps and user.result.shape == value.shape and all(user.result is not v for v, _ in found):
                found.append((user.result, (*nodes, user)))


def _reason(node: Node) -> str | None:
    """Why weights that go through `node` are left alone, if weights they are."""
    if node.op not in ("mul", "div", "select_n") or not any(_near_exp(v) for v in node.operands):
        return None
    if any(drawn(v) for v in node.operands):
        return "the weights have dropout"
    return f"the weights go through {node.op} before they meet the values"


def ancestors(value: Value, most: int) -> Iterator[Node]:
    """The operations that a value is made of, nearest first, so many at the most."""
    seen: set[Node] = set()
    queue = [value.node]
    while queue and len(seen) < most:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        queue += [v.node for v in node.operands]


def _near_exp(value: Value) -> bool:
    """Whether a value is exponentials that were moved, multiplied, divided or masked."""
    stack = [(value, _NEAR)]
    while stack:
        current, left = stack.pop()
        node = current.node
        if node is None or not left:
            continue
        if node.op == "exp":
            return True
        if node.op in MOVES | SAME | {"div"}:
            stack.append((node.operands[0], left - 1))
        elif node.op in ("mul", "select_n"):
            stack += [(v, left - 1) for v in node.operands[node.op == "select_n" :]]
    return False


def drawn(value: Value) -> bool:
    """Whether a value is made of random numbers."""
    return any(node.op in _RANDOM for node in ancestors(value, 64))


def is_divided_later(dot: Node, sums: tuple[Node, ...]) -> bool:
    """Whether the product is multiplied or divided by what is made of sums of the exponentials.

    That of a block, such as this pass writes, is not.
    """
    stack = [dot.result]
    while stack:
        users = stack.pop().users()
        factors = [v for user in users if user.op in ("mul", "div") for v in user.operands]
        if any(not set(sums).isdisjoint(ancestors(v, _FAR)) for v in factors):
            return True
        stack += [user.result for user in users if user.op in MOVES | SAME]
    return False


def behind(value: Value) -> Node | None:
    """What makes a value, apart from conversions and axes of size one."""
    for _ in range(_FAR):
        node = value.node
        if node is None:
            return None
        if node.op not in SAME and not _is_view(node) and not _is_max_of_nothing(node):
            return node
        value = next(v for v in node.operands if node.op != "max" or not _is_nothing(v))
    return None


def _is_view(node: Node) -> bool:
    """Whether a node only adds or drops axes of size one, or repeats along others."""
    if node.op == "broadcast_in_dim":
        return True
    if node.op not in ("reshape", "squeeze"):
        return False
    units = [[d for d in v.shape if d != 1] for v in (node.operands[0], node.results[0])]
    return units[0] == units[1]


def _is_max_of_nothing(node: Node) -> bool:
    return node.op == "max" and sum(map(_is_nothing, node.operands)) == 1


def _is_nothing(value: Value) -> bool:
    splat = facts_of(value).splat
    return splat is not None and splat == -float("inf")
