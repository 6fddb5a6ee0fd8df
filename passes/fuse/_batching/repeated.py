"""Batched products with an operand that is the same for several batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._movement.common import is_free, made_by, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_LEAST_WORK: Final = 2**18
"""Floating-point operations below which the copies cost nothing."""

_MOST_ROWS: Final = 256
"""Rows a batch from which on the batched product is as fast."""

Numbers = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def numbers_of(node: Node) -> Numbers:
    """The dimension numbers of a product, as tuples."""
    (a, b), (c, d) = node.params["dimension_numbers"]
    return ((tuple(a), tuple(b)), (tuple(c), tuple(d)))


def _work(node: Node, numbers: Numbers) -> int:
    x = node.operands[0]
    return int(2 * math.prod(node.result.shape) * math.prod(x.shape[d] for d in numbers[0][0]))


@movement_rule("dot_general", level="reassociate", backends=("cpu", "gpu"))
def flat_product(node: Node, ctx: PassContext) -> Outcome:
    """x[b, m, k] · broadcast(w)[b, k, n] → (x as [b·m, k]) · w, reshaped

    Where the weights are the same for all batches, and a batch has up to 256 rows: one product reads the
    weights once. 19× for 64 batches of one row (`python benchmarks/rewrites.py --only batching`).
    """
    numbers = numbers_of(node)
    contract, batch = numbers
    inner = made_by(node.operands[1], node, "broadcast_in_dim") if batch[0] and is_free(node) else None
    if inner is None or not is_free(inner):
        return None
    x, w = node.operands[0], inner.operands[0]
    dims = tuple(inner.params["broadcast_dimensions"])
    if any(d in dims for d in batch[1]) or any(
        w.shape[i] != inner.result.shape[d] for i, d in enumerate(dims)
    ):
        return None
    free = [d for d in range(x.ndim) if d not in (*contract[0], *batch[0])]
    if batch[0] != tuple(range(len(batch[0]))) or contract[0] != tuple(
        range(x.ndim - len(contract[0]), x.ndim)
    ):
        return None
    if math.prod(x.shape[d] for d in free) > _MOST_ROWS or _work(node, numbers) < _LEAST_WORK:
        return None
    inward = tuple(dims.index(d) for d in contract[1])
    return rewrite(_flat, x, w, inward=inward, shape=node.result.shape, how=_how(node))


def _flat(
    x: jax.Array, w: jax.Array, *, inward: tuple[int, ...], shape: tuple[int, ...], how: Any
) -> jax.Array:
    rank = len(inward)
    rows = lax.reshape(x, (math.prod(x.shape[:-rank]), *x.shape[-rank:]))
    numbers = ((tuple(range(1, rank + 1)), inward), ((), ()))
    return lax.reshape(lax.dot_general(rows, w, numbers, **dict(how)), shape)


def _how(node: Node, turned: bool = False) -> tuple[tuple[str, Any], ...]:
    precision = node.params["precision"]
    if turned and isinstance(precision, tuple):
        precision = precision[::-1]
    kind = node.params["preferred_element_type"]
    return (("precision", precision), ("preferred_element_type", kind))


@movement_rule("dot_general", level="reassociate", backends=("cpu", "gpu"))
def grouped_product(node: Node, ctx: PassContext) -> Outcome:
    """q[b, h, ...] · repeat(k, r)[b, h, ...] → q[b, h / r, r, ...] · k[b, h / r, ...], reshaped

    Grouped-query and multi-query attention, whichever side is repeated, and whether each number is repeated
    or all of them (`jnp.repeat`, broadcast and reshape). 1.2× to 7× for scores, more for a single query
    (`python benchmarks/rewrites.py --only batching`).
    """
    numbers = numbers_of(node)
    if not numbers[1][0] or not is_free(node):
        return None
    precision = node.params["precision"]
    for side in (1, 0):
        found = _repeated(node, side, numbers[1][side])
        if found is None or (side == 0 and not isinstance(precision, (tuple, lax.Precision, type(None)))):
            continue
        if _work(node, numbers) < _LEAST_WORK:
            return None
        return rewrite(
            _grouped,
            node.operands[1 - side],
            found.source,
            numbers=numbers if side == 1 else (numbers[0][::-1], numbers[1][::-1]),
            place=found.place,
            times=found.times,
            within=found.within,
            missing=found.missing,
            first=side == 1,
            shape=node.result.shape,
            how=_how(node, turned=side == 0),
        )
    return None


@dataclass(frozen=True)
class _Repeat:
    """What an operand of a product repeats along one batch dimension.

    Attributes:
        source: the array that is repeated.
        place: which of the batch dimensions it is repeated along.
        times: how often.
        within: whether each number is repeated, not all of them in turn.
        missing: the dimension of size one that the source lacks, if it lacks it.
    """

    source: Value
    place: int
    times: int
    within: bool = True
    missing: int | None = None


def _repeated(node: Node, side: int, batch: tuple[int, ...]) -> _Repeat | None:
    """What an operand repeats, if it does."""
    operand = node.operands[side]
    outer = made_by(operand, node, "reshape")
    inner = made_by(operand if outer is None else outer.operands[0], node, "broadcast_in_dim")
    if inner is None or not is_free(inner) or (outer is not None and not is_free(outer)):
        return None
    return _one_for_all(inner, batch) if outer is None else _by_groups(inner, operand.shape, batch)


def _one_for_all(inner: Node, batch: tuple[int, ...]) -> _Repeat | None:
    """One head for all: a broadcast along one batch dimension among several."""
    source, shape, dims = inner.operands[0], inner.result.shape, tuple(inner.params["broadcast_dimensions"])
    found = [d for d in batch if d not in dims or source.shape[dims.index(d)] != shape[d]]
    if len(batch) < 2 or len(found) != 1 or shape[found[0]] < 2:
        return None
    at = found[0]
    if source.shape != tuple(1 if d == at else shape[d] for d in dims) or len(dims) < len(shape) - 1:
        return None
    return _Repeat(source, batch.index(at), shape[at], missing=None if at in dims else at)


def _by_groups(inner: Node, short: tuple[int, ...], batch: tuple[int, ...]) -> _Repeat | None:
    """A head for each group: a new dimension next to that of the groups, merged with it."""
    source, long = inner.operands[0], inner.result.shape
    new = [d for d in range(len(long)) if d not in inner.params["broadcast_dimensions"]]
    if len(new) != 1 or len(long) != len(short) + 1 or long[new[0]] < 2:
        return None
    if source.shape != tuple(length for d, length in enumerate(long) if d != new[0]):
        return None
    for d in (new[0] - 1, new[0]):
        merged = 0 <= d < len(short) and (*long[:d], long[d] * long[d + 1], *long[d + 2 :]) == tuple(short)
        if merged and d in batch:
            return _Repeat(source, batch.index(d), long[new[0]], new[0] == d + 1)
    return None


def _grouped(
    q: jax.Array,
    k: jax.Array,
    *,
    numbers: Numbers,
    place: int,
    times: int,
    within: bool,
    missing: int | None,
    first: bool,
    shape: tuple[int, ...],
    how: Any,
) -> jax.Array:
    """The product of q, whose batch dimension number `place` is split in groups and members, with k.

    Args:
        numbers: the dimension numbers, q first.
        within: whether members of a group are neighbours.
        missing: the dimension of k, of size one, that is to be put in.
        first: whether q comes first in the result.
    """
    (summed, inward), (batch, others) = numbers
    k = k if missing is None else lax.expand_dims(k, (missing,))
    at = batch[place]
    groups = q.shape[at] // times
    q = lax.reshape(q, (*q.shape[:at], *((groups, times) if within else (times, groups)), *q.shape[at + 1 :]))
    group, member = (at, at + 1) if within else (at + 1, at)

    def moved(d: int) -> int:
        return d + 1 if d > at else group if d == at else d

    summed, batch = tuple(map(moved, summed)), tuple(map(moved, batch))
    free = [d for d in range(q.ndim) if d not in (*summed, *batch, member)]
    if any(d < member for d in free):
        order = (*batch, member, *(d for d in range(q.ndim) if d not in (*batch, member)))
        q = lax.transpose(q, order)
        summed, batch = tuple(map(order.index, summed)), tuple(map(order.index, batch))
    y = lax.dot_general(q, k, ((summed, inward), (batch, others)), **dict(how))
    rank = len(batch)
    middle = rank + 1 + len(free)
    pair = (place, rank) if within else (rank, place)
    batches = [d for b in range(rank) for d in (pair if b == place else (b,))]
    ours, theirs = range(rank + 1, middle), range(middle, y.ndim)
    y = lax.transpose(y, (*batches, *ours, *theirs) if first else (*batches, *theirs, *ours))
    return lax.reshape(y, shape)


RULES: Final[tuple[Rule, ...]] = (flat_product, grouped_product)
