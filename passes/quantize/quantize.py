"""Quantisation of weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Graph
from lepton_jax.numerics.formats import Format, get_format
from lepton_jax.numerics.learned import LEARNED, Train
from lepton_jax.numerics.observers import get_observer
from lepton_jax.passes._weights.guards import take_off_guards
from lepton_jax.passes._weights.moments import MeanSeen
from lepton_jax.passes._weights.on_shards import why_not_on_shards
from lepton_jax.passes._weights.selecting import WeightPass
from lepton_jax.passes._weights.uses import OPS, WeightUse
from lepton_jax.passes._weights.watching import Known, observe, seen
from lepton_jax.passes.quantize._quantize.choice import Plan, plan
from lepton_jax.passes.quantize._quantize.correcting import correct, mean_of
from lepton_jax.passes.quantize._quantize.prepared import prepared
from lepton_jax.passes.quantize._quantize.residuals import read_codes
from lepton_jax.passes.quantize._quantize.sharing import share_weights
from lepton_jax.passes.quantize._quantize.training import check_undifferentiated, write_trained
from lepton_jax.rewrite import Pass, PassContext, UsageError, rewrite
from lepton_jax.rewrite.replacement import write, write_before
from lepton_jax.rewrite.trial import Trials

_RULE: Final = "quantized-weight"


@dataclass(frozen=True)
class Quantize(WeightPass):
    """Products with weights on codes of few bits instead of floats.

    Before:
        %2: f32 = dot_general %x %w
    After:
        %s = max |%w| / 127;  %q: i8 = round(%w / %s)                 (of parameters alone: `prepare`)
        %t = max |%x| / 127;  %c: i8 = round(%x / %t);  %a: i32 = dot_general %c %q;  %2 = %a · %t · %s

    Weights are found by where they come from: arrays of two dimensions or more that are made of parameters
    alone (`params=` says which arguments they are), read by products (ragged ones too), convolutions, and
    gathers of rows. Several settings for one program are several passes: each takes what it selects and what
    those before it have left. Whatever is left in floats is in the report with its reason. Approximate; it
    runs when it is named.

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
        products: of floats with weights in codes on a CPU with dot products of int8: `auto`: activations are
            taken apart in two or three int8 numbers each, of 15 or 22 bits together, and multiplied so;
            `floats`: with the decoded weight.
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

    Selectors are those of `WeightPass`.

    Raises:
        UsageError: no parameters are named, or a selector chooses nothing.
        ValueError: an unknown format, operation or setting.
    """

    name: ClassVar[str] = "quantize"
    approximates: ClassVar[bool] = True
    on_shards: ClassVar[bool] = True
    operations: ClassVar[tuple[str, ...]] = (*OPS, "ragged_dot_general")

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
    products: Literal["auto", "floats"] = "auto"
    residuals: Literal["floats", "codes"] = "floats"
    train: Train = "none"
    store: Literal["auto", "small", "fast"] = "auto"
    ops: str = " ".join(operations)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._check_format(get_format(self.weights))
        get_format(self.activation_format or "int8")
        get_observer(self.observer)
        if self.activation_format is not None and self.activations == "none":
            raise ValueError(
                "activation_format is for quantised activations: say activations=dynamic or static"
            )
        others = (self.method, self.balance, self.correct, self.residuals)
        if self.train != "none" and others != ("round", "none", "none", "floats"):
            raise ValueError(f"train={self.train} goes without method, balance, correct and residuals")
        if self.balance != "none" and self.observer != "minmax":
            raise ValueError(
                f"balance={self.balance} goes by the largest inputs: leave observer={self.observer} out"
            )
        if self.residuals == "codes" and self.activations != "static":
            raise ValueError("residuals=codes reads the codes of static activations: say activations=static")

    def _check_format(self, form: Format) -> None:
        """Raise where the weights' format does not go with the other options."""
        if self.group < 0:
            raise ValueError("group cannot be negative")
        if self.group and form.block:
            raise ValueError(f"{form} has blocks of {form.block} by definition: leave group={self.group} out")
        if self.group and self.per == "tensor":
            raise ValueError(f"per=tensor is one scale and group={self.group} many: leave one of them out")
        if not self.symmetric and (form.kind != "integer" or form.block):
            raise ValueError(f"{form} has no zero points: leave symmetric=false out, or take int8 to int2")

    @property
    def calibrates(self) -> bool:
        """See `Pass.calibrates`."""
        by_data = self.method == "gptq" or self.balance != "none" or self.correct != "none"
        return by_data or self.activations == "static"

    def on_trial(self, record: Trials) -> Pass:
        """See `Pass.on_trial`."""
        from lepton_jax.passes.quantize._quantize.trial import Trial

        return Trial.of(self, record)

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Quantise what is selected, in program order."""
        if self.train == "none":
            take_off_guards(graph, ctx)
        share_weights(graph, ctx)
        found = self.select(graph, ctx)
        selected = found.selected
        if self.train != "none":
            check_undifferentiated(graph, ctx)
        plans = [plan(use, self, ctx) for use in selected]
        known: Known = {}
        if ctx.watches is None and ctx.calibration:
            plans = prepared(selected, plans, self.correct == "bias", known, graph, ctx)
        for use, chosen in zip(selected, plans, strict=True):
            left = chosen if isinstance(chosen, str) else self._quantize(use, chosen, known, ctx)
            if left:
                self.leave(use, left, _RULE, ctx)
        self.report_rest(found, _RULE, ctx)
        if self.residuals == "codes" and ctx.watches is None:
            read_codes(graph, ctx)

    def _quantize(self, use: WeightUse, found: Plan, known: Known, ctx: PassContext) -> str | None:
        """Put codes in place of a weight, or let calibration see what there is; or why neither."""
        if ctx.watches is not None:
            reason = observe(use, [*found.watchers, *self._means(use)], known, ctx)
            if reason is None:
                _claim(use)
                self.note(use, found.done, found.remark, ctx)
            return reason
        if (found.watchers or self._means(use)) and not ctx.calibration:
            raise UsageError(self._needs(found))
        values = seen(use, found.watchers, known, ctx)
        if isinstance(values, str):
            return values
        made = rewrite(found.fun, *use.node.operands, *found.given, *values, how=found.how)
        if reason := why_not_on_shards(made, use.node):
            return reason
        if not ctx.fire(_RULE, use.node):
            return None
        if found.trained is not None and self.train != "none" and not ctx.is_bound:
            write_trained(use, found.trained, values)
            self.note(use, found.done, "", ctx)
            return None
        values = [*found.given, *values]
        if found.mean is not None:
            correct(use, found.fun, found.how, values, found.mean, ctx)
        write(made, use.node, _RULE)
        if use.node.graph is not None:
            use.node.graph.erase(use.node)
        self.note(use, found.done, found.remark, ctx)
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


def _claim(use: WeightUse) -> None:
    """Keep later passes from taking a weight that will be codes once calibration is done."""
    (claimed,) = write_before(rewrite(store, use.weight), use.node, _RULE)
    use.node.set_operand(use.side, claimed)
