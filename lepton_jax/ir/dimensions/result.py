"""What the analysis of dimensions finds: groups of slices that are cut together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lepton_jax.ir.dimensions.atoms import DimensionError, Ints, Kept, Parts
from lepton_jax.ir.graph import Graph, Node, Value

Kind = Literal["channels", "layers"]

__all__ = ["Count", "Dependencies", "DimensionError", "Group", "Kept", "Kind", "Slice"]


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units of a group lie in one dimension of one parameter.

    Attributes:
        path: the parameter's path, as `params/dense/kernel`.
        position: its position among the graph's inputs.
        dim: the dimension.
        positions: the indices of each unit along this dimension: int64, [units, indices per unit].
    """

    path: str
    position: int
    dim: int
    positions: Ints


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be cut, each with all that goes with it.

    Attributes:
        name: the path and the dimension of a parameter whose slices it has, as `params/dense/kernel[1]`.
        units: how many there are.
        params: the slices of parameters; a parameter appears once for each dimension concerned.
        pinned: why none of the units can be cut; None if they can.
        kind: `channels`, or `layers` where a unit is an iteration of a scan over stacked parameters.
    """

    name: str
    units: int
    params: tuple[Slice, ...]
    pinned: str | None = None
    kind: Kind = "channels"

    def __str__(self) -> str:
        what = "layer" if self.kind == "layers" else "unit"
        head = f"{self.name}: {self.units} {what}{'s' if self.units != 1 else ''}"
        if self.pinned is not None:
            return f"{head}, not to be cut: {self.pinned}"
        sizes = [(f"{each.path}[{each.dim}]", each.positions.shape[1]) for each in self.params]
        first, rest = sizes[0], sizes[1:]
        for i, each in enumerate(sizes):
            if self.name.startswith(each[0]):
                first, rest = each, sizes[:i] + sizes[i + 1 :]
        whole = first[1]
        others = [name if count == 1 else f"{name} ({count} each)" for name, count in rest]
        head += f" of {whole}" if whole > 1 else ""
        return f"{head}, with {', '.join(others)}" if others else head


@dataclass(frozen=True, eq=False)
class Count:
    """A constant that is the number of elements of some dimensions: the divisor of a mean.

    Attributes:
        node: a `div`, or a `mul` by the reciprocal.
        operand: the operand of it that is the constant.
        old: the number as it is in the graph.
        dims: the dimensions that were counted: value and dimension of each.
        offset: what is added to the count: -1 in a variance with one degree of freedom less.
        reciprocal: whether the constant is one over the number.
    """

    node: Node
    operand: int
    old: float
    dims: tuple[tuple[Value, int], ...]
    offset: int = 0
    reciprocal: bool = False

    def new(self, kept: Mapping[Value, Kept]) -> float:
        """The number after a cut.

        Args:
            kept: what `Dependencies.kept` gave.
        """
        number = 1
        for value, dim in self.dims:
            indices = kept[value][dim]
            number *= value.shape[dim] if indices is None else len(indices)
        number += self.offset
        return 1.0 / number if self.reciprocal else float(number)


@dataclass(eq=False)
class Dependencies:
    """Which dimensions of a program are cut together; print it.

    Attributes:
        graph: the program.
        groups: the units that can be cut and those that cannot, in the order of the parameters.
        counts: constants that a cut changes.
        parts: the parts of all dimensions.
    """

    graph: Graph
    groups: tuple[Group, ...]
    counts: tuple[Count, ...]
    parts: Parts = field(repr=False)

    @property
    def cuttable(self) -> tuple[Group, ...]:
        """The groups whose units can be cut."""
        return tuple(group for group in self.groups if group.pinned is None)

    def __getitem__(self, name: str) -> Group:
        """The group of this name.

        Raises:
            KeyError: there is none; the message lists the names.
        """
        for group in self.groups:
            if group.name == name:
                return group
        names = ", ".join(group.name for group in self.groups)
        raise KeyError(f"there is no group {name!r}; there are {names}")

    def group_of(self, path: str, dim: int) -> tuple[Group, ...]:
        """The groups that have slices in a dimension of a parameter."""
        return tuple(
            group for group in self.groups if any(s.path == path and s.dim == dim for s in group.params)
        )

    def select(self, kept_units: Mapping[str, Sequence[int] | Ints]) -> dict[tuple[int, int], Ints]:
        """What stays of parameters where these units of these groups stay, for `kept`.

        Args:
            kept_units: of groups, by name, the units that stay; groups left out stay whole.

        Returns:
            By position of the parameter and dimension the indices that stay, increasing, int64: only
            of dimensions that are cut.

        Raises:
            KeyError: there is no such group.
        """
        gone: dict[tuple[int, int], list[Ints]] = {}
        for name, units in kept_units.items():
            group = self[name]
            cut = np.setdiff1d(np.arange(group.units), np.asarray(units, np.int64))
            for each in group.params if len(cut) else ():
                gone.setdefault((each.position, each.dim), []).append(each.positions[cut].ravel())
        sizes = {key: self.graph.inputs[key[0]].shape[key[1]] for key in gone}
        return {key: np.setdiff1d(np.arange(sizes[key]), np.concatenate(cut)) for key, cut in gone.items()}

    def kept(self, param_kept: Mapping[tuple[int, int], Ints]) -> dict[Value, Kept]:
        """What stays of each dimension of every value, where this stays of the parameters.

        Args:
            param_kept: by the parameter's position among the inputs and by dimension the indices that
                stay, increasing. Dimensions left out lose what the others take with them.

        Returns:
            Of every value, those of regions and constants (but scalars) included. Values inside operations
            that are not understood are left out: nothing of them is cut.

        Raises:
            DimensionError: one of the indices that go cannot be cut, with the operation that pins it; or
                an index stays of which another says that it goes.
        """
        return self.parts.kept(self.graph, param_kept)

    def __str__(self) -> str:
        free = self.cuttable
        units = sum(group.units for group in free)
        groups = "1 group" if len(free) == 1 else f"{len(free)} groups"
        lines = [f"{self.graph.name}: {groups} of {units} units in all can be cut"]
        lines += [f"  {group}" for group in free]
        reasons: dict[str, list[str]] = {}
        for group in self.groups:
            if group.pinned is not None:
                places = [f"{each.path}[{each.dim}]" for each in group.params]
                reasons.setdefault(group.pinned, []).extend(places)
        lines += ["not to be cut:"] if reasons else []
        lines += [f"  {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]
        return "\n".join(lines)
