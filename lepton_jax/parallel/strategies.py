"""Strategies: which mesh axes split which factor of an operation, and which of them XLA takes.

A strategy puts each mesh axis on at most one factor. Operands and results then lie as their dimensions'
factors are split; an axis on a factor that no result has leaves parts of a sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.factors import Dims, factor_axes, factors_of
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.placing import Axes, Rule, built, ordered
from lepton_jax.parallel.placing import Strategy as Strategy
from lepton_jax.parallel.resharding import reshard


def strategies(node: Node, mesh: MeshSpec) -> list[Strategy]:
    """All ways to compute a leaf node in even parts, those that gain nothing left out.

    Equal operations on equal shapes share the list: a model's layers cost once.

    Args:
        node: a node without regions.
        mesh: its axes of size 1 are left out.

    Returns:
        first the one that splits nothing.
    """
    return list(_strategies(Rule.of(factors_of(node)), mesh))


@lru_cache(maxsize=4096)
def _strategies(rule: Rule, mesh: MeshSpec) -> tuple[Strategy, ...]:
    names = [axis.name for axis in mesh.axes if axis.size > 1]
    places: list[int | frozenset[int] | None] = [None]
    places += [f for f in range(len(rule.sizes)) if f not in rule.whole]
    places += rule.linear
    best: dict[tuple[tuple[Layout, ...], tuple[Layout, ...]], Strategy] = {}
    for chosen in itertools.product(places, repeat=len(names)):
        axes: list[tuple[str, ...]] = [()] * len(rule.sizes)
        parts: dict[frozenset[int], tuple[str, ...]] = {}
        for name, place in zip(names, chosen, strict=True):
            if isinstance(place, int):
                axes[place] += (name,)
            elif place is not None:
                parts[place] = (*parts.get(place, ()), name)
        found = built(rule, tuple(axes), mesh, parts)
        if found is None:
            continue
        key = found.operands, found.results
        if key not in best or found.share < best[key].share:
            best[key] = found
    return tuple(best.values())


def cheapest(
    node: Node, operands: Sequence[Layout], results: Sequence[Layout], mesh: MeshSpec
) -> tuple[Strategy, tuple[Collective, ...]]:
    """How XLA's partitioner computes a node whose operands lie so and whose results shall lie so.

    What sums over nothing (elementwise operations, transposes, slices) follows its results. Of reductions,
    products and convolutions each mesh axis splits the factor that it splits in the most arrays; where
    several are equal, what moves the fewest bytes, and of such what each device does least of. A look-up may
    leave its table as it lies as well, if that moves fewer bytes.

    Args:
        node: a node without regions.
        operands: how each operand lies; may be parts of a sum.
        results: how each result shall lie.
        mesh: the mesh.

    Returns:
        the strategy, and the collectives that bring the operands where it needs them and its results where
        they shall be.

    Example:
        `[data, -] @ [data, -]` to `[data, -]`, as in FSDP, gathers the second operand over `data`.
    """
    rule = Rule.of(factors_of(node))
    avals = tuple(_key(value.aval) for value in (*node.operands, *node.results))
    return _cheapest(rule, avals, tuple(operands), tuple(results), mesh, node.op == "gather")


def as_given(node: Node, operands: Sequence[Layout], mesh: MeshSpec) -> Strategy | None:
    """The strategy that takes a node's operands just as they lie, or None where there is none."""
    rule = Rule.of(factors_of(node))
    given = [
        _followed(rule, dims, layout, mesh) for dims, layout in zip(rule.operands, operands, strict=True)
    ]
    found = built(rule, _merged(rule, given, mesh), mesh)
    return found if found is not None and found.operands == tuple(operands) else None


@dataclass(frozen=True, slots=True)
class _Aval:
    shape: tuple[int, ...]
    dtype: Any


def _key(aval: Any) -> _Aval:
    return _Aval(tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None))


@lru_cache(maxsize=16384)
def _cheapest(
    rule: Rule,
    avals: tuple[_Aval, ...],
    operands: tuple[Layout, ...],
    results: tuple[Layout, ...],
    mesh: MeshSpec,
    is_lookup: bool,
) -> tuple[Strategy, tuple[Collective, ...]]:
    best: tuple[tuple[float, float], Strategy, tuple[Collective, ...]] | None = None
    for strategy in _candidates(rule, operands, results, mesh, is_lookup):
        moves = _moves(avals, operands, results, strategy, mesh)
        if moves is None:
            continue
        cost = (sum(each.sent(mesh) for each in moves), strategy.share)
        if best is None or cost < best[0]:
            best = cost, strategy, moves
    assert best is not None  # splitting nothing is always possible
    return best[1], best[2]


