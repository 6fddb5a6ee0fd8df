"""Cutting a program into the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from lepton_jax.ir.cost import aval_bytes, bytes_of
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.inline import copy_graph
from lepton_jax.ir.paths import choose
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.pipeline.balance import Line, best_cut
from lepton_jax.parallel.pipeline.marks import has_mark, is_mark
from lepton_jax.parallel.pipeline.parts import Part, Piece, Sent, parts
from lepton_jax.parallel.pipeline.units import Trunk

WORK: Final = 4
"""A microbatch's work in forward runs: forward, again before backward, backward twice."""

COPIES: Final = 2
"""How often it holds its parameters: with their gradients."""

Marks = Literal["use", "ignore"]


class StageError(ValueError):
    """A program that cannot be cut into so many stages: the message says why and what to do."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        part: its program.
        begins: the first piece of work that it does, for people.
        seconds: of one forward run, predicted.
        parameters: bytes of what it reads of the parameters.
        held: bytes of what it computes in one forward run.
        receives: bytes that the stage before sends.
    """

    part: Part
    begins: str
    seconds: float
    parameters: int
    held: int
    receives: int

    def bytes(self, live: int) -> int:
        """What it holds while it trains with as many live microbatches, the optimiser's state aside."""
        return COPIES * self.parameters + self.held + live * self.receives


@dataclass(frozen=True)
class Stages:
    """A program cut into stages that run one after the other.

    Attributes:
        stages: in order.
        params: the positions of the parameters among the program's inputs.
        names: of the program's inputs.
        shared: the parameters of which several stages read the same part, with these stages.
        line: what the parts were weighed by.
        places: where the line is cut.
    """

    stages: tuple[Stage, ...]
    params: frozenset[int]
    names: tuple[str, ...]
    shared: dict[int, tuple[int, ...]]
    line: Line
    places: tuple[int, ...]

    @cached_property
    def boundaries(self) -> list[list[Any]]:
        """What is sent from each stage to the next: shapes and dtypes, one list fewer than stages."""
        return [[v.aval for v in stage.part.graph.outputs] for stage in self.stages[:-1]]

    @property
    def balance(self) -> float:
        """The slowest stage's time as a multiple of the mean."""
        times = [stage.seconds for stage in self.stages]
        return max(times) * len(times) / sum(times)

    def __str__(self) -> str:
        lines = [f"{len(self.stages)} stages, the slowest {self.balance:.2f} of the mean"]
        for index, stage in enumerate(self.stages):
            lines.append(
                f"{index}: from {stage.begins}; {stage.seconds:.3g} s forward, {stage.parameters} bytes of "
                f"parameters, receives {stage.receives} bytes"
            )
        for param, readers in self.shared.items():
            lines.append(f"shared: {self.names[param]}, read by stages {', '.join(map(str, readers))}")
        return "\n".join(lines)


def cut(
    graph: Graph,
    stages: int,
    mesh: MeshSpec,
    axis: str,
    *,
    params: Collection[int],
    names: Sequence[str] | None = None,
    live: Sequence[int] | None = None,
    memory: float | None = None,
    marks: Marks = "use",
    shared: Sequence[str] | None = None,
) -> Stages:
    """Cut a program into contiguous stages that take the same time, as far as it goes.

    The operations stand in a line, in program order; loops over stacked parameters layer by layer. Dynamic
    programming finds where to cut it so that the slowest stage, what it receives and sends included, is
    fastest; of the cuts within 5 % of that, the one that sends least is taken. A value that is read some
    stages later is handed on by those between. What depends on parameters alone, or on the batch alone, is
    computed by each stage that reads it.

    Args:
        graph: the program, from parameters and one microbatch to one output; it is not changed.
        stages: how many.
        mesh: the chips and the links between them.
        axis: the axis of the mesh along which stages stand.
        params: the positions of the parameters among the inputs.
        names: of the inputs, for messages; default: their numbers.
        live: for each stage the microbatches that it holds at once (default: one).
        memory: bytes that no stage may exceed, without the optimiser's state.
        marks: whether `stage_boundary` decides.
        shared: patterns of the parameters that several stages may read (default: all may). Every device
            holds these whole.

    Raises:
        StageError: more stages than layers; fewer marks than boundaries, marks on values that are not in
            the line, or not one after the other; no cut that fits the memory; or a parameter of another
            stage that `shared` does not name.
        ValueError: the mesh has no such axis, or a pattern matches nothing.
    """
    graph = inline_calls(copy_graph(graph))
    link = mesh.axis(axis).link
    trunk = Trunk(graph, params, mesh.chip.rates)
    names = tuple(names or (str(i) for i in range(len(graph.inputs))))
    layers = sum(unit.is_layer for unit in trunk.units)
    if stages > max(layers, 1):
        raise StageError(
            f"{stages} stages of a program with {layers} layers (products of parameters and activations): "
            f"take at most {max(layers, 1)} stages"
        )
    crossing = np.asarray(trunk.crossing(), float)
    crossing[[0, -1]] = 0.0
    line = Line(
        seconds=WORK * np.asarray([unit.seconds for unit in trunk.units]),
        sending=np.where(crossing > 0, crossing / link.bytes_per_second + link.seconds, 0.0),
        held=np.asarray([COPIES * unit.parameters + unit.held for unit in trunk.units], float),
        crossing=crossing,
    )
    places = _places(trunk, stages) if marks == "use" else None
    live = live or [1] * stages
    among = places or range(1, len(trunk.units))
    chosen = best_cut(line, among, live, memory)
    if chosen is None:
        least = best_cut(line, among, live)
        assert least is not None
        found = _stages(trunk, line, least, names)
        most = max(range(stages), key=lambda s: found.stages[s].bytes(live[s]))
        raise StageError(
            f"no cut into {stages} stages fits {memory:.3g} bytes: cut evenly, stage {most} holds "
            f"{found.stages[most].bytes(live[most]):.3g}. Take more stages, or smaller microbatches"
        )
    found = _stages(trunk, line, chosen, names)
    if shared is not None:
        _check_shared(found, shared)
    return found


