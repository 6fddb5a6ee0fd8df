"""Passes on uses of weights: which of them a pass takes, and what the report says of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.paths import choose, matches
from lepton_jax.passes._weights.guards import is_guarded
from lepton_jax.passes._weights.uses import OPS, WeightUse, weight_uses
from lepton_jax.rewrite import Pass, PassContext, Site, UsageError
from lepton_jax.rewrite.context import UNREAD

_CLOSED: Final = frozenset({"shard_map", "pallas_call", "custom_partitioning", "ragged_dot_general"})
"""Operations that multiply with weights, or run a program of their own, in which none are looked for."""

_APART: Final = (
    "depthwise-as-shifts has made a sum of shifted products of its convolution: name this pass before that, "
    "as in cleanup,movement,quantize,default"
)

_GUARDED: Final = "vmap has made a selection of the branch that reads it"


class Selection(NamedTuple):
    """The uses of weights in a program.

    Attributes:
        uses: all of them, in program order.
        reasons: why each is not selected; None where it is.
        graph: the program.
    """

    uses: Sequence[WeightUse]
    reasons: Sequence[str | None]
    graph: Graph

    @property
    def selected(self) -> list[WeightUse]:
        """Those that are."""
        return [use for use, reason in zip(self.uses, self.reasons, strict=True) if reason is None]


@dataclass(frozen=True)
class WeightPass(Pass):
    """A pass on products, convolutions and gathers that read weights.

    Weights are found by where they come from: arrays of two dimensions or more that are made of parameters
    alone (`params=` says which arguments they are). A pass asks `select` for the uses that its options
    choose, says by `note` or `leave` what became of each, and ends with `report_rest`.

    Attributes:
        only: patterns of paths, separated by spaces (see `lepton_jax.ir.paths`): only weights made of
            parameters there.
        skip: patterns of paths: no weights made of parameters there.
        scope: a regular expression: only where it is found in the scope (`jax.named_scope`s, Flax modules).
        ops: operations, separated by spaces.
        least: only weights with so many elements at least.
        skip_first: leave so many of the uses of weights alone, the first in program order.
        skip_last: the same for the last.

    Raises:
        ValueError: an unknown operation, a negative number, or a scope that is no regular expression.
    """

    on_shards: ClassVar[bool] = False
    """Whether the pass takes weights in `shard_map`s too."""

    operations: ClassVar[tuple[str, ...]] = OPS
    """The operations whose weights the pass takes."""

    only: str | None = None
    skip: str | None = None
    scope: str | None = None
    ops: str = " ".join(OPS)
    least: int = 0
    skip_first: int = 0
    skip_last: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if unknown := set(self.ops.split()) - set(self.operations):
            raise ValueError(f"ops: {', '.join(sorted(unknown))} is none of {', '.join(self.operations)}")
        if self.least < 0 or self.skip_first < 0 or self.skip_last < 0:
            raise ValueError("least, skip_first and skip_last cannot be negative")
        expression("scope", self.scope)

    def select(self, graph: Graph, ctx: PassContext) -> Selection:
        """The uses of weights, in program order, and which of them are selected.

        Raises:
            UsageError: no parameters are named, or a selector chooses nothing.
        """
        if not ctx.params:
            raise UsageError("say which arguments are parameters: lepton.optimize(..., params='params')")
        for pattern in (self.only, self.skip):
            if pattern is not None:
                self._check(pattern, ctx)
        uses = weight_uses(graph, ctx, shards=self.on_shards, ops=self.operations)
        reasons = [self._unselected(use, number, len(uses)) for number, use in enumerate(uses)]
        found = Selection(uses, reasons, graph)
        if uses and not found.selected and not any(site.done and site.by == self.name for site in ctx.sites):
            raise UsageError(f"{self} selects nothing: {uses[0].name} is left because {found.reasons[0]}")
        return found

    def _check(self, pattern: str, ctx: PassContext) -> None:
        try:
            choose(pattern.split(), [ctx.paths[i] for i in sorted(ctx.params)], self.name)
        except ValueError as error:
            raise UsageError(str(error)) from error

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

    def note(self, use: WeightUse, done: str, remark: str, ctx: PassContext) -> None:
        """Put into the report what became of a use, in place of what this pass has said of it before.

        Args:
            done: what was done; empty where nothing was.
            remark: why nothing was, or what else there is to know.
        """
        ctx.sites[:] = [
            site for site in ctx.sites if site.done or (site.name, site.by) != (use.name, self.name)
        ]
        ctx.sites.append(Site(use.name, use.node.op, done, remark, use.params, use.node.source, self.name))

    def leave(self, use: WeightUse, reason: str, rule: str, ctx: PassContext) -> None:
        """Say why a use stays as it is."""
        self.note(use, "", reason, ctx)
        ctx.miss(rule, use.node, reason)

    def report_rest(self, found: Selection, rule: str, ctx: PassContext) -> None:
        """Say why uses that are not selected stay as they are, and which parameters no operation uses."""
        noted = {site.name for site in ctx.sites if site.by == self.name}
        for use, reason in zip(found.uses, found.reasons, strict=True):
            if reason is not None and use.name not in noted:
                self.leave(use, reason, rule, ctx)
        for i in sorted(ctx.params - self._known(found.uses, ctx)):
            if not ctx.paths[i].startswith("calibration/"):
                why = _why_unused(found.graph.inputs[i], self.on_shards)
                ctx.sites.append(Site(ctx.paths[i], reason=why, params=frozenset((i,)), by=self.name))

    def _known(self, uses: Iterable[WeightUse], ctx: PassContext) -> frozenset[int]:
        said = (site.params for site in ctx.sites if site.by == self.name)
        return frozenset().union(*said, *(use.params for use in uses))


def expression(option: str, text: str | None) -> re.Pattern[str] | None:
    """A regular expression that an option gives, compiled; None where it gives none.

    Raises:
        ValueError: it is none; the message says what is wrong in it.
    """
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ValueError(f"{option}={text!r} is no regular expression: {error}") from error


def _why_unused(param: Value, on_shards: bool) -> str:
    """Why no operation that reads a parameter is a use of a weight."""
    if not jnp.issubdtype(param.dtype, jnp.floating):
        return f"its numbers are {param.dtype}, not floats"
    for node, _ in param.uses:
        if node.op in _CLOSED and not (on_shards and node.op == "shard_map"):
            return f"it is read in a {node.op}, where weights stay as they are"
        if _is_taken_apart(node):
            return _APART
    return _GUARDED if is_guarded(param) else UNREAD


def _is_taken_apart(node: Node) -> bool:
    """Whether a node was written in place of a convolution of each channel for itself."""
    chain = node.rule
    while chain is not None and chain.rule != "depthwise-as-shifts":
        chain = chain.before
    return chain is not None


def _any_matches(patterns: str, paths: Sequence[str]) -> bool:
    return any(matches(pattern, path) for pattern in patterns.split() for path in paths)
