"""What has to be known of weights before a program can be written: their ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.numerics.low_rank_budget import Array, Curve, allocate, rank_of_energy
from lepton_jax.passes._weights.iterations import lift_sums, lift_weight, same_in_loops
from lepton_jax.passes._weights.lifting import depth, in_branch
from lepton_jax.passes._weights.moments import HessianSeen
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes.compress._low_rank.choosing import Choice, cheapest, rounded, static_rank
from lepton_jax.passes.compress._low_rank.form import Factors, Form, make_factors
from lepton_jax.rewrite import PassContext, Watch, over_loops, rewrite
from lepton_jax.rewrite.replacement import write_before

if TYPE_CHECKING:
    from lepton_jax.passes.compress.low_rank import LowRank

RULE: Final = "low-rank-weight"

CHOSEN: Final = "weight-low-rank"
"""The kind of what says how a weight is written: an array without elements, whose shape is the number of the
form, the rank, and what the reason is where the rank is 0. Shapes stay known when arrays are forgotten."""

FIXED: Final = "low-rank-factors"
"""The kind of factors that training leaves alone."""

FACTORS: Final = "weight-factors"

ADAPTERS: Final = "weight-adapters"

State = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Place:
    """A use of a weight, as calibration sees it.

    Attributes:
        name: of the use.
        forms: it may take.
        loops: it stands in.
        hessian: what sees its inputs; None: they are not looked at.
        is_faster: whether a choice is faster than the weight as it is.
    """

    name: str
    forms: tuple[Form, ...]
    loops: int
    hessian: HessianSeen | None
    is_faster: Callable[[Choice], bool]


@dataclass(frozen=True, eq=False)
class RanksSeen:
    """The weights of all uses, and the second moments of their inputs, and what is made of them.

    Attributes:
        places: the uses.
        settings: of the pass.
    """

    places: tuple[Place, ...]
    settings: LowRank

    def merge(self, left: State, right: State) -> State:
        """The state after both; weights do not change from batch to batch."""
        return [
            {name: array if name == "weight" else array + b[name] for name, array in a.items()}
            for a, b in zip(left, right, strict=True)
        ]

    def check(self, state: State, name: str) -> None:
        """Raise ValueError where a weight is not finite, or inputs are not or were not seen."""
        for place, seen in zip(self.places, state, strict=True):
            if not bool(jnp.isfinite(seen["weight"]).all()):
                raise ValueError(f"{place.name} has NaN or infinite elements and has no low rank")
            if bad := float(jnp.sum(seen.get("nonfinite", 0.0))):
                raise ValueError(f"{place.name}: calibration saw {bad:.0f} inputs with NaN or infinities")
            if not float(jnp.sum(seen.get("rows", 1.0))):
                raise ValueError(
                    f"{place.name}: calibration saw no input; give it batches that reach this place"
                )

    def result(self, state: State) -> Mapping[tuple[str, str], tuple[jax.Array, ...]]:
        """How each use is written, by its name, and what that takes."""
        found: dict[tuple[str, str], tuple[jax.Array, ...]] = {}
        for place, seen, chosen in zip(self.places, state, self._choose(state), strict=True):
            form, rank, reason = chosen
            found[place.name, CHOSEN] = (jnp.zeros((form, rank, reason, 0)),)
            if not rank:
                continue
            if place.hessian is not None:
                found[place.name, "hessian"] = (seen["matrix"],)
            if self.settings.train != "none":
                found.update(self._trained(place, seen, place.forms[form], rank))
        return found

    def _trained(
        self, place: Place, seen: Mapping[str, Any], form: Form, rank: int
    ) -> dict[tuple[str, str], Factors]:
        """The factors that training starts from."""
        factors = _factors(place, seen, form, rank)
        if self.settings.train == "factors":
            return {(place.name, FACTORS): factors}
        fewer = max(rank - self.settings.adapters, 1)
        fixed, rest = over_loops(lambda *each: form.parted(each, fewer), place.loops)(*factors)
        return {(place.name, FIXED): fixed, (place.name, ADAPTERS): rest}

    def _choose(self, state: State) -> list[tuple[int, int, int]]:
        """Of each use the number of the form, the rank, and where it is 0 which of `REASONS` is why."""
        if self.settings.budget:
            return self._by_budget(state)
        return [self._one(place, seen) for place, seen in zip(self.places, state, strict=True)]

    def _one(self, place: Place, seen: Mapping[str, Any]) -> tuple[int, int, int]:
        settings, known = self.settings, len(place.forms) == 1 and not self.settings.energy
        options = []
        for number, form in enumerate(place.forms):
            if settings.rank and number:
                break  # ranks of several forms say nothing of each other
            errors = np.zeros(form.most + 1) if known else _errors(place, seen, form)
            rank = static_rank(form, settings)
            if rank is None:
                rank = rounded(rank_of_energy(errors, settings.energy), form, settings)
            cost = form.costs(settings.count)[rank] / form.whole(settings.count) if rank else math.inf
            order = (cost, errors[rank]) if settings.energy else (errors[rank], cost)
            if rank:
                options.append((number, rank, *order))
        if not options:
            return 0, 0, 0
        form_number, rank = cheapest(options)
        return self._if_faster(place, form_number, rank)

    def _if_faster(self, place: Place, number: int, rank: int) -> tuple[int, int, int]:
        if place.is_faster(Choice(place.forms[number], rank)):
            return number, rank, 0
        return number, 0, 1

    def _by_budget(self, state: State) -> list[tuple[int, int, int]]:
        """Forms and ranks of all together; a weight as it is is among the choices."""
        settings, curves, choices = self.settings, [], []
        total = 0.0
        for place, seen in zip(self.places, state, strict=True):
            whole = place.forms[0].whole(settings.count)
            layers = math.prod(seen["weight"].shape[: place.loops])
            total += layers * whole
            costs, errors, mine = [layers * whole], [0.0], [(0, 0, 0)]
            for number, form in enumerate(place.forms):
                lost = _errors(place, seen, form)
                cost = form.costs(settings.count)
                ranks = {rounded(rank, form, settings) for rank in range(1, form.most + 1)} - {0}
                mine += [(number, rank, 0) for rank in sorted(ranks)]
                costs += [layers * cost[rank] for rank in sorted(ranks)]
                errors += [lost[rank] for rank in sorted(ranks)]
            curves.append(Curve(np.array(costs), np.array(errors)))
            choices.append(mine)
        found = allocate(curves, settings.budget * total)
        chosen = [mine[i] for mine, i in zip(choices, found, strict=True)]
        return [
            self._if_faster(place, number, rank) if rank else (0, 0, 2)
            for place, (number, rank, _) in zip(self.places, chosen, strict=True)
        ]


def _factors(place: Place, seen: Mapping[str, Any], form: Form, rank: int) -> Factors:
    """The factors of what was seen, for all layers."""
    arrays = [seen[name] for name in ("weight", "matrix") if name in seen]
    found: Factors = _all_factors(*arrays, form=form, rank=rank, loops=place.loops)
    return found


@partial(jax.jit, static_argnames=("form", "rank", "loops"))
def _all_factors(*arrays: jax.Array, form: Form, rank: int, loops: int) -> Factors:
    found: Factors = over_loops(partial(make_factors, form=form, rank=rank), loops)(*arrays)
    return found


def _errors(place: Place, seen: Mapping[str, Any], form: Form) -> Array:
    """The error that each rank of a form leaves, of all layers together."""
    arrays = [seen[name] for name in ("weight", "matrix") if name in seen]
    return form.errors(_all_spectra(*arrays, form=form, loops=place.loops))


@partial(jax.jit, static_argnames=("form", "loops"))
def _all_spectra(*arrays: jax.Array, form: Form, loops: int) -> Factors:
    def one(weight: jax.Array, *hessian: jax.Array) -> Factors:
        return form.spectra(weight, hessian[0] if hessian else None)

    found: Factors = over_loops(one, loops)(*arrays)
    return found


def watch(
    uses: Sequence[WeightUse],
    forms: Sequence[Sequence[Form]],
    hessians: Sequence[HessianSeen | None],
    is_faster: Sequence[Callable[[Choice], bool]],
    graph: Graph,
    settings: LowRank,
    ctx: PassContext,
) -> dict[str, str]:
    """Let calibration see weights and inputs; returns why it cannot, by the names of the uses."""
    assert ctx.watches is not None
    left: dict[str, str] = {}
    places, state, outputs = [], [], []
    for use, mine, hessian, faster in zip(uses, forms, hessians, is_faster, strict=True):
        region = use.node.graph
        assert region is not None
        loops = "it is in a cond" if in_branch(region) else depth(region)
        if isinstance(loops, str):
            left[use.name] = loops
            continue
        same = same_in_loops(use.weight, region)
        places.append(Place(use.name, tuple(mine), loops - sum(same), hessian, faster))
        values = {"weight": lift_weight(use.weight, region, same)}
        if hessian is not None:
            moments = lift_sums(_moments(use, hessian), region, same)
            values |= dict(zip(_MOMENTS, moments, strict=True))
        state.append(dict.fromkeys(values))
        outputs += [values[name] for name in sorted(values)]
    if places:
        graph.set_outputs([*graph.outputs, *outputs])
        kind = CHOSEN if all(hessian is None for hessian in hessians) else "low-rank"
        tree = jax.tree.structure([dict.fromkeys(each, 0) for each in state])
        seen = RanksSeen(tuple(places), settings)
        ctx.watches.append(Watch(str(settings), kind, seen, tree, len(outputs), 0))
    return left


_MOMENTS: Final = ("matrix", "rows", "nonfinite")


def _moments(use: WeightUse, hessian: HessianSeen) -> list[Value]:
    return write_before(rewrite(_see, use.other, watcher=hessian), use.node, RULE)


def _see(x: jax.Array, *, watcher: HessianSeen) -> tuple[jax.Array, ...]:
    return tuple(watcher.see(x))
