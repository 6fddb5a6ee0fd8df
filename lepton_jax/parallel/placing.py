"""What a choice of axes for factors means: how operands and results then lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lepton_jax.parallel.factors import Dims, Factors
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec

Axes = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to compute a node on a mesh.

    Attributes:
        axes: of each factor the mesh axes that split it, major first.
        operands: how the operands are needed.
        results: how the results come out; may be parts of a sum.
        share: of the node's work, what each device does.
    """

    axes: Axes
    operands: tuple[Layout, ...]
    results: tuple[Layout, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Rule:
    """`Factors`, to be a key: all that strategies depend on besides the mesh."""

    sizes: tuple[int, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    reduced: tuple[int, ...]
    whole: frozenset[int]
    linear: tuple[frozenset[int], ...]
    factors: Factors = field(compare=False, hash=False)

    @classmethod
    def of(cls, factors: Factors) -> Rule:
        """The key of these factors."""
        return cls(
            factors.sizes,
            factors.operands,
            factors.results,
            tuple(sorted(factors.reduced)),
            factors.whole,
            factors.linear,
            factors,
        )


def built(
    rule: Rule, axes: Axes, mesh: MeshSpec, parts: dict[frozenset[int], tuple[str, ...]] | None = None
) -> Strategy | None:
    """The strategy of a choice of axes, or None where parts would not be even or not contiguous."""
    counts = [mesh.size(*names) for names in axes]
    if any(size % count for size, count in zip(rule.sizes, counts, strict=True)):
        return None
    operands = [placed(dims, axes, rule.sizes, counts) for dims in rule.operands]
    results = [placed(dims, axes, rule.sizes, counts) for dims in rule.results]
    if any(dims is None for dims in (*operands, *results)):
        return None
    sums = {name for factor in rule.reduced for name in axes[factor]}
    of_operand: list[set[str]] = [set() for _ in operands]
    for linear, names in (parts or {}).items():
        sums |= set(names)
        for i in linear:
            of_operand[i] |= set(names)
    return Strategy(
        axes,
        tuple(Layout(d or (), ordered(s, mesh)) for d, s in zip(operands, of_operand, strict=True)),
        tuple(Layout(d or (), ordered(sums, mesh)) for d in results),
        1.0 / math.prod(counts),
    )


def ordered(names: Iterable[str], mesh: MeshSpec) -> tuple[str, ...]:
    """Axes in the order of the mesh."""
    chosen = set(names)
    return tuple(name for name in mesh.names if name in chosen) if chosen else ()


def placed(dims: Dims, axes: Axes, sizes: Sequence[int], counts: Sequence[int]) -> Axes | None:
    """How an array of these dimensions lies; None where a minor factor is split and a major one is not."""
    found = []
    for factors in dims:
        names: tuple[str, ...] = ()
        wholly = True
        for factor in factors:
            if axes[factor] and not wholly:
                return None
            names += axes[factor]
            wholly = wholly and counts[factor] == sizes[factor]
        found.append(names)
    return tuple(found)
