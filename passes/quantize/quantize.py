"""Quantisation of weights and activations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.paths import choose, matches
from lepton_jax.numerics.formats import get_format
from lepton_jax.numerics.learned import LEARNED, Train
from lepton_jax.numerics.observers import get_observer
from lepton_jax.passes.quantize._quantize.choice import Plan, plan
from lepton_jax.passes.quantize._quantize.correcting import correct, mean_of
from lepton_jax.passes.quantize._quantize.means import MeanSeen
from lepton_jax.passes.quantize._quantize.observing import Known, observe, seen
from lepton_jax.passes.quantize._quantize.prepared import prepared
from lepton_jax.passes.quantize._quantize.residuals import read_codes
from lepton_jax.passes.quantize._quantize.sharing import share_weights
from lepton_jax.passes.quantize._quantize.sites import OPS, WeightUse, weight_uses
from lepton_jax.passes.quantize._quantize.training import check_undifferentiated, write_trained
from lepton_jax.rewrite import Pass, PassContext, Site, UsageError, rewrite
from lepton_jax.rewrite.replacement import write, write_before
from lepton_jax.rewrite.trial import Trials

_RULE: Final = "quantized-weight"


@dataclass(frozen=True)
class Quantize(Pass):
    """Products with weights on codes of few bits instead of floats.

    Before:
        %2: f32 = dot_general %x %w
    After:
        %s = max |%w| / 127;  %q: i8 = round(%w / %s)                 (of parameters alone: `prepare`)
        %t = max |%x| / 127;  %c: i8 = round(%x / %t);  %a: i32 = dot_general %c %q;  %2 = %a · %t · %s

    Weights are found by where they come from: arrays of two dimensions or more that are made of parameters
    alone (`params=` says which arguments they are), read by products, convolutions, and gathers of rows.
    Several settings for one program are several passes: each takes what it selects and what those before
    it have left. Whatever is left in floats is in the report with its reason. Approximate; it runs when it
    is named.

    Attributes:
        weights: the format of the weights, see `lepton_jax.numerics.formats`.
        activations: `none`: products in floats, only the weights shrink; `dynamic`: quantised at each call by
            what is there; `static`: by what calibration saw.
        activation_format: `int8` for weights of integers, the weights' own for float8.
        group: so many elements along the contracted axis share a scale; 0: all of an output channel.
        symmetric: no zero points of the weights.
        per: `channel`: a scale for each output channel; `tensor`: one for all.
        rows: `row`: activations have a scale for each row (each sample of a convolution); `tensor`: one
            for all.
        search: how a scale is found, see `Scheme.search`.
        method: how codes are chosen: `round` to nearest; `hqq`, by the weights alone; `gptq`, by what
            calibration saw (see `lepton_jax.numerics.gptq`).
        balance: `smoothquant` or `awq`: calibration finds a number for each input channel to multiply the
            weight with and to divide the input by. For products with one contracted axis.
        correct: `bias`: what rounding a weight takes from the mean of its result, over the inputs that
            calibration saw, is added again; into the bias, if there is one.
        observer: of static activations, see `lepton_jax.numerics.observers.OBSERVERS`.
        residuals: what else reads activations that become codes under a static scale, such as sums around
            layers: `floats`, the activations as they were, or `codes`, so that nothing but codes goes from
            layer to layer.
        train: `none`: codes in place of floats. Otherwise, in functions that are called in line, floats that
            are rounded as their codes would be, with gradients that pass through the rounding; `prepare`
            makes codes of them. `ste`: nothing but the weights is learned; `lsq`: step sizes of weights and
            static activations are, `tqt`: logarithms of their largest magnitudes, `pact`: these
            magnitudes; see `lepton_jax.trainable`.
        store: `small`: codes are kept without gaps and unpacked at each call; `fast`: as the target
            computes with them. `auto`: `small` where they are decoded before use, `fast` where they are
            multiplied as they are.
        only: patterns of paths, separated by spaces (see `lepton_jax.ir.paths`): only weights made of
            parameters there.
        skip: patterns of paths: no weights made of parameters there.
        scope: a regular expression: only where it is found in the scope (`jax.named_scope`s, Flax modules).
        ops: operations, separated by spaces.
        least: only weights with so many elements at least.
        skip_first: leave so many of the uses of weights alone, the first in program order.
        skip_last: the same for the last.

    Raises:
        UsageError: no parameters are named, or a selector chooses nothing.
        ValueError: an unknown format, operation or setting.
    """

    name: ClassVar[str] = "quantize"
    approximates: ClassVar[bool] = True

    weights: str = "int8"
    activations: Literal["none", "dynamic", "static"] = "none"
    activation_format: str | None = None
    group: int = 0
    symmetric: bool = True
    per: Literal["channel", "tensor"] = "channel"
    rows: Literal["row", "tensor"] = "row"
    search: Literal["absmax", "mse"] = "absmax"
    method: Literal["round", "hqq", "gptq"] = "round"
    balance: Literal["none", "smoothquant", "awq"] = "none"
    correct: Literal["none", "bias"] = "none"
    observer: str = "minmax"
    residuals: Literal["floats", "codes"] = "floats"
    train: Train = "none"
    store: Literal["auto", "small", "fast"] = "auto"
    only: str | None = None
    skip: str | None = None
    scope: str | None = None
    ops: str = " ".join(OPS)
    least: int = 0
    skip_first: int = 0
    skip_last: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        get_format(self.weights)
        get_format(self.activation_format or "int8")
        get_observer(self.observer)
        if unknown := set(self.ops.split()) - set(OPS):
            raise ValueError(f"ops: {', '.join(sorted(unknown))} is none of {', '.join(OPS)}")
        if self.group < 0 or self.least < 0 or self.skip_first < 0 or self.skip_last < 0:
            raise ValueError("group, least, skip_first and skip_last cannot be negative")
        re.compile(self.scope or "")
        others = (self.method, self.balance, self.correct, self.residuals)
        if self.train != "none" and others != ("round", "none", "none", "floats"):
            raise ValueError(f"train={self.train} goes without method, balance, correct and residuals")
        if self.balance != "none" and self.observer != "minmax":
            raise ValueError(
                f"balance={self.balance} goes by the largest inputs: leave observer={self.observer} out"
            )
        if self.residuals == "codes" and self.activations != "static":
            raise ValueError("residuals=codes reads the codes of static activations: say activations=static")

    def on_trial(self, record: Trials) -> Pass:
        """See `Pass.on_trial`."""
        from lepton_jax.passes.quantize._quantize.trial import Trial

        return Trial.of(self, record)

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Quantise what is selected, in program order."""
        if not ctx.params:
            raise UsageError("say which arguments are parameters: lepton.optimize(..., params='params')")
        for pattern in (self.only, self.skip):
            if pattern is not None:
                _check(pattern, ctx)
        share_weights(graph, ctx)
        uses = weight_uses(graph, ctx)
        reasons = [self._unselected(use, number, len(uses)) for number, use in enumerate(uses)]
        selected = [use for use, reason in zip(uses, reasons, strict=True) if reason is None]
        if uses and not selected and not any(site.done for site in ctx.sites):
            raise UsageError(f"{self} selects nothing: {uses[0].name} is left because {reasons[0]}")
        if self.train != "none":
            check_undifferentiated(graph, ctx)
        plans = [plan(use, self, ctx) for use in selected]
        known: Known = {}
        if ctx.watches is None and ctx.calibration:
            plans = prepared(selected, plans, self.correct == "bias", known, graph, ctx)
        for use, found in zip(selected, plans, strict=True):
            left = found if isinstance(found, str) else self._quantize(use, found, known, ctx)
            if left:
                _leave(use, left, ctx)
        noted = {site.name for site in ctx.sites}
        for use, reason in zip(uses, reasons, strict=True):
            if reason is not None and use.name not in noted:
                _leave(use, reason, ctx)
        _list_others(uses, ctx)
        if self.residuals == "codes" and ctx.watches is None:
            read_codes(graph, ctx)

    def _unselected(self, use: WeightUse, number: int, count: int) -> str | None:
        """Why a use of a weight is not selected, or None."""
        if self.only is not None and not _any_matches(self.only, use.paths):
            return f"only {self.only} is selected"
        if self.skip is not None and _any_matches(self.skip, use.paths):
            return f"{self.skip} is skipped"
        if self.scope is not None and re.search(self.scope, use.node.scope) is None:
            return f"its scope {use.node.scope!r} has no {self.scope!r}"
        if use.node.op not in self.ops.split():
            return f"{use.node.op} is not selected"
        if use.weight.aval.size < self.least:
            return f"it has {use.weight.aval.size} elements, fewer than {self.least}"
        if number < self.skip_first or number >= count - self.skip_last:
            return "the first and last are skipped"
        return None

    def _quantize(self, use: WeightUse, found: Plan, known: Known, ctx: PassContext) -> str | None:
        """Put codes in place of a weight, or let calibration see what there is; or why neither."""
        if ctx.watches is not None:
            reason = observe(use, [*found.watchers, *self._means(use)], known, ctx)
            if reason is None:
                _claim(use)
                _note(use, found.done, found.remark, ctx)
            return reason
        if (found.watchers or self._means(use)) and not ctx.calibration:
            raise UsageError(self._needs(found))
        values = seen(use, found.watchers, known, ctx)
        if isinstance(values, str):
            return values
        if not ctx.fire(_RULE, use.node):
            return None
        if found.trained is not None and self.train != "none" and not ctx.is_bound:
            write_trained(use, found.trained, values)
            _note(use, found.done, "", ctx)
            return None
        values = [*found.given, *values]
        if found.mean is not None:
            correct(use, found.fun, found.how, values, found.mean, ctx)
        write(rewrite(found.fun, *use.node.operands, *values, how=found.how), use.node, _RULE)
        if use.node.graph is not None:
            use.node.graph.erase(use.node)
        _note(use, found.done, found.remark, ctx)
        return None

    def _means(self, use: WeightUse) -> list[MeanSeen]:
        """What calibration has to see of a use's input for its bias to be corrected."""
        seen_mean = mean_of(use) if self.correct == "bias" else None
        return [] if seen_mean is None else [seen_mean]

    def _needs(self, found: Plan) -> str:
        if any(watcher.kind in LEARNED for watcher in found.watchers):
            return f"{self} learns more than weights: use lepton.trainable(function, params, *sample)"
        return (
            f"{self} needs calibration: lepton.compile(..., calibration=batches), each batch a tuple of "
            "the inputs after the parameters"
        )


