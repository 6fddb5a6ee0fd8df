"""Several weights ranked together: by one computation at the top of the program, before the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.binding import unnamed
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.numerics.masks import Unstructured, global_masks
from lepton_jax.passes.prune._prune.masking import How
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "ranked-together"


def move_before(values: Sequence[Value], at: Node) -> None:
    """Let values of parameters alone be computed before a node of their graph."""
    graph = at.graph
    assert graph is not None
    needed: set[Node] = set()
    work = [value.node for value in values]
    while work:
        node = work.pop()
        if node is not None and node not in needed:
            needed.add(node)
            work += [operand.node for operand in node.operands]
    later = False
    for node in list(graph):
        later |= node is at
        if later and node in needed:
            graph.move(node, at)


def first_of(nodes: Sequence[Node], graph: Graph) -> Node:
    """Of some nodes of a graph the first."""
    wanted = set(nodes)
    return next(node for node in graph if node in wanted)


def masks_of(
    weights: Sequence[Value], seen: Sequence[Sequence[Value]], hows: Sequence[How], sparsity: float, at: Node
) -> list[Value]:
    """Masks of weights that are ranked together, by what is computed before a node."""
    return _written(_masks, weights, seen, hows, sparsity, at)


def shares_of(
    weights: Sequence[Value], seen: Sequence[Sequence[Value]], hows: Sequence[How], sparsity: float, at: Node
) -> list[Value]:
    """The share of each weight that goes, such that little is lost of all their results."""
    return _written(_shares, weights, seen, hows, sparsity, at)


def _written(
    fun: Callable[..., list[jax.Array]],
    weights: Sequence[Value],
    seen: Sequence[Sequence[Value]],
    hows: Sequence[How],
    sparsity: float,
    at: Node,
) -> list[Value]:
    move_before([*weights, *(value for some in seen for value in some)], at)
    counts = tuple(len(some) for some in seen)
    values = [value for some in seen for value in some]
    made = rewrite(fun, *weights, *values, hows=tuple(hows), counts=counts, sparsity=sparsity)
    return write_before(made, at, RULE)


def _scores(arrays: Sequence[jax.Array], hows: tuple[How, ...], counts: tuple[int, ...]) -> list[jax.Array]:
    """How much each weight matters: its size, or where inputs are known its part of the result's square."""
    rest = list(map(unnamed, arrays[len(hows) :]))
    found = []
    for weight, how, count in zip(arrays, hows, counts, strict=False):
        scores = how.matrices.of(jnp.abs(weight).astype(jnp.float32))
        if count:
            some, rest = rest[:count], rest[count:]
            squares = jnp.square(scores * how.matrices.norms(sum(some[1:], some[0]), how.space)[..., None])
            total = jnp.sum(squares)
            scores = squares / jnp.where(total > 0, total, 1.0)
        found.append(scores)
    return found


def _masks(
    *arrays: jax.Array, hows: tuple[How, ...], counts: tuple[int, ...], sparsity: float
) -> list[jax.Array]:
    scores = _scores(arrays, hows, counts)
    kept = global_masks(scores, sparsity, hows[0].pattern)
    return [how.matrices.back(mask) for how, mask in zip(hows, kept, strict=True)]


def _shares(
    *arrays: jax.Array, hows: tuple[How, ...], counts: tuple[int, ...], sparsity: float
) -> list[jax.Array]:
    kept = global_masks(_scores(arrays, hows, counts), sparsity, Unstructured())
    return [1 - jnp.mean(mask, dtype=jnp.float32) for mask in kept]
