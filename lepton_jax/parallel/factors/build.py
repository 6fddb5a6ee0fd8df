"""Putting a rule's answer together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors.rule import Dims, Factors, Reduction


class Build:
    """The factors of one operation, collected.

    A dimension of size 1 has no factor: there is nothing to split.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.reduced: dict[int, Reduction] = {}
        self.whole: set[int] = set()

    def new(self, size: int, *, whole: bool = False, reduced: Reduction | None = None) -> tuple[int, ...]:
        """A factor of this size as the dimension that it makes; none where the size is 1."""
        if type(size) is int and size == 1:
            return ()
        self.sizes.append(size)
        index = len(self.sizes) - 1
        if whole:
            self.whole.add(index)
        elif reduced is not None:
            self.reduced[index] = reduced
        return (index,)

    def each(self, value: Value, *, whole: bool = False) -> Dims:
        """A factor for each dimension of an array."""
        return tuple(self.new(size, whole=whole) for size in value.shape)

    def done(
        self, operands: Iterable[Dims], results: Iterable[Dims], linear: Iterable[Iterable[int]] = ()
    ) -> Factors:
        """What the rule returns."""
        return Factors(
            tuple(self.sizes),
            tuple(operands),
            tuple(results),
            dict(self.reduced),
            frozenset(self.whole),
            tuple(frozenset(each) for each in linear),
        )


def opaque(node: Node) -> Factors:
    """Of an operation nothing is known of: every dimension of every array is a factor that stays whole."""
    build = Build()
    return build.done(
        [build.each(value, whole=True) for value in node.operands],
        [build.each(value, whole=True) for value in node.results],
    )


def like(value: Value, shape: Sequence[int], dims: Dims) -> Dims:
    """The dimensions of an operand that broadcasts to an array of this shape and these dimensions."""
    if value.ndim == 0:
        return ()
    return tuple(
        each if size == mine else () for each, size, mine in zip(dims, shape, value.shape, strict=True)
    )
