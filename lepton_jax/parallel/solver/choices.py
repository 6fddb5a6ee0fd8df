"""The labels of a cluster: on which dimension group each mesh axis is, and how its values then lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.solver.groups import Cluster

WHOLE: Final = -1
PARTIAL: Final = -2
Label = tuple[int, ...]
"""Of each mesh axis with more than one device the group that it splits, or `WHOLE`, or `PARTIAL`."""
_LIGHT: Final = 0.05


@dataclass(frozen=True, eq=False)
class Layouts:
    """The layouts of a value under the labels of its variable.

    Attributes:
        distinct: each once.
        index: of each label which of them.
    """

    distinct: tuple[Layout, ...]
    index: npt.NDArray[np.intp]

    def of(self, label: int) -> Layout:
        """The layout under one label."""
        return self.distinct[int(self.index[label])]


def real_axes(mesh: MeshSpec) -> list[str]:
    """The axes along which there is something to decide."""
    return [axis.name for axis in mesh.axes if axis.size > 1]


def labels_of(cluster: Cluster, mesh: MeshSpec) -> list[Label]:
    """The labels of a cluster, the one that splits nothing first.

    Groups that few of its bytes have are left out, and so is what does not divide.
    """
    names = real_axes(mesh)
    most = {0: 1, 1: 6, 2: 5}.get(len(names), 4)
    order = sorted(range(len(cluster.sizes)), key=lambda g: (-cluster.weights[g], g))
    heaviest = cluster.weights[order[0]] if order else 0.0
    groups = sorted(g for g in order[:most] if cluster.weights[g] >= _LIGHT * heaviest)
    places = [WHOLE, *groups, *([PARTIAL] if cluster.sums else [])]
    sizes = [mesh.size(name) for name in names]
    found = []
    for label in itertools.product(places, repeat=len(names)):
        counts: dict[int, int] = {}
        for group, size in zip(label, sizes, strict=True):
            counts[group] = counts.get(group, 1) * size
        if all(g < 0 or cluster.sizes[g] % count == 0 for g, count in counts.items()):
            found.append(label)
    return found


def layout_of(row: Sequence[int | None], label: Label, names: Sequence[str]) -> Layout:
    """How a value lies whose dimensions have these groups."""
    dims = tuple(
        () if group is None else tuple(n for n, g in zip(names, label, strict=True) if g == group)
        for group in row
    )
    return Layout(dims, tuple(n for n, g in zip(names, label, strict=True) if g == PARTIAL))


def label_of(row: Sequence[int | None], layout: Layout, names: Sequence[str]) -> Label | None:
    """The label under which a value lies so; None where no label does it."""
    label = [WHOLE] * len(names)
    for group, axes in zip(row, layout.dims, strict=True):
        for axis in axes:
            if axis not in names:
                continue
            if group is None:
                return None
            label[list(names).index(axis)] = group
    found = tuple(label)
    return found if layout_of(row, found, names).dims == _real(layout, names) else None


def _real(layout: Layout, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(n for n in axes if n in names) for axes in layout.dims)


def index_layouts(layouts: Sequence[Layout]) -> Layouts:
    """Layouts by label, each distinct one once."""
    known: dict[Layout, int] = {}
    index = [known.setdefault(layout, len(known)) for layout in layouts]
    return Layouts(tuple(known), np.array(index, dtype=np.intp))
