"""From layouts to factors and back: which mesh axes split each factor of an array, and how it then lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lepton_jax.parallel.factors.rule import Dims, Factors

Axes = tuple[str, ...]


def factor_axes(
    dims: Dims, layout: Sequence[Axes], factors: Factors, sizes: Mapping[str, int]
) -> dict[int, Axes]:
    """The mesh axes that split each factor of an array that lies so.

    Args:
        dims: of each dimension its factors, from `Factors.operands` or `.results`.
        layout: of each dimension its mesh axes, `Layout.dims`.
        factors: of the operation.
        sizes: of the mesh's axes, by name.

    Returns:
        The axes of each factor that is split, major first. What of a dimension cannot be said in factors
        is left out: axes of a factor that stays whole, axes that do not divide it, and all that follow.
    """
    found: dict[int, Axes] = {}
    for names, parts in zip(layout, dims, strict=True):
        if not names or not parts:
            continue
        place, left = 0, factors.sizes[parts[0]]
        for name in names:
            size = sizes[name]
            while left == 1 and place + 1 < len(parts):
                place += 1
                left = factors.sizes[parts[place]]
            if parts[place] in factors.whole or left % size:
                break
            left //= size
            found[parts[place]] = (*found.get(parts[place], ()), name)
    return found


def dims_axes(
    dims: Dims, axes: Mapping[int, Axes], factors: Factors, sizes: Mapping[str, int]
) -> tuple[Axes, ...]:
    """How an array lies whose factors are split so; the inverse of `factor_axes`.

    A minor factor of a dimension can be split only where those before it are split to the end; axes of
    other factors are left out.

    Returns:
        Of each dimension its mesh axes. Each axis once: where two dimensions want it, the first has it.
    """
    used: set[str] = set()
    found: list[Axes] = []
    for parts in dims:
        names: Axes = ()
        for part in parts:
            left = factors.sizes[part]
            for name in axes.get(part, ()) if part not in factors.whole else ():
                if name in used or left % sizes[name]:
                    break
                used.add(name)
                names = (*names, name)
                left //= sizes[name]
            if left != 1:
                break
        found.append(names)
    return tuple(found)
