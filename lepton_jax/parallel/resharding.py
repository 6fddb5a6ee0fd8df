"""What it takes to lay an array otherwise: the collectives that XLA's partitioner writes.

Sums are completed first, what can be sliced is sliced, then axes are renamed in place, moved from one
dimension to another, and gathered last. The order is that of Shardy's reshard lowering, in which no step
makes the array larger before a step that could make it smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lepton_jax.parallel.collectives import Collective, Kind
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.scattering import fills_torus, scattered

Axes = tuple[str, ...]


def reshard(
    aval: Any, before: Layout, after: Layout, mesh: MeshSpec, *, even: bool = False, joined: bool = False
) -> tuple[Collective, ...]:
    """The collectives that bring an array from one layout to another, in the order in which they run.

    Args:
        aval: shape and dtype of the array, any dtype; bytes follow from them.
        before: how it lies; may be parts of a sum.
        after: how it shall lie; a sum over an axis may stay in parts.
        mesh: the mesh.
        even: whether parts of sums are taken to be whole tiles, so that all are scattered (`scattering`).
        joined: whether a sum over several axes is completed over all of them at once, as those are that
            reductions make, and not products.

    Returns:
        none where each device has what it needs: nothing to do, or a slice of what it holds.

    Raises:
        ValueError: the layouts have other numbers of dimensions than the array, or `after` is a sum over an
            axis over which `before` is none.

    Example:
        >>> import jax
        >>> mesh = MeshSpec.of("data=2,model=4", chip="v5e")
        >>> x = jax.ShapeDtypeStruct((64, 128), "float32")
        >>> [str(c.kind) for c in reshard(x, Layout(((), ()), ("model",)), Layout((("model",), ())), mesh)]
        ['reduce-scatter']
        >>> reshard(x, Layout.whole(2), Layout((("data",), ())), mesh)
        ()
    """
    ndim = len(aval.shape)
    if before.ndim != ndim or after.ndim != ndim:
        raise ValueError(f"an array of {ndim} dimensions cannot go from {before} to {after}")
    if unknown := [name for name in after.partial if name not in before.partial]:
        raise ValueError(
            f"{before} has no parts of a sum over {', '.join(unknown)}, so it cannot become {after}"
        )
    if before == after:
        return ()
    moves = _Moves(aval, before, after, mesh, even, joined)
    moves.reduce()
    moves.slice()
    if not moves.rename():
        moves.order()
        moves.exchange()
        moves.gather()
    return tuple(moves.found)


def stops(aval: Any, before: Layout, after: Layout, mesh: MeshSpec) -> tuple[Layout, ...]:
    """The layouts on the way from one to another, where it has several steps and XLA would not find it.

    XLA's partitioner knows steps of one kind. Where axes are moved to another dimension, or renamed, and
    others are gathered, it gathers everything instead ("involuntary full rematerialization").

    Args:
        aval: shape and dtype of the array.
        before: how it lies; no parts of a sum.
        after: how it shall lie.
        mesh: the mesh.

    Example:
        >>> import jax
        >>> mesh = MeshSpec.of("data=2,model=4", chip="v5e")
        >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
        >>> ends = Layout(((), ("data", "model"))), Layout((("model",), ()))
        >>> [str(layout) for layout in stops(x, *ends, mesh)]
        ['[model, data]']
    """
    if before == after or before.partial or after.partial:
        return ()
    moves = _Moves(aval, before, after, mesh)
    moves.slice()
    if moves.rename():
        return ()
    moves.order()
    moves.exchange()
    moves.gather()
    return tuple(moves.passed[:-1])


class _Moves:
    """The layout as it is on the way, and the collectives so far."""

    def __init__(
        self,
        aval: Any,
        before: Layout,
        after: Layout,
        mesh: MeshSpec,
        even: bool = False,
        joined: bool = False,
    ) -> None:
        self.aval = aval
        self.mesh = mesh
        self.tiled = mesh.chip.rates.platform == "tpu" and not even
        self.joined = joined
        self.dims = [_real(axes, mesh) for axes in before.dims]
        self.goal = [_real(axes, mesh) for axes in after.dims]
        self.partial = [name for name in _real(before.partial, mesh) if name not in after.partial]
        self.stays = set(after.partial)
        self.found: list[Collective] = []
        self.passed: list[Layout] = []

    def add(self, kind: Kind, axes: Iterable[str], share: float = 1.0) -> None:
        """One more, whose result lies as the array lies now; or is a share of that."""
        chosen = set(axes)
        ordered = tuple(name for name in self.mesh.names if name in chosen)
        nbytes = round(share * Layout(tuple(self.dims)).local_bytes(self.aval, self.mesh))
        if kind in ("all-gather", "reduce-scatter") and fills_torus(ordered, self.mesh):
            nbytes *= self.mesh.devices if kind == "reduce-scatter" else 1
            kind = "all-reduce"
        self.found.append(Collective(kind, ordered, nbytes))
        self.passed.append(Layout(tuple(self.dims)))

    def reduce(self) -> None:
        """Complete the sums: each device gets the slice that it shall have, or all of it.

        Where some axes of the sum split the result, it is scattered over these, and its parts are added up
        over the others: so compiling for TPUs showed. For CPUs XLA does not scatter.
        """
        if not self.partial:
            return
        split = {d: run for d in range(len(self.dims)) if (run := self._sliceable(d, self.partial))}
        rest = set(self.partial)
        if len(split) == 1 and self.mesh.chip.rates.platform != "cpu":
            ((dim, run),) = split.items()
            if not self.joined or rest == set(run):
                self.scatter(dim, run)
                rest -= set(run)
        if rest:
            self.add("all-reduce", rest)
        self.partial = []

    def scatter(self, dim: int, run: Axes) -> None:
        """Each device gets its slice along a dimension."""
        before = self.dims[dim]
        self.dims[dim] += run
        shape = Layout(tuple(self.dims)).local_shape(self.aval.shape, self.mesh)
        is_tiled = self.tiled and not fills_torus(run, self.mesh)
        slices = scattered(shape, dim, self.mesh.size(*run)) if is_tiled else (shape[dim],)
        if slices is None:
            self.dims[dim] = before
            self.add("all-reduce", run)
            self.dims[dim] += run
            return
        first, *shifts = slices
        self.add("reduce-scatter", run, first / shape[dim])
        for shift in shifts:
            self.add("collective-permute", run, shift / shape[dim])

    def slice(self) -> None:
        """Axes that split nothing yet and shall split the next smaller part."""
        for d in range(len(self.dims)):
            used = {name for axes in self.dims for name in axes} | self.stays
            free = [name for name in self.mesh.names if name not in used]
            self.dims[d] += self._sliceable(d, free)

    def _sliceable(self, d: int, free: Iterable[str]) -> Axes:
        have, want = self.dims[d], self.goal[d]
        if want[: len(have)] != have:
            return ()
        allowed = set(free)
        run: list[str] = []
        for name in want[len(have) :]:
            if name not in allowed:
                break
            run.append(name)
        return tuple(run)

    def rename(self) -> bool:
        """One permutation of the devices, where parts or slices of them are parts; whether all is done."""
        if self.dims == self.goal:
            return True
        same = all(
            self.mesh.size(*want) % self.mesh.size(*have) == 0
            for have, want in zip(self.dims, self.goal, strict=True)
        )
        if same:
            pairs = list(zip(self.dims, self.goal, strict=True))
            changed = {name for a, b in pairs for name in (*a[_common(a, b) :], *b[_common(a, b) :])}
            self.dims = list(self.goal)
            self.add("collective-permute", changed)
        return same

    def order(self) -> None:
        """Put within each dimension what stays first, then what is gathered, then what moves elsewhere."""
        moved: set[str] = set()
        for d, have in enumerate(self.dims):
            want = self.goal[d]
            stay = tuple(name for name in want if name in have)
            elsewhere = {name for e, axes in enumerate(self.goal) if e != d for name in axes}
            rest = [name for name in have if name not in stay]
            new = (*stay, *(n for n in rest if n not in elsewhere), *(n for n in rest if n in elsewhere))
            if stay != want[: len(stay)] or new == have:
                continue
            start = _common(have, new)
            moved.update(have[start:])
            self.dims[d] = new
        if moved:
            self.add("collective-permute", moved)

    def exchange(self) -> None:
        """Move axes from one dimension to another, as many at once as go the same way."""
        pairs = [(d, e) for d in range(len(self.dims)) for e in range(len(self.dims)) if d != e]
        while True:
            for d, e in pairs:
                if run := self._movable(d, e):
                    self.dims[d] = self.dims[d][: -len(run)]
                    self.dims[e] += run
                    self.add("all-to-all", run)
                    self.slice()
                    break
            else:
                break
        for d, e in pairs:
            if self._swapped(d, e):
                axes = {*self.dims[d], *self.dims[e]} - set(self.dims[d]) & set(self.goal[d])
                larger = max((self.dims[d], self.dims[e]), key=lambda names: self.mesh.size(*names))
                self.add("all-to-all", larger)
                self.dims[d], self.dims[e] = self.goal[d], self.goal[e]
                self.add("collective-permute", axes)

    def _swapped(self, d: int, e: int) -> bool:
        """Whether two dimensions want each other's axes: parts move, then devices are permuted."""
        have, want = (self.dims[d], self.dims[e]), (self.goal[d], self.goal[e])
        return (
            have[0] != want[0]
            and have[1] != want[1]
            and sorted(have[0] + have[1]) == sorted(want[0] + want[1])
        )

    def _movable(self, d: int, e: int) -> Axes:
        """The longest run of minor axes of `d` that `e` wants next."""
        have, want = self.dims[d], self.goal[e]
        if want[: len(self.dims[e])] != self.dims[e]:
            return ()
        missing = want[len(self.dims[e]) :]
        start = _common(have, self.goal[d])
        for first in range(start, len(have)):
            run = have[first:]
            if missing[: len(run)] == run:
                return run
        return ()

    def gather(self) -> None:
        """Gather what is left over, and slice what came from elsewhere."""
        together: list[str] = []
        for d, have in reversed(list(enumerate(self.dims))):
            keep = _common(have, self.goal[d])
            if keep < len(have):
                self.dims[d] = have[:keep]
                if self.mesh.chip.rates.platform == "tpu":
                    together += have[keep:]
                else:
                    self.add("all-gather", have[keep:])
        if together:
            self.add("all-gather", together)
        self.dims = list(self.goal)


def _real(axes: Iterable[str], mesh: MeshSpec) -> Axes:
    """Without axes along which one device stands."""
    return tuple(name for name in axes if mesh.size(name) > 1)


def _common(a: Axes, b: Axes) -> int:
    """How many axes two dimensions have in common, from the major end."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def nbytes(collectives: Iterable[Collective]) -> int:
    """The bytes of all results together, each as often as it runs."""
    return sum(each.bytes * each.times for each in collectives)


def seconds(collectives: Iterable[Collective], mesh: MeshSpec) -> float:
    """How long they take one after the other."""
    return math.fsum(each.seconds(mesh) * each.times for each in collectives)
