"""The backward half of attention in a program that holds its own gradient, for kernels that bring their own.

Every array of it is a sum of products of a few things: the exponentials E, the product G of the
result's gradient with the values, the sums L of the exponentials and R of E·G. In these terms the
gradients of values, queries and keys are products with E/L and with E·G/L - E·R/L².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lepton_jax.ir.graph import RETURN, Node, Value
from lepton_jax.passes.fuse._attention.axes import dot_numbers
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.shape import FEATURE, Axes
from lepton_jax.passes.fuse._attention.standard import NotStandardError, Standard
from lepton_jax.passes.fuse._attention.terms import (
    BEND,
    SLOPES,
    Reader,
    Terms,
    equal,
    result_of,
    times,
)
from lepton_jax.passes.fuse._attention.views import root

_MOST: Final = 256


@dataclass(frozen=True, eq=False)
class End:
    """A product that is a gradient: of the queries (0), keys (1) or values (2).

    Attributes:
        node: the product.
        which: whose gradient it is.
        factor: what it is multiplied by.
        axes: those of its result.
    """

    node: Node
    which: int
    factor: float
    axes: Axes


@dataclass(frozen=True, eq=False)
class Backward:
    """The backward half.

    Attributes:
        ends: its results.
        change: the gradient of the result of attention, None where there are no ends.
        axes: those of `change`.
    """

    ends: tuple[End, ...]
    change: Value | None
    axes: Axes


def backward(found: Found, made: Standard) -> Backward | str:
    """All that reads the scores or weights, if it is the forward half and gradients alone."""
    try:
        ends, inside = _ends(found, made)
        return _gradients(found, made, ends, inside)
    except NotStandardError as error:
        return str(error)


def _ends(found: Found, made: Standard) -> tuple[list[Node], dict[Node, None]]:
    """The products in which what depends on the scores ends, but for the forward one; what is between."""
    seen: dict[Node, None] = {}
    ends: dict[Node, None] = {}
    queue = [made.score]
    while queue:
        node = queue.pop()
        for value in node.results:
            for user in value.users():
                if user is found.dot or user in seen:
                    continue
                if user.graph is not made.score.graph or user.op == RETURN or user.effects:
                    raise NotStandardError("the scores, or what is made of them, are results too")
                if len(seen) > _MOST:
                    raise NotStandardError("too much depends on the scores")
                if user.op == "dot_general":
                    ends[user] = None
                else:
                    seen[user] = None
                    queue.append(user)
    return list(ends), seen


def _gradients(found: Found, made: Standard, ends: list[Node], inside: dict[Node, None]) -> Backward:
    terms = Reader(found, made)
    change: tuple[Value, Axes] | None = None
    done: list[End] = []
    rest: list[tuple[Node, int]] = []
    for node in ends:
        side = _dependent_side(node, inside)
        value, axes = terms.of_weights(node.operands[side])
        if not value:
            rest.append((node, side))
            continue
        other, its_axes = _contracted(node, side, axes, (made.query, *made.groups), made)
        source = root(other, its_axes)
        if change is not None and change[0] is not source[0]:
            raise NotStandardError("the weights meet several gradients")
        change = source
        done.append(End(node, 2, 1.0, result_of(node, side, axes, its_axes)))
    if not ends:
        return Backward((), None, ())
    if change is None:
        raise NotStandardError("the gradient of the values is not computed")
    terms.change = change
    for node, side in rest:
        done.append(_slope(node, side, terms, made))
    return Backward(tuple(done), *change)


def changed(found: Found, made: Standard, products: Sequence[Node]) -> tuple[Value, Axes]:
    """The gradient of the result, with its axes, from a product of it with the weights.

    Raises:
        NotStandardError: none of the products is one.
    """
    terms = Reader(found, made)
    for node in products:
        for side in (0, 1):
            weights, axes = terms.of_weights(node.operands[side])
            if weights:
                return root(*_contracted(node, side, axes, (made.query, *made.groups), made))
    raise NotStandardError("the gradient of the values is not computed")


def terms_of(node: Node, found: Found, made: Standard, change: tuple[Value, Axes]) -> tuple[Terms, Axes]:
    """A node's result as a sum of products, with its axes.

    Raises:
        NotStandardError: it is none.
    """
    return Reader(found, made, change).of(node.result)


def _slope(node: Node, side: int, terms: Reader, made: Standard) -> End:
    """A gradient of queries or keys."""
    found, axes = terms.of(node.operands[side])
    factor = found.get((1, 1, -1, 0, 0), 0.0)
    wanted = SLOPES if made.cap is None else times(SLOPES, BEND)
    if not factor or not equal(found, wanted, factor):
        raise NotStandardError("the gradient of the scores is not that of a softmax")
    contract, _ = dot_numbers(node)
    gone = {a for d in contract[side] for a in axes[d]}
    which, partner = (0, made.keys) if made.key in gone else (1, made.queries)
    atoms = (made.key,) if which == 0 else (made.query, *made.groups)
    other, its_axes = _contracted(node, side, axes, atoms, made)
    source, source_axes = root(other, its_axes)
    own, own_axes = root(partner, made.key_axes if which == 0 else made.query_axes)
    if source is not own or source_axes != own_axes:
        raise NotStandardError("the gradient of the scores meets something else than queries or keys")
    scale = made.scale if made.cap is None else made.scale * made.cap
    return End(node, which, factor / scale, result_of(node, side, axes, its_axes))


def _dependent_side(node: Node, inside: dict[Node, None]) -> int:
    depends = [v.node in inside for v in node.operands]
    if depends.count(True) != 1:
        raise NotStandardError("a product of two things that depend on the scores")
    return depends.index(True)


def _contracted(
    node: Node, side: int, axes: Axes, atoms: tuple[int, ...], made: Standard
) -> tuple[Value, Axes]:
    """The other operand of a product that sums over exactly these atoms, with its axes."""
    contract, batch = dot_numbers(node)
    gone = sorted(a for d in contract[side] for a in axes[d])
    shared = sorted(a for d in batch[side] for a in axes[d])
    if gone != sorted(atoms) or shared != sorted(made.shared):
        raise NotStandardError("a product of the weights sums over other axes")
    other = node.operands[1 - side]
    own: list[tuple[int, ...]] = [(FEATURE,)] * other.ndim
    for numbers in (contract, batch):
        for mine, theirs in zip(numbers[side], numbers[1 - side], strict=True):
            own[theirs] = axes[mine]
    if own.count((FEATURE,)) != 1:
        own = [() if a == (FEATURE,) and n == 1 else a for a, n in zip(own, other.shape, strict=True)]
    if own.count((FEATURE,)) != 1:
        raise NotStandardError("a product with an array of several kinds of features")
    return other, tuple(own)
