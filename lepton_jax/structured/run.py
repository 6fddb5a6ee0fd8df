"""How `structured_prune` decides what goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.cost import seconds
from lepton_jax.ir.cutting import Cut, cut_cost
from lepton_jax.ir.dimensions import Group, Slice
from lepton_jax.numerics.group_importance import MEASURES, relative, taylor, unit_slices
from lepton_jax.rewrite import UsageError
from lepton_jax.structured.choice import Budget, Candidate, Limits, Ranking, Units, choose, meet
from lepton_jax.structured.depth import Depth, less_depth
from lepton_jax.structured.depth_importance import DepthImportance
from lepton_jax.structured.report import GroupReport, StructuredReport
from lepton_jax.structured.smaller import Change, KeptIndices, Program
from lepton_jax.structured.subject import Subject
from lepton_jax.targets import Target

Array: TypeAlias = "np.ndarray[Any, Any]"
Importance: TypeAlias = (
    Literal["magnitude", "l1", "taylor", "random"] | Callable[[Group, Sequence[Array]], Any]
)
Ratio: TypeAlias = float | Mapping[str, float] | None
Costs: TypeAlias = Mapping[str, float]

_MOST_ALONE: Final = 64
"""Of so many groups the report says what each saves alone."""


@dataclass(frozen=True)
class Asked:
    """The arguments of `structured_prune`."""

    ratio: Ratio
    budget: Budget | None
    importance: Importance
    loss: Callable[..., Any] | None
    batches: Sequence[tuple[Any, ...]] | None
    ranking: Ranking
    limits: Limits
    protect: tuple[str, ...]
    only: tuple[str, ...]
    depth: float | None
    depth_importance: DepthImportance
    target: Target
    seed: int

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: the first such argument, with what it may be.
        """
        if (self.ratio is not None) + (self.budget is not None) + (self.depth is not None) == 0:
            raise UsageError("structured_prune wants ratio=, budget= or depth=")
        if self.ratio is not None and self.budget is not None:
            raise UsageError("give ratio= or budget=, not both")
        ratios = self.ratio.values() if isinstance(self.ratio, Mapping) else [self.ratio or 0.0]
        if any(isinstance(each, str) or not 0 <= each < 1 for each in cast("Iterable[Any]", ratios)):
            raise UsageError(f"ratio={self.ratio!r} is the share of units that goes, from 0 to below 1")
        if isinstance(self.ratio, Mapping) and self.ranking != "group":
            raise UsageError("ratios by patterns need ranking='group'")
        for name, given, known in (
            ("importance", self.importance, (*MEASURES, "taylor", "random")),
            ("ranking", self.ranking, ("group", "global")),
            ("depth_importance", self.depth_importance, ("angle", "change", "loss")),
        ):
            if not callable(given) and given not in known:
                raise UsageError(f"{name} is one of {', '.join(known)}, not {given!r}")
        needs = ["importance='taylor'"] if self.importance == "taylor" else []
        if self.depth is not None and self.depth_importance == "loss":
            needs.append("depth_importance='loss'")
        if needs and (self.loss is None or not self.batches):
            raise UsageError(f"{needs[0]} needs loss=function of (params, *batch) and batches=")
        if self.depth is not None and self.batches is not None and not self.batches:
            raise UsageError("batches= is empty: depth is measured with at least one")
        if self.limits.round_to % 1 or self.limits.round_to < 1 or self.limits.least <= 0:
            raise UsageError(
                "round_to is a whole number from 1 and least above 0, "
                f"not {self.limits.round_to} and {self.limits.least}"
            )
        if self.depth is not None and self.depth < 0:
            raise UsageError(f"depth={self.depth}: blocks to leave out, or a share below 1")


