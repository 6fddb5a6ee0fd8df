"""What resharding costs between all layouts of two values, each table worked out once.

Costs are a constant and a part that grows with the bytes of the array; both depend on the layouts alone,
and neither on which dimension is which. So few reshardings are costed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import numpy as np
import numpy.typing as npt

from lepton_jax.parallel.factors import Factors, dims_axes, factor_axes
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.resharding import reshard
from lepton_jax.parallel.solver.choices import PARTIAL, WHOLE, Layouts, index_layouts, real_axes
from lepton_jax.parallel.solver.objective import TIME, Objective
from lepton_jax.parallel.solver.problem import Floats
from lepton_jax.parallel.strategies import Strategy

_UNIT: Final = np.dtype("uint8")
_LARGE: Final = np.dtype("complex128")
Codes = npt.NDArray[np.int64]


class Tables:
    """Costs of resharding on one mesh; inf where a layout cannot come from another."""

    def __init__(self, mesh: MeshSpec, objective: Objective = TIME) -> None:
        self.mesh = mesh
        self.objective = objective
        self.names = real_axes(mesh)
        self._known: dict[int, tuple[float, float]] = {}
        self._rates_of: dict[Any, tuple[Floats, Floats]] = {}
        self._full: dict[Any, Floats] = {}
        self._ways: dict[Any, Layouts] = {}
        self._followed: dict[Any, tuple[Floats, dict[int, tuple[Layouts, Floats]]]] = {}
        self._possible: dict[Any, Floats] = {}
        self._kept: list[Any] = []

    def back(self, aval: Any, before: Layouts, after: Layouts) -> Floats:
        """As `between`, with the labels after in rows."""
        key = (nbytes(aval), id(before), id(after), "back")
        if key not in self._full:
            self._full[key] = self.between(aval, before, after).T
        return self._full[key]

    def between(self, aval: Any, before: Layouts, after: Layouts) -> Floats:
        """Of all labels before (rows) and after (columns)."""
        key = (nbytes(aval), id(before), id(after))
        if key not in self._full:
            small = self.distinct(aval, before.distinct, after.distinct)
            self._full[key] = small[np.ix_(before.index, after.index)]
            self._kept += [before, after]
        return self._full[key]

    def distinct(self, aval: Any, before: tuple[Layout, ...], after: tuple[Layout, ...]) -> Floats:
        """From each of some layouts to each of others."""
        key = (before, after)
        if key not in self._rates_of:
            self._rates_of[key] = self._rates(before, after)
        fixed, per_byte = self._rates_of[key]
        return fixed + per_byte * nbytes(aval)

    def indexed(self, ways: Sequence[Strategy], position: int) -> Layouts:
        """The layouts that strategies want an operand in, or make a result in."""
        key = (tuple(map(id, ways)), position)
        if key not in self._ways:
            self._kept += ways
            self._ways[key] = index_layouts([(*way.operands, *way.results)[position] for way in ways])
        return self._ways[key]

    def possible(self, table: Floats, ways: Sequence[Strategy], own: Layouts, times: int) -> Floats:
        """A table, so many times, without pairs in which an axis splits the array and no factor.

        The partitioner splits an operation along every axis that splits one of its arrays.
        """
        key = (tuple(map(id, ways)), id(own), id(table), times)
        if key not in self._possible:
            used = [{name for axes in way.axes for name in axes} for way in ways]
            split = [set(layout.axes) for layout in own.distinct]
            forbidden = np.array([[np.inf if axes - names else 0.0 for axes in split] for names in used])
            self._possible[key] = table * times + forbidden[:, own.index]
            self._kept += [own, *ways, table]
        return self._possible[key]

    def follow(
        self,
        factors: Factors,
        home: int,
        places: Sequence[Layouts | None],
        avals: Sequence[Any],
        operands: int,
    ) -> tuple[Floats, dict[int, tuple[Layouts, Floats]]]:
        """How an operation is computed that follows one of its arrays.

        Args:
            factors: of the operation.
            home: the position of the array that it follows, among operands and results.
            places: of operands and results the layouts by label; None for those without dimensions.
            avals: of operands and results.
            operands: how many of them are operands.

        Returns:
            Of each label of the array followed the share of the work that each device has; and by position of
            those that cost something how they are wanted by label, with what that costs if they go by the
            same labels, or are whole.
        """
        rule = (factors.sizes, factors.operands, factors.results, tuple(factors.reduced), factors.whole)
        key = (rule, home, tuple(map(id, places)), tuple(map(nbytes, avals)))
        if key not in self._followed:
            self._kept += places
            self._followed[key] = self._follow(factors, home, places, avals, operands)
        return self._followed[key]

    def _follow(
        self,
        factors: Factors,
        home: int,
        places: Sequence[Layouts | None],
        avals: Sequence[Any],
        operands: int,
    ) -> tuple[Floats, dict[int, tuple[Layouts, Floats]]]:
        lies = places[home]
        assert lies is not None
        all_dims = (*factors.operands, *factors.results)
        sizes = {axis.name: axis.size for axis in self.mesh.axes}
        axes = [factor_axes(all_dims[home], each.dims, factors, sizes) for each in lies.distinct]
        share = np.array(
            [1.0 / self.mesh.size(*(n for names in each.values() for n in names)) for each in axes]
        )
        sums = [
            tuple(n for n in self.names for f in factors.reduced if n in each.get(f, ())) for each in axes
        ]
        needs: dict[int, tuple[Layouts, Floats]] = {}
        for n, (own, dims, aval) in enumerate(zip(places, all_dims, avals, strict=True)):
            wanted = [
                Layout(dims_axes(dims, each, factors, sizes), () if n < operands else partial)
                for each, partial in zip(axes, sums, strict=True)
            ]
            asked = Layouts(tuple(dict.fromkeys(wanted)), np.empty(0, np.intp))
            where = {layout: i for i, layout in enumerate(asked.distinct)}
            index = np.array([where[each] for each in wanted], np.intp)[lies.index]
            asked = Layouts(asked.distinct, index)
            if own is None:
                if any(partial for partial in sums) and n >= operands:
                    whole = self.distinct(aval, asked.distinct, (Layout.whole(len(aval.shape)),))
                    needs[n] = asked, whole[index, 0]
                continue
            if len(own.index) == len(index) and all(
                own.distinct[o] == asked.distinct[a] for o, a in zip(own.index, index, strict=True)
            ):
                needs[n] = asked, np.zeros(len(index))
                continue
            closed = np.zeros(len(index))
            if len(own.index) == len(index):
                before, after = (own, asked) if n < operands else (asked, own)
                closed = self.distinct(aval, before.distinct, after.distinct)[before.index, after.index]
            needs[n] = asked, closed
        return share[lies.index], needs

    def _rates(self, before: tuple[Layout, ...], after: tuple[Layout, ...]) -> tuple[Floats, Floats]:
        old, new = (np.array([self._code(each) for each in layouts]) for layouts in (before, after))
        shape = (len(before), len(after))
        count = len(self.names)
        pairs = np.empty((*shape, count, 2), np.int64)
        pairs[..., 0] = old[:, None, :]
        pairs[..., 1] = new[None, :, :]
        keys = _canonical(pairs.reshape(-1, 2 * count))
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        rates = np.zeros((len(unique), 2))
        for n, (key, place) in enumerate(zip(unique.tolist(), first.tolist(), strict=True)):
            if key not in self._known:
                self._known[key] = self._rate(before[place // shape[1]], after[place % shape[1]])
            rates[n] = self._known[key]
        table = rates[inverse.ravel()].reshape(*shape, 2)
        return table[..., 0], table[..., 1]

    def _code(self, layout: Layout) -> list[int]:
        """Of each axis the dimension that it splits; axes of one dimension are in the mesh's order."""
        where = {name: d for d, axes in enumerate(layout.dims) for name in axes}
        where.update(dict.fromkeys(layout.partial, PARTIAL))
        return [where.get(name, WHOLE) for name in self.names]

    def _rate(self, before: Layout, after: Layout) -> tuple[float, float]:
        """What it costs for any array, and for each byte of it."""
        if before == after:
            return 0.0, 0.0
        if not set(after.partial) <= set(before.partial):
            return np.inf, 0.0
        shape = (self.mesh.devices,) * before.ndim  # of which all parts are even
        small, large = (
            self.objective.of(
                reshard(jax.ShapeDtypeStruct(shape, dtype), before, after, self.mesh), self.mesh
            )
            for dtype in (_UNIT, _LARGE)
        )
        whole = float(self.mesh.devices**before.ndim)
        per_byte = (large - small) / (whole * (_LARGE.itemsize - 1))
        return max(small - per_byte * whole, 0.0), per_byte


def _canonical(pairs: Codes) -> Codes:
    """A number for each row of dimensions that is the same when dimensions are called otherwise."""
    columns = pairs.shape[1]
    named = pairs.copy()
    fresh = np.zeros(len(pairs), np.int64)
    for k in range(columns):
        is_dim = pairs[:, k] >= 0
        new = is_dim.copy()
        for j in range(k):
            same = is_dim & (pairs[:, j] == pairs[:, k])
            named[same, k] = named[same, j]
            new &= ~same
        named[new, k] = fresh[new]
        fresh += new
    number = np.zeros(len(pairs), np.int64)
    for k in range(columns):
        number = number * (columns + 2) + named[:, k] + 2
    return number


def nbytes(aval: Any) -> float:
    """The bytes of a whole array."""
    return float(np.prod(aval.shape)) * float(aval.dtype.itemsize)
