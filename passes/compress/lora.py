"""Adapters of low rank beside weights, for `lepton.lora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jax

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.passes._weights.iterations import lift_weight, same_in_loops
from lepton_jax.passes._weights.lifting import depth, found_by_calibration, in_branch, loop_lengths
from lepton_jax.passes._weights.selecting import WeightPass
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes.compress._low_rank.choosing import forms_of
from lepton_jax.passes.compress._low_rank.form import Form
from lepton_jax.passes.compress.low_rank import LowRank
from lepton_jax.rewrite import PassContext, Watch, over_loops, rewrite
from lepton_jax.rewrite.replacement import write_before

KIND: Final = "lora"

_RULE: Final = "adapter-beside-weight"

_SETTINGS: Final = LowRank(rank=1, form="channel", train="adapters")


@dataclass(frozen=True)
class Place:
    """A use of a weight that has an adapter.

    Attributes:
        form: of the adapter.
        loops: that the use stands in, and over which the weight differs.
        shapes: of the two factors, those of loops in front.
        params: the positions of the parameters that the weight is made of.
    """

    form: Form
    loops: int
    shapes: tuple[tuple[int, ...], ...]
    params: frozenset[int]

    def weight(self, down: jax.Array, up: jax.Array) -> jax.Array:
        """What an adapter's factors stand for, stacked over loops."""
        made: jax.Array = over_loops(self.form.weight, self.loops)(down, up)
        return made


@dataclass(frozen=True)
class Beside(WeightPass):
    """Adds `scale · (x @ down) @ up` to what uses of weights give, or `scale · down @ up` to the weights.

    The factors are what `PassContext.calibration` has of a site under `lora`. Watches, when asked for,
    say which site there is, and its weight, stacked over loops, is one more output of the program.

    Attributes:
        rank: of the adapters.
        scale: of what they add.
        merged: whether they are added to the weights.
    """

    name: ClassVar[str] = "lora"
    approximates: ClassVar[bool] = True

    rank: int = 8
    scale: float = 1.0
    merged: bool = False

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Write what is selected, in program order."""
        found = self.select(graph, ctx)
        for use in found.selected:
            forms = forms_of(use, _SETTINGS)
            region = use.node.graph
            assert region is not None
            loops = "it is in a cond" if in_branch(region) else depth(region)
            if isinstance(forms, str) or isinstance(loops, str):
                self.leave(use, forms if isinstance(forms, str) else str(loops), _RULE, ctx)
            elif ctx.watches is not None:
                same = same_in_loops(use.weight, region)
                place = self._place(use, forms[0], same)
                graph.set_outputs([*graph.outputs, lift_weight(use.weight, region, same)])
                ctx.watches.append(Watch(use.name, KIND, place, None, 1, place.loops))
            elif (use.name, KIND) in ctx.calibration and ctx.fire(_RULE, use.node):
                self._write(use, forms[0], ctx)
                self.note(use, f"rank {min(self.rank, forms[0].most)} beside it", "", ctx)
        self.report_rest(found, _RULE, ctx)

    def _place(self, use: WeightUse, form: Form, same: tuple[bool, ...]) -> Place:
        rank = min(self.rank, form.most)
        weight = jax.ShapeDtypeStruct(form.shape, use.weight.dtype)
        made = jax.eval_shape(lambda w: form.factors(w, None, rank), weight)
        every = zip(loop_lengths(use.node.graph), same, strict=True)
        lengths = [length for length, is_same in every if not is_same]
        shapes = tuple((*lengths, *each.shape) for each in made)
        return Place(form, len(lengths), shapes, use.params)

    def _write(self, use: WeightUse, form: Form, ctx: PassContext) -> None:
        node, graph = use.node, use.node.graph
        assert graph is not None
        same = same_in_loops(use.weight, graph)
        factors = found_by_calibration(use.name, KIND, graph, ctx, same=same)
        if self.merged:
            made = rewrite(_onto, use.weight, *factors, form=form, scale=self.scale)
            node.set_operand(use.side, write_before(made, node, _RULE)[0])
            return
        (more,) = write_before(
            rewrite(_beside, use.other, *factors, form=form, dtype=use.weight.dtype), node, _RULE
        )
        behind = node.next if node.next is not None else graph.ret
        (total,) = write_before(rewrite(_sum, node.result, more, scale=self.scale), behind, _RULE)
        node.result.replace_uses(total)
        _read(total, node.result)


def _read(total: Value, original: Value) -> None:
    """Let a sum, which now reads itself, read what it was made of again."""
    node = total.node
    while node is not None:
        for i, operand in enumerate(node.operands):
            if operand is total:
                node.set_operand(i, original)
        node = node.prev if node is not original.node else None


def _beside(x: jax.Array, *factors: jax.Array, form: Form, dtype: Any) -> jax.Array:
    return form.apply(x, *(factor.astype(dtype) for factor in factors))


def _sum(result: jax.Array, more: jax.Array, *, scale: float) -> jax.Array:
    return result + more * scale


def _onto(weight: jax.Array, *factors: jax.Array, form: Form, scale: float) -> jax.Array:
    return weight + (form.weight(*factors) * scale).astype(weight.dtype)