def _check(pattern: str, ctx: PassContext) -> None:
    try:
        choose(pattern.split(), [ctx.paths[i] for i in sorted(ctx.params)], "quantize")
    except ValueError as error:
        raise UsageError(str(error)) from error


def _claim(use: WeightUse) -> None:
    """Keep later passes from taking a weight that will be codes once calibration is done."""
    (claimed,) = write_before(rewrite(store, use.weight), use.node, _RULE)
    use.node.set_operand(use.side, claimed)


def _leave(use: WeightUse, reason: str, ctx: PassContext) -> None:
    _note(use, "", reason, ctx)
    ctx.miss(_RULE, use.node, reason)


def _note(use: WeightUse, done: str, reason: str, ctx: PassContext) -> None:
    """Put a site into the report, in place of what an earlier pass has said of it."""
    ctx.sites[:] = [site for site in ctx.sites if site.done or site.name != use.name]
    ctx.sites.append(Site(use.name, use.node.op, done, reason, use.params, use.node.source))


def _list_others(uses: Sequence[WeightUse], ctx: PassContext) -> None:
    """Say which parameters no product, convolution or gather reads."""
    known = {i for site in ctx.sites for i in site.params}.union(*(use.params for use in uses))
    if ctx.watches is None:
        rest = sorted(ctx.params - known)
        ctx.sites += [
            Site(ctx.paths[i], "", "", "no product, convolution or gather of rows reads it", frozenset((i,)))
            for i in rest
            if not ctx.paths[i].startswith("calibration/")
        ]


def _any_matches(patterns: str, paths: Sequence[str]) -> bool:
    return any(matches(pattern, path) for pattern in patterns.split() for path in paths)