def _moves(
    avals: tuple[_Aval, ...],
    operands: tuple[Layout, ...],
    results: tuple[Layout, ...],
    strategy: Strategy,
    mesh: MeshSpec,
) -> tuple[Collective, ...] | None:
    before = (*operands, *strategy.results)
    after = (*strategy.operands, *(layout.complete() for layout in results))
    found: list[Collective] = []
    for aval, have, want in zip(avals, before, after, strict=True):
        if have == want or aval.dtype is None:
            continue
        if not set(want.partial) <= set(have.partial):
            return None
        found += reshard(aval, have, want, mesh, even=True)
    return tuple(found)


def _candidates(
    rule: Rule, operands: tuple[Layout, ...], results: tuple[Layout, ...], mesh: MeshSpec, is_lookup: bool
) -> Iterable[Strategy]:
    """The ways that XLA considers, those it prefers first."""
    following = [
        _followed(rule, dims, layout, mesh) for dims, layout in zip(rule.results, results, strict=True)
    ]
    given = [
        _followed(rule, dims, layout, mesh) for dims, layout in zip(rule.operands, operands, strict=True)
    ]
    wanted: Iterable[Axes]
    if rule.reduced:
        wanted = [*_elected(rule, [*given, *following], mesh)]
        wanted += [_merged(rule, [*given, *following], mesh)] if is_lookup else []
    else:
        wanted = [_merged(rule, following, mesh), *following[:1]]
    seen: dict[Strategy, None] = {}
    for axes in wanted:
        if (found := built(rule, axes, mesh)) is not None:
            seen.setdefault(found)
    if not seen:
        whole = built(rule, ((),) * len(rule.sizes), mesh)
        assert whole is not None
        seen[whole] = None
    return [*seen, *_partials(rule, operands, mesh, list(seen))]


def _elected(rule: Rule, votes: Sequence[Axes], mesh: MeshSpec) -> Iterable[Axes]:
    """Each mesh axis splits the factor that it splits in the most arrays; all ways where several are equal.

    So a product whose operands are both split along what is summed over makes parts of sums, wherever its
    result shall lie; and a weight that lies along the axes of the batch is gathered, since operand and result
    both have the batch.
    """
    choices: list[list[tuple[str, int]]] = []
    for name in mesh.names:
        counts: dict[int, int] = {}
        for vote in votes:
            for factor, names in enumerate(vote):
                if name in names:
                    counts[factor] = counts.get(factor, 0) + 1
        if counts:
            most = max(counts.values())
            choices.append([(name, factor) for factor, count in counts.items() if count == most])
    order: dict[int, list[tuple[str, ...]]] = {}
    for vote in votes:
        for factor, names in enumerate(vote):
            if names:
                order.setdefault(factor, []).append(names)
    for chosen in itertools.product(*choices):
        axes: list[tuple[str, ...]] = [()] * len(rule.sizes)
        for factor in dict.fromkeys(factor for _, factor in chosen):
            mine = {name for name, where in chosen if where == factor}
            known = next((names for names in order[factor] if mine <= set(names)), mesh.names)
            axes[factor] = tuple(name for name in known if name in mine)
        yield tuple(axes)


def _partials(
    rule: Rule, operands: tuple[Layout, ...], mesh: MeshSpec, known: list[Strategy]
) -> list[Strategy]:
    """Those of the known ways in which parts of sums come in and parts of sums go out."""
    names = {name for layout in operands for name in layout.partial}
    parts: dict[frozenset[int], tuple[str, ...]] = {}
    for name in ordered(names, mesh):
        holders = frozenset(i for i, layout in enumerate(operands) if name in layout.partial)
        if holders in rule.linear:
            parts[holders] = (*parts.get(holders, ()), name)
    if not parts:
        return []
    free = {name for each in parts.values() for name in each}
    found = []
    for strategy in known:
        if not free & {name for axes in strategy.axes for name in axes}:
            with_parts = built(rule, strategy.axes, mesh, parts)
            found += [with_parts] if with_parts is not None else []
    return found


def _followed(rule: Rule, dims: Dims, layout: Layout, mesh: MeshSpec) -> Axes:
    """The axes that each factor has where an array of these dimensions lies so."""
    sizes = {axis.name: axis.size for axis in mesh.axes}
    real = [tuple(name for name in names if sizes[name] > 1) for names in layout.dims]
    found = factor_axes(dims, real, rule.factors, sizes)
    return tuple(found.get(factor, ()) for factor in range(len(rule.sizes)))


def _merged(rule: Rule, wanted: Sequence[Axes], mesh: MeshSpec) -> Axes:
    """The first's axes, and of the others those that it has not and that fit."""
    axes: list[tuple[str, ...]] = [()] * len(rule.sizes)
    used: set[str] = set()
    for each in wanted:
        for factor, names in enumerate(each):
            if any(name in used for name in names) and names != axes[factor]:
                names = tuple(name for name in names if name not in used)
            if not names or axes[factor] == names:
                continue
            if rule.sizes[factor] % mesh.size(*axes[factor], *names) == 0:
                axes[factor] += names
                used.update(names)
    return tuple(axes)
