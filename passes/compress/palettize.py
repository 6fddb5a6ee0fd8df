"""Weights as indices into palettes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.numerics.palettes import PaletteScheme, nbytes
from lepton_jax.passes._weights.iterations import same_in_loops
from lepton_jax.passes._weights.lifting import found_by_calibration
from lepton_jax.passes._weights.selecting import WeightPass
from lepton_jax.passes._weights.uses import WeightUse, layers_of
from lepton_jax.passes.compress._palettize.layout import Layout, layout_of
from lepton_jax.passes.compress._palettize.looking_up import GATHER, Look, Take, rounded, rows_of, weight_of
from lepton_jax.passes.compress._palettize.seeing import (
    CENTROIDS,
    CODES,
    ERROR,
    PALETTE,
    RULE,
    UNIT,
    watch,
)
from lepton_jax.rewrite import PassContext, UsageError, rewrite
from lepton_jax.rewrite.replacement import write, write_before

_UNSEEN: Final = "calibration did not see it"

Key = tuple[Value, PaletteScheme]


@dataclass
class _Known:
    """What uses of one weight share.

    Attributes:
        names: of the use that stands for all that read a weight by one scheme.
        values: codes or weight, and palette, in the program.
    """

    names: dict[Key, str] = field(default_factory=dict)
    values: dict[Key, tuple[Value, Value]] = field(default_factory=dict)


@dataclass(frozen=True)
class Palettize(WeightPass):
    """Weights as codes of few bits, which are looked up in palettes of the numbers that they stand for.

    Before:
        %2: f32[8,512] = dot_general %x %w                               w: f32[512, 512]
    After:
        %c: u8[512,256], %p: f32[1,16,1] = k-means of %w      (of parameters alone: `prepare`)
        %1: f32[512,512] = gather %p (unpack %c);  %2 = dot_general %x %1

    Palettes are found by k-means of the weights themselves, which `lepton.compile` and `lepton.trainable`
    hand over; `prepare` makes the codes. Stacked layers have palettes of their own; a weight that is read in
    several places is kept once. It makes weights smaller, not faster. Approximate; it runs when it is named.

    Attributes:
        bits: of a code, 1 to 8; a palette has 2^bits entries.
        per: `tensor`: one palette for a weight; `channel`: palettes for its output channels, for the rows of
            a table.
        group: so many neighbouring channels share a palette, with `per=channel`.
        vector: entries are so many neighbouring elements: bits/vector bits for each. They lie along an
            axis that is summed over where that is a multiple.
        weigh: `hessian`: elements count as much as the mean square of their inputs, which calibration sees
            (SqueezeLLM, arXiv:2306.07629); `none`: all the same.
        zeros: `keep`: zero is an entry, and zeros stay zero, as pruned weights want; `free`: it is none.
        method: `exact` or `lloyd`, see `lepton_jax.numerics.palettes.PaletteScheme`.
        lookup: `call`: the codes are kept, and looked up at each call; `load`: in memory weights are as large
            as before, and only files hold codes, which `lepton.load` looks up once.
        train: see `lepton.trainable`. `centroids`: codes stay, and palettes are learned (Deep Compression,
            arXiv:1510.00149); `dkm`: weights are learned through soft assignments (arXiv:2108.12659).
        temperature: of `dkm`: how soft, as a part of the weight's mean square.

    Raises:
        UsageError: no parameters are named, a selector chooses nothing, or the weights are not known.
        ValueError: a value out of range.
    """

    name: ClassVar[str] = "palettize"
    approximates: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = True

    bits: int = 4
    per: Literal["tensor", "channel"] = "tensor"
    group: int = 1
    vector: Literal[1, 2, 4, 8] = 1
    weigh: Literal["none", "hessian"] = "none"
    zeros: Literal["keep", "free"] = "keep"
    method: Literal["exact", "lloyd"] = "exact"
    lookup: Literal["call", "load"] = "call"
    train: Literal["none", "centroids", "dkm"] = "none"
    temperature: float = 1e-3

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        PaletteScheme(self.bits, group=self.group, vector=self.vector)
        if self.group > 1 and self.per == "tensor":
            raise ValueError("group is of channels: say per=channel")
        if self.temperature <= 0:
            raise ValueError(f"temperature is above 0, not {self.temperature}")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Put codes in place of what is selected, in program order."""
        found = self.select(graph, ctx)
        known = _Known()
        for use in found.selected:
            layout = layout_of(use, self)
            reason = layout if isinstance(layout, str) else self._palettize(use, layout, known, graph, ctx)
            if reason:
                self.leave(use, reason, RULE, ctx)
        self.report_rest(found, RULE, ctx)

    def _palettize(
        self, use: WeightUse, layout: Layout, known: _Known, graph: Graph, ctx: PassContext
    ) -> str | None:
        """Write a use on codes, or let calibration see its weight; or why neither."""
        key = layout.base, layout.scheme
        name = known.names.setdefault(key, use.name)
        if ctx.watches is not None:
            reason = watch(use, layout, self.train == "centroids", graph, ctx) if name == use.name else None
            if reason is None:
                (claimed,) = write_before(rewrite(store, use.weight), use.node, RULE)
                use.node.set_operand(use.side, claimed)
                self.note(use, self._words(use, layout), "", ctx)
            return reason
        if not ctx.calibration:
            raise UsageError(self._needs())
        kind = PALETTE if self.train == "centroids" else CENTROIDS
        if (name, kind) not in ctx.calibration:
            return _UNSEEN
        if not ctx.fire(RULE, use.node):
            return None
        if key not in known.values:
            palette = self._given(use, layout, name, kind, ctx)
            source = self._given(use, layout, name, CODES, ctx) if self.train == "centroids" else layout.base
            known.values[key] = source, palette
        words = self._words(use, layout)
        self._write(use, layout, known.values[key], ctx)
        lost = ctx.calibration[name, ERROR][0].shape[0] * UNIT
        remark = "on a cpu this is smaller, not faster" if self._looks_up(ctx) else ""
        self.note(use, f"{words}, error {lost:.2g}", remark, ctx)
        return None

    def _looks_up(self, ctx: PassContext) -> bool:
        return self.lookup == "call" and ctx.rates.platform == "cpu"

    def _write(self, use: WeightUse, layout: Layout, values: tuple[Value, Value], ctx: PassContext) -> None:
        """Let a use read what codes stand for."""
        base, node = layout.base, use.node
        how = Look(
            layout.scheme,
            base.shape,
            base.dtype,
            layout.turned,
            self.lookup == "call",
            self.train,
            self.temperature,
        )
        if self.train != "none" and not ctx.is_bound:
            (made,) = write_before(rewrite(rounded, *values, how=how), node, RULE)
            node.set_operand(use.side, made)
            return
        if layout.rows is not None and how.call and layout.turned is None:
            take = Take(layout.rows, tuple((name, node.params[name]) for name in GATHER))
            write(rewrite(rows_of, *values, use.other, how=how, take=take), node, RULE)
            if node.graph is not None:
                node.graph.erase(node)
            return
        (made,) = write_before(rewrite(weight_of, *values, how=how), node, RULE)
        node.set_operand(use.side, made)

    def _given(self, use: WeightUse, layout: Layout, name: str, kind: str, ctx: PassContext) -> Value:
        """What calibration found or training learned of a weight, as a value where it is used."""
        graph = use.node.graph
        assert graph is not None
        (value,) = found_by_calibration(name, kind, graph, ctx, same=same_in_loops(layout.base, graph))
        return value

    def _needs(self) -> str:
        if self.train != "none":
            return f"{self} trains palettes: use lepton.trainable(function, params, *sample)"
        more = ", calibration=batches" if self.weigh != "none" else ""
        return f"{self} goes by the weights themselves: use lepton.compile(function, params, *sample{more})"

    def _words(self, use: WeightUse, layout: Layout) -> str:
        """What a weight becomes: bits, and bytes over the loops that it stands in."""
        shape, scheme, size = layout.base.shape, layout.scheme, layout.base.dtype.itemsize
        layers = layers_of(use)
        share = "per tensor" if scheme.axis is None else f"{scheme.groups(shape)} palettes"
        share += f", vectors of {scheme.vector}" if scheme.vector > 1 else ""
        share += "" if self.train == "none" else f", {self.train}"
        before, after = layers * layout.base.aval.size * size, layers * nbytes(shape, scheme, size)
        place = "" if self.lookup == "call" else " in files, before they are coded"
        return f"{self.bits} bits, {share}, {before:,} → {after:,} bytes{place}"