def _places(trunk: Trunk, stages: int) -> list[int] | None:
    """The places that are marked, ascending; None where none is.

    Raises:
        StageError: too few marks, marks beside the line or beside one another.
    """
    others = trunk.needed.difference(trunk.line)
    beside = [node for node in trunk.graph if node in others and (is_mark(node) or _marked_inside(node))]
    if beside:
        raise StageError(
            "a stage boundary is marked on a value that depends on parameters alone or on the batch alone "
            f"({beside[0].scope or 'at the top'}): mark what one layer hands to the next"
        )
    groups: list[list[int]] = []
    found: list[int] = []
    for index, unit in enumerate(trunk.units):
        if is_mark(unit.node):
            if groups and groups[-1][-1] == index - 1:
                groups[-1].append(index)
            else:
                groups.append([index])
        elif _marked_inside(unit.node):
            if unit.layer is None:
                raise StageError(f"a stage boundary is marked inside {unit}, which is not a loop over layers")
            found += [index + 1] if unit.layer < unit.node.params["length"] - 1 else []
    if not groups and not found:
        return None
    _check_chain(trunk, groups)
    found += [group[-1] + 1 for group in groups]
    if len(found) < stages - 1:
        raise StageError(
            f"the program marks {len(found)} stage boundaries, {stages} stages have {stages - 1}: "
            "mark more with lepton.stage_boundary, or give marks='ignore'"
        )
    return sorted(found)


def _marked_inside(node: Any) -> bool:
    return any(has_mark(region) for region in node.regions)


def _check_chain(trunk: Trunk, groups: Sequence[Sequence[int]]) -> None:
    """Look whether each mark depends on the one before."""
    number = {trunk.units[index].node: g for g, group in enumerate(groups) for index in group}
    after: dict[Any, int] = {}  # for each value the last mark that it depends on, -1 for none
    for node in trunk.line:
        last = max((after.get(value, -1) for value in node.operands if not value.is_const), default=-1)
        own = number.get(node)
        if own is not None and own > 0 and last < own - 1 and node is trunk.units[groups[own][0]].node:
            raise StageError(
                f"stage boundaries {own - 1} and {own} do not form a chain: the second value "
                f"({node.scope or 'at the top'}) does not depend on the first. "
                "Mark what one layer hands to the next"
            )
        after.update((value, last if own is None else own) for value in node.results)


def _stages(trunk: Trunk, line: Line, places: Sequence[int], names: tuple[str, ...]) -> Stages:
    found = []
    ends = [0, *places, len(trunk.units)]
    inputs = trunk.graph.inputs
    for part, first, end in zip(parts(trunk, places), ends, ends[1:], strict=False):
        units = trunk.units[first:end]
        values = dict(zip(part.sources, part.graph.inputs, strict=True))
        found.append(
            Stage(
                part=part,
                begins=str(units[0]),
                seconds=sum(unit.seconds for unit in units),
                parameters=sum(aval_bytes(values[piece].aval) for piece in part.pieces),
                held=sum(unit.held for unit in units),
                receives=sum(bytes_of(v) for source, v in values.items() if isinstance(source, Sent)),
            )
        )
    read = {(s, piece) for s, stage in enumerate(found) for piece in stage.part.pieces}
    shared: dict[int, tuple[int, ...]] = {}
    for param in sorted(trunk.params):
        mine: list[tuple[int, Piece]] = sorted(
            ((s, piece) for s, piece in read if piece.param == param), key=lambda each: each[0]
        )
        if any(a.overlaps(b) for i, (_, a) in enumerate(mine) for _, b in mine[:i]):
            shared[param] = tuple(dict.fromkeys(s for s, _ in mine))
    assert len(names) == len(inputs)
    return Stages(tuple(found), trunk.params, names, shared, line, tuple(places))


def _check_shared(found: Stages, patterns: Sequence[str]) -> None:
    """Look whether only the parameters that may be shared are.

    Raises:
        StageError: another is; the message names it and the stages.
    """
    positions = sorted(found.params)
    allowed = choose(patterns, [found.names[i] for i in positions], "shared") if patterns else frozenset()
    for param, readers in found.shared.items():
        if positions.index(param) not in allowed:
            raise StageError(
                f"stage {readers[-1]} reads {found.names[param]}, a parameter of stage {readers[0]}: name it "
                "in shared=, so that every device holds it, or let one stage read it"
            )
