"""What a preset gives: layouts, and what it left whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.presets.together import Dim, Program, Together
from lepton_jax.parallel.roles import Roles


class PresetError(ValueError):
    """A preset has nothing to split, or the mesh has not the axes for it. The message says what to do."""


@dataclass(frozen=True)
class Arrangement:
    """How a preset spreads a program.

    Attributes:
        layouts: of every input, of outputs that are the next state, and of what the preset decides on the
            way; the rest is for `propagate`.
        notes: what was left whole and why, for the plan.
    """

    layouts: dict[Value, Layout]
    notes: tuple[str, ...] = ()


DATA: Final = frozenset(
    {"data", "dp", "batch", "replica", "replicas", "slice", "slices", "dcn", "node", "nodes"}
)
SHARD: Final = frozenset({"fsdp", "zero", "shard"})
MODEL: Final = frozenset({"model", "tp", "tensor", "mp", "tensor_parallel"})
SEQUENCE: Final = frozenset({"seq", "sequence", "sp", "context", "cp"})
EXPERT: Final = frozenset({"expert", "experts", "ep"})
STAGE: Final = frozenset({"stage", "stages", "pipe", "pipeline", "pp"})

Axes = tuple[str, ...]


@dataclass(frozen=True)
class AxesFor:
    """Which mesh axes do what, by their names where they have the usual ones, else by their order.

    Attributes:
        mesh: the mesh.
    """

    mesh: MeshSpec

    @property
    def _axes(self) -> Axes:
        return tuple(axis.name for axis in self.mesh.axes if axis.size > 1)

    def _named(self, *kinds: frozenset[str]) -> Axes:
        return tuple(name for name in self._axes if any(name.lower() in kind for kind in kinds))

    def batch(self) -> Axes:
        """For the batch alone: those called data, fsdp, expert and the like; else all without another use."""
        return (
            self._named(DATA, SHARD, EXPERT)
            or self._without(*self._named(MODEL, SEQUENCE, STAGE))
            or self._axes
        )

    def shard(self) -> Axes:
        """For parameters: those called fsdp; else those of the batch."""
        return self._named(SHARD) or self.batch()

    def model(self) -> Axes:
        """For the model: those called model, tensor and the like; else the last that is not for data."""
        named = self._named(MODEL)
        if named or len(self._axes) < 2:
            return named or self._axes
        return (self._without(*self._named(DATA, SHARD, EXPERT, SEQUENCE, STAGE)) or self._axes)[-1:]

    def expert(self) -> Axes:
        """For experts: those called expert; else those of the batch."""
        return self._named(EXPERT) or self.batch()

    def besides(self, used: Sequence[str]) -> Axes:
        """For the batch beside these."""
        return self._without(*used, *self._named(STAGE))

    def _without(self, *used: str) -> Axes:
        return tuple(name for name in self._axes if name not in used)


@dataclass
class Work:
    """A program on its way to an arrangement.

    Attributes:
        graph: the program.
        roles: of its inputs.
        mesh: the mesh.
        layouts: what is decided.
        reasons: of what was left whole why, with the arrays of which it is so.
        known: what was looked up of the graph before.
    """

    graph: Graph
    roles: Roles
    mesh: MeshSpec
    layouts: dict[Value, Layout] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    known: Program | None = None

    def __post_init__(self) -> None:
        self.program = self.known or Program(self.graph)
        self.axes = AxesFor(self.mesh)

    def together(self, parts: int) -> Together:
        """The classes of dimensions that divide into so many parts."""
        return self.program.together(parts)

    def note(self, what: str, why: str) -> None:
        """Note that an array is whole, and why."""
        self.reasons.setdefault(why, []).append(what)

    @property
    def notes(self) -> list[str]:
        """What was left whole and why, the arrays of one reason together."""
        return [f"{_several(names)} whole {why}" for why, names in self.reasons.items()]

    def param(self, position: int) -> Value:
        """The input at a position."""
        return self.graph.inputs[position]

    def finished(self, params: Mapping[int, Layout]) -> Arrangement:
        """With these layouts of parameters; their state follows, and what comes back lies as it came.

        Args:
            params: by position; those left out are whole.
        """
        inputs = self.graph.inputs
        by_position = {i: params.get(i, Layout.whole(inputs[i].ndim)) for i in self.roles.params}
        by_position |= self.roles.follow(by_position)
        for i, layout in by_position.items():
            self.layouts[inputs[i]] = layout
        for value in inputs:
            self.layouts.setdefault(value, Layout.whole(value.ndim))
        outputs = self.graph.outputs
        for i, output in self.roles.returned.items():
            if not outputs[output].is_const and outputs[output].shape == inputs[i].shape:
                self.layouts.setdefault(outputs[output], self.layouts[inputs[i]])
        return Arrangement(self.layouts, tuple(self.notes))

    def pin(self, values: Iterable[Value], axes_of: Mapping[Dim, Axes], *finders: Together) -> None:
        """Lay values so that dimensions of these classes are split over these axes.

        An axis is used once in an array; classes that come first in `axes_of` come first.
        """
        order = {found: k for k, found in enumerate(axes_of)}
        for value in values:
            wanted = []
            for dim in range(value.ndim):
                for each in finders:
                    found = each.of(value, dim)
                    if found is not None and found in axes_of:
                        wanted.append((order[found], dim, axes_of[found]))
            dims: list[Axes] = [()] * value.ndim
            used: set[str] = set()
            for _, dim, axes in sorted(wanted):
                if not used.intersection(axes) and not dims[dim]:
                    dims[dim] = axes
                    used.update(axes)
            if used:
                self.layouts[value] = Layout(tuple(dims))


_MOST_NAMES: Final = 4


def _several(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    if len(shown) == 1:
        return f"{shown[0]} is"
    rest = len(shown) - _MOST_NAMES
    return ", ".join(shown[:_MOST_NAMES]) + (f" and {rest} more are" if rest > 0 else " are")
