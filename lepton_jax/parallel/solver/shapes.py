"""Which shape of mesh a program wants: every way to arrange so many devices along at most three axes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from lepton_jax.ir.graph import Graph
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.charges import SPARE
from lepton_jax.parallel.solver.fitting import CannotWin
from lepton_jax.parallel.solver.objective import TIME
from lepton_jax.parallel.solver.solution import Solution
from lepton_jax.parallel.solver.solve import solve

AXES: Final = ("data", "model", "other")
SLICE: Final = "slice"
T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """A way to arrange devices.

    Attributes:
        sizes: of the axes, by name.
        outer: the axes along which devices stand in different slices or nodes.
    """

    sizes: Mapping[str, int]
    outer: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.sizes.items())


@dataclass(frozen=True, eq=False)
class Attempt(Generic[T]):
    """What was found on one shape.

    Attributes:
        predicted: what is compared: seconds a step, or bytes.
        missing: bytes per device by which it does not fit.
        objective: seconds of what the search found by its own model, for `beat` of the next; inf where none
            searched for time.
        found: what it is.
        parts: into how many the batch is cut.
        flops: what a device computes, where bytes are compared: what is computed whole sends nothing.
    """

    predicted: float
    missing: float
    objective: float
    found: T
    parts: int = 1
    flops: float = 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """What fits first, then what is less."""
        return self.missing, self.predicted * self.parts**0.01


@dataclass(frozen=True, eq=False)
class Best(Generic[T]):
    """The best of the shapes, and what was found on each.

    Attributes:
        shape: the best.
        found: on it.
        tried: of each shape on which layouts were found, in words as `data=2,model=4`, what was compared.
        notes: what of the others: that they cannot win, or are not possible, or that there was no time.
    """

    shape: Shape
    found: T
    tried: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Found:
    """The best mesh, and what was found on each.

    Attributes:
        mesh: the best.
        solution: on it.
        tried: of each shape that was solved, in words as `data=2,model=4`, the predicted seconds; by bytes
            these, with a kilobyte for each millisecond.
        notes: shapes that were not solved, and why.
    """

    mesh: MeshSpec
    solution: Solution
    tried: dict[str, float]
    notes: tuple[str, ...] = ()


def mesh_shapes(devices: int, names: Sequence[str] = AXES, slices: int = 1) -> list[Shape]:
    """The ways to arrange so many devices, those with fewer axes first, and of these the more even ones.

    Of several slices, or nodes, one axis, `slice`, goes from one to the next, and no other does.

    Args:
        devices: how many, of all slices together.
        names: of the axes, as many as a mesh may have, `slice` not counted.
        slices: how many.

    Raises:
        ValueError: fewer than one device, no names, or devices that are not as many in each slice.

    Example:
        >>> [str(each) for each in mesh_shapes(8, slices=2)]
        ['slice=2,data=4', 'slice=2,data=2,model=2']
    """
    if devices < 1 or slices < 1 or not names:
        raise ValueError(f"a mesh has at least one device and one axis, not {devices} and {len(names)}")
    if devices % slices:
        raise ValueError(f"{devices} devices are not equally many in each of {slices} slices")
    across = {SLICE: slices} if slices > 1 else {}
    within = _shapes(devices // slices, len(names))
    return [Shape({**across, **dict(zip(names, sizes, strict=False))}, tuple(across)) for sizes in within]


def best_shape(
    shapes: Iterable[Shape], attempt: Callable[[Shape, float, float], Attempt[T]], seconds: float
) -> Best[T]:
    """The best of some shapes.

    Args:
        shapes: in the order in which they are tried.
        attempt: of a shape, the seconds it may take, and what its search is to beat. It raises `CannotWin`
            where it cannot, and `ValueError` where the shape is not possible.
        seconds: for all together; the first is tried in any case.

    Returns:
        the best, where bytes are compared of those on which a device computes about as little as it can.

    Raises:
        ValueError: none is possible: what the first says.
    """
    end = time.monotonic() + seconds
    left = list(shapes)
    made: list[tuple[Attempt[T], Shape]] = []
    beat, tried, notes = math.inf, dict[str, float](), list[str]()
    impossible: ValueError | None = None
    while left:
        shape = left.pop(0)
        until = end - time.monotonic()
        if made and until <= 0:
            notes.append(f"no time for {shape}")
            continue
        try:
            now = attempt(shape, max(until / (len(left) + 1), 0.1), beat)
        except CannotWin as error:
            notes.append(
                f"{shape} cannot win: at least {error.bound * 1e3:.4g} ms with nothing hidden, "
                f"and {beat * 1e3:.4g} ms were found"
            )
            continue
        except ValueError as error:
            impossible = impossible or error
            notes.append(f"{shape} is not possible: {error}")
            continue
        tried[str(shape)] = now.predicted
        if not now.missing:
            beat = min(beat, now.objective)
        made.append((now, shape))
    if not made:
        raise impossible or ValueError("there are no shapes to try")
    least = min((now.missing, now.flops) for now, _ in made)[1]
    best, shape = min(made, key=lambda each: (each[0].flops > least * (1 + SPARE), *each[0].rank))
    return Best(shape, best.found, tried, tuple(notes))


def attempted(solution: Solution, found: T) -> Attempt[T]:
    """What a solution is worth beside those for other shapes."""
    missing, parts = float(solution.missing), solution.microbatches
    if solution.by is TIME:
        return Attempt(solution.cost, missing, solution.objective, found, parts)
    flops = solution.candidates[0].predicted.flops if solution.candidates else 0.0
    return Attempt(solution.cost, missing, math.inf, found, parts, flops)


def search_mesh(
    graph: Graph,
    roles: Roles,
    devices: int,
    chip: str,
    *,
    names: Sequence[str] = AXES,
    slices: int = 1,
    memory: int | None = None,
    seconds: float = 60.0,
    objective: str = "time",
) -> Found:
    """The mesh of so many devices on which a program takes the least time, or sends the fewest bytes.

    Meshes with fewer axes are tried first, and of these the more even ones: an axis that is used for two
    things costs nothing, so few shapes matter. To the solver axes are names, so that of two orders of the
    same sizes only one is tried. A shape is not solved where a bound shows that its search cannot find less
    than was found before (both with nothing hidden); by bytes all are.

    Args:
        graph: with plain calls written into their callers.
        roles: of its inputs.
        devices: how many.
        chip: what they are, as `v5e`.
        names: of the axes, as many as a mesh may have.
        slices: how many slices or nodes the devices stand in; see `mesh_shapes`.
        memory: bytes per device; default: what the chips have.
        seconds: for all shapes together.
        objective: `time` or `bytes`; see `solve`.

    Raises:
        ValueError: as `mesh_shapes`; there is no such objective.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> from lepton_jax.parallel.roles import roles_of
        >>> w, x = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((8192, 8192), (4096, 8192)))
        >>> graph = trace(lambda w, x: x @ w, w, x)
        >>> found = search_mesh(graph, roles_of(graph, ["w", "x"]), 8, "v5e")
        >>> found.mesh.devices, 'data=8' in found.tried
        (8, True)
    """

    def attempt(shape: Shape, until: float, beat: float) -> Attempt[tuple[MeshSpec, Solution]]:
        mesh = MeshSpec.of(shape.sizes, chip, shape.outer)
        found = solve(graph, roles, mesh, memory=memory, seconds=until, beat=beat, objective=objective)
        return attempted(found, (mesh, found))

    best = best_shape(mesh_shapes(devices, names, slices), attempt, seconds)
    return Found(*best.found, best.tried, best.notes)


def _shapes(devices: int, axes: int) -> Iterator[tuple[int, ...]]:
    """The sizes, the largest first, of at most so many axes with this product."""
    found: set[tuple[int, ...]] = {(devices,)}
    for _ in range(axes - 1):
        found |= {
            tuple(sorted((*each[:i], size // part, part, *each[i + 1 :]), reverse=True))
            for each in found
            for i, size in enumerate(each)
            for part in range(2, size)
            if size % part == 0
        }
    return iter(sorted((each for each in found if len(each) <= axes), key=lambda each: (len(each), each)))