class Pruning:
    """One run of `structured_prune`.

    Args:
        model: what is pruned.
        asked: what the user wants.
    """

    def __init__(self, model: Subject, asked: Asked) -> None:
        self.model, self.asked = model, asked

    def run(self) -> tuple[Change, StructuredReport]:
        """What becomes of the parameters, and the report."""
        asked, model = self.asked, self.model
        protected = {
            place: f"{each!r} protects it"
            for each in asked.protect
            for place in model.places(each, "protect")
        }
        whole = program = model.trace(protect=protected)
        depth = Depth(model.change({}), ())
        if asked.depth is not None:
            depth = less_depth(model, whole, asked.depth, asked.depth_importance, asked.loss, asked.batches)
            program = model.trace(protect=protected, dropped=depth.change.dropped)
        before = self._costs(whole, {})
        start = {key: kept for key, kept in depth.change.kept.items() if key[0] not in depth.change.gone}
        candidates = self._candidates(program)
        chosen, missed = self._choose(program, candidates, start, before, depth.change)
        kept = with_units(program, start, chosen)
        change = model.change({**depth.change.kept, **kept}, depth.change.dropped)
        after = self._costs(program, kept, depth.change)
        groups = (*depth.groups, *self._groups(program, chosen, kept, start, depth))
        return change, StructuredReport(groups, before, after, asked.target.name, missed)

    def _costs(self, program: Program, kept: KeptIndices, depth: Change | None = None) -> dict[str, float]:
        """Flops, parameters and predicted seconds of a program of which this is kept."""
        cost = cut_cost(program.graph, Cut.found(program.found, kept))
        gone = {} if depth is None else {k: each for k, each in depth.kept.items() if k[0] in depth.gone}
        sizes = self.model.change({**gone, **kept}).sizes()
        return {
            "flops": cost.flops,
            "parameters": float(sum(sizes)),
            "time": seconds(cost, self.asked.target),
        }

    # Width

    def _candidates(self, program: Program) -> list[Candidate]:
        """The groups that the user lets be cut, with the importance of their units.

        Raises:
            UsageError: there are none, but a ratio or a budget was asked for.
        """
        asked = self.asked
        if asked.ratio is None and asked.budget is None:
            return []
        groups = [group for group in program.found.cuttable if group.kind == "channels" and group.units > 1]
        if asked.only:
            chosen = {place for each in asked.only for place in self.model.places(each, "only")}
            groups = [group for group in groups if _touches(group, chosen)]
        ratios: dict[int, float] = {}
        if isinstance(asked.ratio, Mapping):
            for pattern, ratio in asked.ratio.items():
                places = set(self.model.places(pattern, "ratio"))
                ratios.update({i: ratio for i, group in enumerate(groups) if _touches(group, places)})
            order = sorted(ratios)
            groups, ratios = [groups[i] for i in order], dict(enumerate(ratios[i] for i in order))
        if not groups:
            picked = asked.only or isinstance(asked.ratio, Mapping)
            what = "nothing of what only= and ratio= choose" if picked else "nothing"
            raise UsageError(f"{what} can be cut:\n{program.found}")
        scores = self._scores(groups)
        for group, each in zip(groups, scores, strict=True):
            if np.isnan(each).any():
                raise UsageError(f"the importance of {group.name} is NaN for {np.isnan(each).sum()} units")
        return [
            Candidate(group, each, ratios.get(i))
            for i, (group, each) in enumerate(zip(groups, scores, strict=True))
        ]

    def _scores(self, groups: Sequence[Group]) -> list[Array]:
        asked, leaves = self.asked, self.model.leaves
        if asked.importance == "random":
            rng = np.random.default_rng(asked.seed)
            return [rng.random(group.units) for group in groups]
        if asked.importance == "taylor":
            return self._taylor(groups)
        if callable(asked.importance):
            found = [
                np.asarray(asked.importance(group, _slices(group.params, leaves)), np.float64)
                for group in groups
            ]
            for group, each in zip(groups, found, strict=True):
                if each.shape != (group.units,):
                    raise UsageError(
                        f"importance gave {each.shape} for {group.name}, which has {group.units} units"
                    )
            return found
        measure = MEASURES[asked.importance]
        scores = [measure(_slices(_weights(group, leaves), leaves)) for group in groups]
        return [relative(each) for each in scores] if asked.ranking == "global" else scores

    def _taylor(self, groups: Sequence[Group]) -> list[Array]:
        """The mean over batches; arrays that are not differentiated do not count."""
        asked, leaves = self.asked, self.model.leaves
        assert asked.loss is not None and asked.batches
        floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
        structure = jax.tree.structure(self.model.shapes)

        def of_floats(given: list[Any], *batch: Any) -> Any:
            every = list(leaves)
            for i, leaf in zip(floats, given, strict=True):
                every[i] = leaf
            return asked.loss(jax.tree.unflatten(structure, every), *batch)  # type: ignore[misc]

        gradient = jax.jit(jax.grad(of_floats))
        totals = [np.zeros(group.units) for group in groups]
        for batch in asked.batches:
            found = gradient([leaves[i] for i in floats], *batch)
            products = {
                i: np.asarray(leaves[i], np.float64) * np.asarray(g, np.float64)
                for i, g in zip(floats, found, strict=True)
            }
            for total, group in zip(totals, groups, strict=True):
                total += taylor(
                    [
                        unit_slices(products[s.position], s.dim, s.positions)
                        for s in group.params
                        if s.position in products
                    ]
                )
        return [total / len(asked.batches) for total in totals]

    def _choose(
        self,
        program: Program,
        candidates: Sequence[Candidate],
        start: KeptIndices,
        before: Costs,
        depth: Change,
    ) -> tuple[dict[str, Units], str | None]:
        """The units that stay, by group, and what of the budget is missed."""
        asked = self.asked

        def choice(share: float) -> dict[str, Units]:
            return choose(candidates, share, asked.ranking, asked.limits)

        budget = asked.budget
        if budget is None:
            ratio = asked.ratio
            return choice(0.0 if ratio is None or isinstance(ratio, Mapping) else ratio), None

        def excess(chosen: Mapping[str, Units]) -> float:
            return budget.excess(self._costs(program, with_units(program, start, chosen), depth), before)

        best = meet(choice, excess)
        over = excess(best)
        return best, None if over <= 0 else f"{budget.text} is missed by {over:.1%}: no more units can go"

    def _groups(
        self,
        program: Program,
        chosen: Mapping[str, Units],
        kept: KeptIndices,
        start: KeptIndices,
        depth: Depth,
    ) -> list[GroupReport]:
        """What is reported of groups of units; layers and left-out blocks have their own reports."""
        told = {each.name for each in depth.groups}
        sizes = self.model.change(kept).sizes(), self.model.change({}).sizes()
        whole = self._costs(program, start, depth.change)
        found = []
        for group in program.found.groups:
            arrays = {each.position for each in group.params}
            if group.name in told or arrays <= depth.change.gone:
                continue
            saved = None
            if group.name in chosen and len(chosen) <= _MOST_ALONE:
                units = with_units(program, start, {group.name: chosen[group.name]})
                alone = self._costs(program, units, depth.change)
                saved = {what: 1 - alone[what] / whole[what] if whole[what] else 0.0 for what in alone}
            stays = len(chosen.get(group.name, range(group.units)))
            counted = sum(sizes[1][i] for i in arrays), sum(sizes[0][i] for i in arrays)
            found.append(
                GroupReport(group.name, group.kind, group.units, stays, group.pinned, counted, saved)
            )
        return found


def with_units(
    program: Program, start: KeptIndices, chosen: Mapping[str, Units]
) -> dict[tuple[int, int], Units]:
    """What stays of parameters where these units of groups stay; of other dimensions what stayed already."""
    return {**start, **program.found.select(chosen)}


def _touches(group: Group, places: set[tuple[int, int]]) -> bool:
    return any((each.position, each.dim) in places for each in group.params)


def _weights(group: Group, leaves: Sequence[Any]) -> Sequence[Slice]:
    """The slices of arrays of two dimensions or more; all where there are none."""
    return [each for each in group.params if np.ndim(leaves[each.position]) > 1] or group.params


def _slices(slices: Sequence[Slice], leaves: Sequence[Any]) -> list[Array]:
    return [unit_slices(leaves[each.position], each.dim, each.positions) for each in slices]
