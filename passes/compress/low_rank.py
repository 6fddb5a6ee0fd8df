"""Weights as products of thin factors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, Literal

from lepton_jax.ir.binding import store
from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.shards import shard_maps_around
from lepton_jax.numerics.formats import get_format
from lepton_jax.passes._weights.iterations import same_in_loops
from lepton_jax.passes._weights.lifting import found_by_calibration, loop_lengths
from lepton_jax.passes._weights.moments import hessian_seen
from lepton_jax.passes._weights.on_shards import why_not_on_shards
from lepton_jax.passes._weights.selecting import WeightPass
from lepton_jax.passes._weights.uses import WeightUse, layers_of
from lepton_jax.passes.compress._low_rank.choosing import (
    NO_CHEAPER,
    NO_FASTER,
    REASONS,
    Choice,
    forms_of,
    pays,
    static_rank,
)
from lepton_jax.passes.compress._low_rank.form import Form, apply_factors, join, make_factors
from lepton_jax.passes.compress._low_rank.ranks import ADAPTERS, CHOSEN, FACTORS, FIXED, RULE, watch
from lepton_jax.passes.compress._low_rank.residual import Residual, residual_of, write_residual
from lepton_jax.rewrite import PassContext, UsageError, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write, write_before

_ENERGY: Final = 0.95
"""What is kept where nothing is said: this share of the squared singular values."""

_NOT_ON_SHARDS: Final = "in a shard_map weights are not known beforehand: say rank= or ratio=, without more"


@dataclass(frozen=True)
class LowRank(WeightPass):
    """Products, convolutions and tables on thin factors of their weights.

    Before:
        %2: f32[8,512] = dot_general %x %w                               w: f32[512, 512]
    After:
        %a: f32[512,64], %b: f32[64,512] = SVD of %w          (of parameters alone: `prepare`)
        %1: f32[8,64] = dot_general %x %a;  %2 = dot_general %1 %b

    One of `rank`, `ratio`, `energy` and `budget` says how much is kept; without any, `energy=0.95`. The last
    two need the weights themselves before the program is written: `lepton.compile` and `lepton.trainable`
    hand them over. A weight whose factors are not cheaper stays as it is, and the report says so. In a
    `shard_map` each device has factors of its own part, of a `rank` or `ratio`.
    Approximate; it runs when it is named.

    Attributes:
        rank: of every weight.
        ratio: the share of its cost that every weight keeps at most, at rank 1 or more.
        energy: every weight has the lowest rank that keeps this share of its squared singular values.
        budget: the share of their cost that all weights together keep at most; those that lose least by it
            have the lowest ranks.
        count: what cost is: `parameters`, or `flops`.
        form: of convolutions: `channel` (a kernel with fewer outputs, then 1×1), `spatial` (k×1, then 1×k),
            `tucker` (1×1, a kernel with fewer inputs and outputs, 1×1); `auto`: where the weights are known,
            the one that loses least.
        weigh: `hessian`: the error is that of the outputs, by what calibration saw of the inputs (SVD-LLM,
            arXiv:2403.07378); `none`: of the weights.
        goal: `faster`: only where the target's cost model says that factors are faster; `smaller`: wherever
            they are cheaper.
        multiple: ranks are multiples of this.
        residual: a format, see `lepton_jax.numerics.formats`: what factors of the `rank` leave is kept in
            such codes beside them (SVDQuant, arXiv:2411.05007; LQ-LoRA, arXiv:2311.12023); `none`: it goes.
        group: of the residual: so many elements along the contracted axis share a scale; 0: all of a channel.
        train: see `lepton.trainable`. `factors`: they are trained in the weights' place; `adapters`: they
            stay as they are, and so many of their last vectors are trained.
        adapters: how many.

    Raises:
        UsageError: no parameters are named, a selector chooses nothing, or the weights are needed and not
            known.
        ValueError: more than one of `rank`, `ratio`, `energy` and `budget`, or a value out of range.
    """

    name: ClassVar[str] = "low-rank"
    approximates: ClassVar[bool] = True
    on_shards: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = True

    rank: int = 0
    ratio: float = 0.0
    energy: float = 0.0
    budget: float = 0.0
    count: Literal["parameters", "flops"] = "parameters"
    form: Literal["auto", "channel", "spatial", "tucker"] = "auto"
    weigh: Literal["none", "hessian"] = "none"
    goal: Literal["faster", "smaller"] = "faster"
    multiple: int = 1
    residual: str = "none"
    group: int = 0
    train: Literal["none", "factors", "adapters"] = "none"
    adapters: int = 8

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        given = {name: getattr(self, name) for name in ("rank", "ratio", "energy", "budget")}
        if not any(given.values()):
            object.__setattr__(self, "energy", _ENERGY)
            given["energy"] = _ENERGY
        if sum(value != 0 for value in given.values()) > 1:
            raise ValueError("say one of rank, ratio, energy and budget")
        if self.rank < 0 or self.multiple < 1 or self.adapters < 1:
            raise ValueError("rank, multiple and adapters are positive")
        if any(not 0 <= given[name] <= 1 for name in ("ratio", "energy", "budget")):
            raise ValueError("ratio, energy and budget are parts of the whole: 0 to 1")
        if self.residual != "none":
            get_format(self.residual)
            if not self.rank or self.train != "none":
                raise ValueError("a residual goes with rank, without train")
        if self.train == "adapters" and self.form == "tucker":
            raise ValueError("form=tucker takes train=factors: a sum of two has no such form")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Write what is selected on factors, in program order."""
        found = self.select(graph, ctx)
        forms: list[tuple[WeightUse, list[Form]]] = []
        for use in found.selected:
            mine = forms_of(use, self)
            if isinstance(mine, str):
                self.leave(use, mine, RULE, ctx)
            else:
                forms.append((use, mine))
        if ctx.watches is not None:
            self._watch(forms, graph, ctx)
        else:
            sums = (Counter[str](), Counter[str]())
            for use, mine in forms:
                if reason := self._rewrite(use, mine, sums, ctx):
                    self.leave(use, reason, RULE, ctx)
            self._sum_up(sums[0], sums[1], ctx)
        self.report_rest(found, RULE, ctx)

    def _watch(self, forms: Sequence[tuple[WeightUse, list[Form]]], graph: Graph, ctx: PassContext) -> None:
        """Let calibration see the weights, and keep later passes from taking them."""
        hessians = [hessian_seen(use) if self.weigh == "hessian" else None for use, _ in forms]
        faster = [
            partial(_pays, node=use.node, other=use.other, ctx=ctx, goal=self._goal) for use, _ in forms
        ]
        uses, choices = [use for use, _ in forms], [mine for _, mine in forms]
        left = watch(uses, choices, hessians, faster, graph, self, ctx)
        for use in uses:
            if use.name in left:
                self.leave(use, left[use.name], RULE, ctx)
                if not (self._by_shapes and shard_maps_around(use.node.graph)):
                    continue
            (claimed,) = write_before(rewrite(store, use.weight), use.node, RULE)
            use.node.set_operand(use.side, claimed)
            self.note(use, "seen by calibration", "", ctx)

    def _rewrite(
        self, use: WeightUse, forms: Sequence[Form], sums: Sequence[Counter[str]], ctx: PassContext
    ) -> str | None:
        """Write a use on factors; or why not.

        Args:
            sums: of all uses before and after, to which this one's are added.
        """
        choice: Choice | str = self._choice(use, forms, ctx)
        rest = None if self.residual == "none" else residual_of(use, self, ctx)
        choice, rest = (rest, None) if isinstance(rest, str) else (choice, rest)
        before = _costs(use, forms[0], None)
        sums[0].update(before)
        if isinstance(choice, str) or not ctx.fire(RULE, use.node):
            sums[1].update(before)
            return choice if isinstance(choice, str) else None
        after = _costs(use, choice.form, choice.rank, rest)
        sums[1].update(after)
        extra = f", {self.train} trained" if self.train != "none" else ""
        if rest is not None:
            hessian = self._given(use, "hessian", ctx) if self.weigh == "hessian" else []
            write_residual(use, choice, rest, hessian)
            extra += f", residual {rest.plan.done}"
        else:
            factors = self._factors(use, choice, ctx)
            write(rewrite(apply_factors, use.other, *factors, form=choice.form), use.node, RULE)
        if use.node.graph is not None:
            use.node.graph.erase(use.node)
        self.note(use, f"{choice.form.words(choice.rank)}{extra}: {_became(before, after)}", "", ctx)
        return None

    def _choice(self, use: WeightUse, forms: Sequence[Form], ctx: PassContext) -> Choice | str:
        """The form and rank of a use, or why it stays as it is."""
        known = ctx.calibration.get((use.name, CHOSEN))
        if known is not None:
            number, rank, reason, _ = known[0].shape
            return Choice(forms[number], rank) if rank else REASONS[reason]
        on_shards = bool(shard_maps_around(use.node.graph))
        if on_shards and not (self._by_shapes and self.residual == "none"):
            return _NOT_ON_SHARDS
        if not self._by_shapes:
            if ctx.calibration:
                return "calibration did not see it: it is in a branch, or in a loop that cannot be left"
            raise UsageError(self._needs())
        rank = static_rank(forms[0], self)
        if not rank:
            return NO_CHEAPER
        choice = Choice(forms[0], rank)
        if on_shards and (reason := why_not_on_shards(_thin(use, choice), use.node)):
            return reason
        return choice if pays(choice, use.node, use.other, ctx, self._goal) else NO_FASTER

    @property
    def _by_shapes(self) -> bool:
        """Whether ranks are known by the shapes of weights alone."""
        return not (self.energy or self.budget) and self.weigh == self.train == "none"

    @property
    def _goal(self) -> str:
        """With a residual nothing becomes faster."""
        return self.goal if self.residual == "none" else "smaller"

    def _needs(self) -> str:
        if self.train != "none":
            return f"{self} trains factors: use lepton.trainable(function, params, *sample)"
        more = ", calibration=batches" if self.weigh != "none" else ""
        return f"{self} goes by the weights themselves: use lepton.compile(function, params, *sample{more})"

    def _factors(self, use: WeightUse, choice: Choice, ctx: PassContext) -> Sequence[Value]:
        """The factors: made of the weight, or as training has them."""
        if self.train == "factors":
            return self._given(use, FACTORS, ctx)
        if self.train == "adapters":
            both = [*self._given(use, FIXED, ctx), *self._given(use, ADAPTERS, ctx)]
            return write_before(rewrite(join, *both, form=choice.form), use.node, RULE)
        hessian = self._given(use, "hessian", ctx) if self.weigh == "hessian" else []
        return write_before(_thin(use, choice, *hessian), use.node, RULE)

    def _given(self, use: WeightUse, kind: str, ctx: PassContext) -> list[Value]:
        """What calibration found or training learned of a use, as values there."""
        graph = use.node.graph
        assert graph is not None
        return found_by_calibration(use.name, kind, graph, ctx, same=same_in_loops(use.weight, graph))

    def _sum_up(self, before: Counter[str], after: Counter[str], ctx: PassContext) -> None:
        """Say what all weights became, and by how much a budget or ratio is missed."""
        if not before:
            return
        ctx.note(_became(before, after))
        share = after[self.count] / max(before[self.count], 1)
        limits = {"budget": self.budget, "ratio": self.ratio}
        for name, limit in limits.items():
            if limit and share > limit:
                ctx.note(f"{name}={limit} is missed: {share:.3g} of the {self.count} stay")


def _thin(use: WeightUse, choice: Choice, *hessian: Value) -> Rewrite:
    """The factors of a weight."""
    return rewrite(make_factors, use.weight, *hessian, form=choice.form, rank=choice.rank)


def _became(before: Counter[str], after: Counter[str]) -> str:
    memory = f"{before['bytes']:,} → {after['bytes']:,} bytes"
    return f"{memory}, {before['flops']:.3g} → {after['flops']:.3g} flops"


def _costs(use: WeightUse, form: Form, rank: int | None, rest: Residual | None = None) -> Counter[str]:
    """What a use costs, over the loops that it stands in; as it is, or at a rank, with a residual."""
    layers = layers_of(use)
    elements = int(form.whole("parameters")) if rank is None else form.parameters(rank)
    share = (1.0 if rank is None else form.operations(rank) / form.dense) + (rest is not None)
    flops = math.prod(loop_lengths(use.node.graph)) * share * node_cost(use.node).flops
    size = use.weight.dtype.itemsize
    memory = elements * size + (0 if rest is None else rest.nbytes)
    return Counter(parameters=layers * elements, bytes=layers * memory, flops=round(flops))


def _pays(choice: Choice, **where: object) -> bool:
    return pays(choice, **where)  # type: ignore[arg-type]
