"""What resharding costs between all layouts of two values, each table worked out once.

Costs are a constant and a part that grows with the bytes of the array; both depend on the layouts alone,
and neither on which dimension is which. So few reshardings are costed. Only on TPUs does it depend on the
shape how a sum is scattered; what that costs more is added.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import jax
import numpy as np

from lepton_jax.parallel.factors import Factors, dims_axes, factor_axes
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.combining import COMBINED
from lepton_jax.parallel.resharding import reshard
from lepton_jax.parallel.solver.choices import PARTIAL, WHOLE, Layouts, index_layouts, real_axes
from lepton_jax.parallel.solver.objective import TIME, Objective
from lepton_jax.parallel.solver.problem import Floats
from lepton_jax.parallel.solver.rates import Rate, Rates, canonical
from lepton_jax.parallel.strategies import Strategy

_UNIT: Final = np.dtype("uint8")
_LARGE: Final = np.dtype("complex128")


class Tables:
    """Costs of resharding on one mesh; inf where a layout cannot come from another."""

    def __init__(self, mesh: MeshSpec, objective: Objective = TIME) -> None:
        self.mesh = mesh
        self.objective = objective
        self.names = real_axes(mesh)
        self._known: dict[int, Rate] = {}
        self._rates_of: dict[Any, Rates] = {}
        self._uneven: dict[Any, float] = {}
        self._full: dict[Any, Floats] = {}
        self._ways: dict[Any, Layouts] = {}
        self._followed: dict[Any, tuple[Floats, dict[int, tuple[Layouts, Floats]]]] = {}
        self._possible: dict[Any, Floats] = {}
        self._kept: list[Any] = []

    def back(self, aval: Any, before: Layouts, after: Layouts) -> Floats:
        """As `between`, with the labels after in rows."""
        key = (_key(aval), id(before), id(after), "back")
        if key not in self._full:
            self._full[key] = self.between(aval, before, after).T
        return self._full[key]

    def between(self, aval: Any, before: Layouts, after: Layouts, order: tuple[int, ...] = ()) -> Floats:
        """Of all labels before (rows) and after (columns); of an array that is stored in another order."""
        key = (_key(aval), id(before), id(after), order)
        if key not in self._full:
            small = self.distinct(aval, before.distinct, after.distinct, order)
            self._full[key] = small[np.ix_(before.index, after.index)]
            self._kept += [before, after]
        return self._full[key]

    def sums(self, before: Layouts, after: Layouts) -> Floats:
        """What it costs to complete sums however little is sent, of all labels before and after."""
        key = (id(before), id(after), "sums")
        if key not in self._full:
            small = self._known_rates(before.distinct, after.distinct).sums
            self._full[key] = small[np.ix_(before.index, after.index)]
            self._kept += [before, after]
        return self._full[key]

    def distinct(
        self, aval: Any, before: tuple[Layout, ...], after: tuple[Layout, ...], order: tuple[int, ...] = ()
    ) -> Floats:
        """From each of some layouts to each of others."""
        rates = self._known_rates(before, after)
        costs = rates.fixed + rates.per_byte * nbytes(aval)
        for i, j in rates.scattered:
            costs[i, j] += self._more(aval, before[i], after[j], order)
        return costs

    def _more(self, aval: Any, before: Layout, after: Layout, order: tuple[int, ...]) -> float:
        """What a sum costs more than one whose parts are whole tiles."""
        key = (_key(aval), before, after, order)
        if key not in self._uneven:
            if order:
                aval = jax.ShapeDtypeStruct([aval.shape[dim] for dim in order], aval.dtype)
                before, after = (
                    Layout(tuple(each.dims[dim] for dim in order), each.partial) for each in (before, after)
                )
            real, even = (
                self.objective.of(reshard(aval, before, after, self.mesh, even=each), self.mesh)
                for each in (False, True)
            )
            self._uneven[key] = real - even
        return self._uneven[key]

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
        key = (rule, home, tuple(map(id, places)), tuple(map(_key, avals)))
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

    def _known_rates(self, before: tuple[Layout, ...], after: tuple[Layout, ...]) -> Rates:
        key = (before, after)
        if key not in self._rates_of:
            self._rates_of[key] = self._rates(before, after)
        return self._rates_of[key]

    def _rates(self, before: tuple[Layout, ...], after: tuple[Layout, ...]) -> Rates:
        old, new = (np.array([self._code(each) for each in layouts]) for layouts in (before, after))
        shape = (len(before), len(after))
        count = len(self.names)
        pairs = np.empty((*shape, count, 2), np.int64)
        pairs[..., 0] = old[:, None, :]
        pairs[..., 1] = new[None, :, :]
        keys = canonical(pairs.reshape(-1, 2 * count))
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        rates = np.zeros((len(unique), 4))
        for n, (key, place) in enumerate(zip(unique.tolist(), first.tolist(), strict=True)):
            if key not in self._known:
                self._known[key] = self._rate(before[place // shape[1]], after[place % shape[1]])
            known = self._known[key]
            rates[n] = known.fixed, known.sums, known.per_byte, known.is_scattered
        table = rates[inverse.ravel()].reshape(*shape, 4)
        scattered = [(int(i), int(j)) for i, j in np.argwhere(table[..., 3])]
        return Rates(table[..., 0], table[..., 1], table[..., 2], scattered)

    def _code(self, layout: Layout) -> list[int]:
        """Of each axis the dimension that it splits; axes of one dimension are in the mesh's order."""
        where = {name: d for d, axes in enumerate(layout.dims) for name in axes}
        where.update(dict.fromkeys(layout.partial, PARTIAL))
        return [where.get(name, WHOLE) for name in self.names]

    def _rate(self, before: Layout, after: Layout) -> Rate:
        """What it costs for any array, and for each byte of it."""
        if before == after:
            return Rate()
        if not set(after.partial) <= set(before.partial):
            return Rate(fixed=np.inf)
        shape = (self.mesh.devices,) * before.ndim  # of which all parts are even
        small, large = (
            reshard(jax.ShapeDtypeStruct(shape, dtype), before, after, self.mesh, even=True)
            for dtype in (_UNIT, _LARGE)
        )
        whole = float(self.mesh.devices**before.ndim)

        def rate(kinds: Collection[str]) -> tuple[float, float]:
            costs = [
                self.objective.of([each for each in moves if each.kind in kinds], self.mesh)
                for moves in (small, large)
            ]
            per_byte = (costs[1] - costs[0]) / (whole * (_LARGE.itemsize - 1))
            return max(costs[0] - per_byte * whole, 0.0), per_byte

        fixed, per_byte = rate({each.kind for each in small})
        scatters = any(each.kind == "reduce-scatter" for each in small)
        return Rate(fixed, rate(COMBINED)[0], per_byte, scatters and self.mesh.chip.rates.platform == "tpu")


def _key(aval: Any) -> tuple[tuple[int, ...], int]:
    """What costs depend on."""
    return tuple(aval.shape), int(aval.dtype.itemsize)


def nbytes(aval: Any) -> float:
    """The bytes of a whole array."""
    return float(np.prod(aval.shape)) * float(aval.dtype.itemsize)
