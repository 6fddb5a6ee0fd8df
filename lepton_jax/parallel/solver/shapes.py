"""Which shape of mesh a program wants: every way to arrange so many devices along at most three axes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lepton_jax.ir.graph import Graph
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.roles import Roles
from lepton_jax.parallel.solver.solution import Solution
from lepton_jax.parallel.solver.solve import solve


@dataclass(frozen=True, eq=False)
class Found:
    """The best mesh, and what was found on each.

    Attributes:
        mesh: the best.
        solution: on it.
        tried: of each shape that was solved, in words as `data=2,model=4`, the predicted seconds.
        notes: shapes for which there was no time.
    """

    mesh: MeshSpec
    solution: Solution
    tried: dict[str, float]
    notes: tuple[str, ...] = ()


def search_mesh(
    graph: Graph,
    roles: Roles,
    devices: int,
    chip: str,
    *,
    names: Sequence[str] = ("data", "model", "other"),
    memory: int | None = None,
    seconds: float = 60.0,
) -> Found:
    """The mesh of so many devices on which a program takes the least time.

    Meshes with fewer axes are tried first, and of these the more even ones: an axis that is used for two
    things costs nothing, so few shapes matter. To the solver axes are names, so that of two orders of the
    same sizes only one is tried.

    Args:
        graph: with plain calls written into their callers.
        roles: of its inputs.
        devices: how many.
        chip: what they are, as `v5e`.
        names: of the axes, as many as a mesh may have.
        memory: bytes per device; default: what the chips have.
        seconds: for all shapes together.

    Raises:
        ValueError: fewer than one device, or no names.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> from lepton_jax.parallel.roles import roles_of
        >>> w, x = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((8192, 8192), (4096, 8192)))
        >>> graph = trace(lambda w, x: x @ w, w, x)
        >>> found = search_mesh(graph, roles_of(graph, ["w", "x"]), 8, "v5e")
        >>> found.mesh.devices, sorted(found.tried)
        (8, ['data=2,model=2,other=2', 'data=4,model=2', 'data=8'])
    """
    if devices < 1 or not names:
        raise ValueError(f"a mesh has at least one device and one axis, not {devices} and {len(names)}")
    end = time.monotonic() + seconds
    best: tuple[tuple[float, float], MeshSpec, Solution] | None = None
    tried: dict[str, float] = {}
    missed = []
    shapes = list(_shapes(devices, len(names)))
    for n, sizes in enumerate(shapes):
        mesh = MeshSpec.of(dict(zip(names, sizes, strict=False)), chip)
        left = end - time.monotonic()
        if best is not None and left <= 0:
            missed.append(f"no time for {mesh}")
            continue
        found = solve(graph, roles, mesh, memory=memory, seconds=max(left / (len(shapes) - n), 0.1))
        tried[str(mesh)] = found.predicted
        rank = float(found.missing), found.predicted * found.microbatches**0.01
        if best is None or rank < best[0]:
            best = rank, mesh, found
    assert best is not None
    return Found(best[1], best[2], tried, tuple(missed))


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
