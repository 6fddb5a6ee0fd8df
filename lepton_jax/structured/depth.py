"""Which residual blocks and scanned layers are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lepton_jax.ir.dimensions import Group
from lepton_jax.rewrite import UsageError
from lepton_jax.structured.blocks import Block, residual_blocks
from lepton_jax.structured.depth_importance import DepthImportance, block_changes, layer_changes, losses
from lepton_jax.structured.report import GroupReport
from lepton_jax.structured.smaller import Change, Program
from lepton_jax.structured.subject import Subject


@dataclass(frozen=True)
class Depth:
    """A program with fewer layers.

    Attributes:
        change: what becomes of the parameters.
        groups: what is reported of blocks and layers.
    """

    change: Change
    groups: tuple[GroupReport, ...]


def less_depth(
    model: Subject,
    program: Program,
    depth: float,
    importance: DepthImportance,
    loss: Callable[..., Any] | None,
    batches: Sequence[tuple[Any, ...]] | None,
) -> Depth:
    """Leave out the residual blocks and scanned layers that matter least.

    Args:
        program: of the model.
        depth: how many, or which share of all.
        importance: how they are ranked.
        loss: a function of parameters and a batch, for importance by it.
        batches: to measure with; the sample if None.

    Raises:
        UsageError: there is nothing to leave out, or nothing to measure with.
    """
    blocks = residual_blocks(program.graph, program.params)
    scans = [group for group in program.found.cuttable if group.kind == "layers"]
    units: list[tuple[Group | Block, int]] = [(block, 0) for block in blocks]
    units += [(group, i) for group in scans for i in range(group.units)]
    if not units:
        raise UsageError(
            "depth: no scanned layers, and outside of loops and jax.checkpoint no residual blocks with "
            "parameters of their own"
        )
    if importance == "loss":
        assert loss is not None and batches is not None
        changes = [_without(model, program, [unit]) for unit in units]
        scores = losses(loss, model.static, model.params, batches, changes)
    else:
        scores = _changes(model, scans, importance, batches)
    count = min(len(units), round(depth * len(units)) if depth < 1 else int(depth))
    gone: list[tuple[Group | Block, int]] = []
    for index in np.argsort(scores, kind="stable"):
        owner, _ = units[index]
        is_last = isinstance(owner, Group) and sum(each is owner for each, _ in gone) == owner.units - 1
        if len(gone) < count and not is_last:
            gone.append(units[index])
    return Depth(_without(model, program, gone), tuple(_reports(units, gone, scores)))


def _changes(
    model: Subject, scans: Sequence[Group], importance: str, batches: Sequence[tuple[Any, ...]] | None
) -> list[float]:
    batches = [model.sample] if batches is None else batches
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((model.params, batches))):
        raise UsageError("depth: give arrays, as a sample or as batches=, to see how much blocks change them")
    scores = block_changes(model.fun, model.static, model.params, batches, importance)
    for group in scans:
        scores += layer_changes(model.fun, model.static, model.params, batches, importance, group.name)
    return scores


def _without(model: Subject, program: Program, gone: Sequence[tuple[Group | Block, int]]) -> Change:
    """What becomes of the parameters without these blocks and layers."""
    nothing = np.zeros(0, np.int64)
    dropped = frozenset(owner.params for owner, _ in gone if isinstance(owner, Block))
    kept = {(position, 0): nothing for own in dropped for position in own if np.ndim(model.leaves[position])}
    layers: dict[str, Any] = {}
    for owner, unit in gone:
        if isinstance(owner, Group):
            layers[owner.name] = np.setdiff1d(layers.get(owner.name, np.arange(owner.units)), unit)
    return model.change({**kept, **program.found.select(layers)}, dropped)


def _reports(
    units: Sequence[tuple[Group | Block, int]],
    gone: Sequence[tuple[Group | Block, int]],
    scores: Sequence[float],
) -> list[GroupReport]:
    found = []
    for owner in dict.fromkeys(owner for owner, _ in units):
        before = 1 if isinstance(owner, Block) else owner.units
        after = before - sum(each is owner for each, _ in gone)
        importance = tuple(s for (each, _), s in zip(units, scores, strict=True) if each is owner)
        kind = "blocks" if isinstance(owner, Block) else "layers"
        found.append(GroupReport(owner.name, kind, before, after, importance=importance))
    return found
