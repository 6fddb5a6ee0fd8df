"""What is done before any weight becomes codes: means are looked up, and inputs are balanced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lepton_jax.ir.graph import Graph
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes._weights.watching import Known, seen
from lepton_jax.passes.quantize._quantize import dots
from lepton_jax.passes.quantize._quantize.balancing import Balanced, balance_inputs
from lepton_jax.passes.quantize._quantize.choice import Plan
from lepton_jax.passes.quantize._quantize.correcting import mean_of
from lepton_jax.passes.quantize._quantize.observing import by_kind
from lepton_jax.rewrite import PassContext


def prepared(
    uses: Sequence[WeightUse],
    plans: Sequence[Plan | str],
    corrects: bool,
    known: Known,
    graph: Graph,
    ctx: PassContext,
) -> list[Plan | str]:
    """The plans with the means of inputs, where biases are corrected, and inputs balanced in the program."""
    found = [
        _with_mean(use, each, known, ctx) if corrects else each for use, each in zip(uses, plans, strict=True)
    ]
    balanced: list[Balanced] = []
    for use, each in zip(uses, found, strict=True):
        if isinstance(each, str) or not isinstance(each.how, dots.Product) or each.how.balance is None:
            continue
        values = seen(use, each.watchers, known, ctx)
        if not isinstance(values, str):
            balanced.append(Balanced(use, each.how, by_kind(tuple(values), each.how.kinds), each.mean))
    results = balance_inputs(balanced, graph, ctx) if balanced else {}
    for i, (use, each) in enumerate(zip(uses, found, strict=True)):
        if use.name in results and not isinstance(each, str):
            how, given, mean = results[use.name]
            found[i] = replace(each, how=how, watchers=(), given=given, mean=mean)
    return found


def _with_mean(use: WeightUse, found: Plan | str, known: Known, ctx: PassContext) -> Plan | str:
    watcher = mean_of(use)
    if isinstance(found, str) or watcher is None:
        return found
    values = seen(use, [watcher], known, ctx)
    return values if isinstance(values, str) else replace(found, mean=values[0])
