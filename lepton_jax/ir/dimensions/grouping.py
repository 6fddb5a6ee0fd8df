"""From atoms to groups of units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from lepton_jax.ir.dimensions.atoms import Atoms, Bools, Dims, Ints
from lepton_jax.ir.dimensions.result import Group, Kind, Slice

_SEED = 0x1E9707


def groups_of(
    atoms: Atoms, dims: Mapping[int, Dims], paths: Mapping[int, str], layers: list[Ints]
) -> tuple[Group, ...]:
    """The groups of the parameters' slices.

    Units that have as many indices of the same dimensions as each other are one group.

    Args:
        dims: of each parameter, by its position among the inputs, its atoms.
        paths: the parameters' names.
        layers: the atoms of scans' iterations.
    """
    keys = [(position, dim) for position, each in dims.items() for dim in range(len(each))]
    every = [dims[position][dim] for position, dim in keys]
    if not every:
        return ()
    flat = np.concatenate(every)
    place = np.repeat(np.arange(len(keys)), [len(each) for each in every])
    index = np.concatenate([np.arange(len(each)) for each in every])
    unit = atoms.labels(flat)
    order = np.lexsort((index, place, unit))
    unit, place, index = unit[order], place[order], index[order]
    pinned = atoms.pinned(unit)
    starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]])
    kinds = _signatures(unit, place, pinned, starts)
    scanned = np.zeros(atoms.size, bool)
    for each in layers:
        scanned[atoms.labels(each)] = True
    _, first, which = np.unique(kinds, return_index=True, return_inverse=True)
    of_row = np.repeat(which.ravel(), np.diff(np.r_[starts, len(unit)]))
    last = {position: len(each) - 1 for position, each in dims.items()}
    found = []
    for kind in np.argsort(starts[first], kind="stable"):
        rows = of_row == kind
        leader = int(unit[starts[first[kind]]])
        why = atoms.reason(leader)
        slices = tuple(_slices(unit[rows], place[rows], index[rows], keys, paths, why is None))
        what: Kind = "layers" if scanned[leader] else "channels"
        count = len(np.unique(unit[rows]))
        found.append(Group(_name(slices, last), count, slices, why, what))
    return tuple(_named_apart(found))


def _signatures(unit: Ints, place: Ints, pinned: Bools, starts: Ints) -> Ints:
    """Of each unit a number that is the same for units with as many indices of the same dimensions."""
    random = np.random.default_rng(_SEED)
    numbers = random.integers(0, 2**63, size=(int(place.max()) + 1), dtype=np.uint64)
    weights = numbers[place]
    again = np.r_[False, (unit[1:] == unit[:-1]) & (place[1:] == place[:-1])]
    weights[again & pinned] = 0
    return np.add.reduceat(weights, starts) + pinned[starts].astype(np.uint64)


def _slices(
    unit: Ints, place: Ints, index: Ints, keys: list[tuple[int, int]], paths: Mapping[int, str], even: bool
) -> Iterator[Slice]:
    units = len(np.unique(unit))
    for each in np.unique(place):
        rows = place == each
        position, dim = keys[each]
        positions = index[rows].reshape(units, -1) if even else np.sort(index[rows])[None, :]
        yield Slice(paths[position], position, dim, positions)


def _name(slices: tuple[Slice, ...], last: Mapping[int, int]) -> str:
    """After the first parameter whose last of several dimensions it is: that one makes the units."""
    best = next((each for each in slices if 0 < each.dim == last[each.position]), slices[0])
    return f"{best.path}[{best.dim}]"


def _named_apart(groups: list[Group]) -> Iterator[Group]:
    seen: dict[str, int] = {}
    for group in groups:
        number = seen[group.name] = seen.get(group.name, 0) + 1
        yield group if number == 1 else replace(group, name=f"{group.name}#{number}")
