"""Layouts: how an array lies on a mesh."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import PartitionSpec

from lepton_jax.parallel.meshes import MeshSpec


@dataclass(frozen=True, slots=True)
class Layout:
    """Of each dimension of an array the mesh axes that split it, major first; other axes hold copies.

    Attributes:
        dims: the axes of each dimension.
        partial: axes along which each device holds a part of a sum: the array is the sum over them. In the
            mesh's order. No array between two programs is partial.

    Example:
        >>> layout = Layout((("data",), ()), partial=("model",))
        >>> str(layout)
        '[data, -] sum over model'
    """

    dims: tuple[tuple[str, ...], ...]
    partial: tuple[str, ...] = ()

    @classmethod
    def whole(cls, ndim: int) -> Layout:
        """Every device holds all of it."""
        return cls(((),) * ndim)

    @classmethod
    def from_spec(cls, spec: Iterable[Any], ndim: int) -> Layout:
        """The layout of a `PartitionSpec` on an array of `ndim` dimensions.

        Raises:
            ValueError: it has more entries than the array has dimensions, or an axis twice.
        """
        entries = tuple(spec)
        if len(entries) > ndim:
            raise ValueError(
                f"{PartitionSpec(*entries)} has {len(entries)} entries; the array has {ndim} dimensions"
            )
        dims = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]
        used = [name for each in dims for name in each]
        if len(used) != len(set(used)):
            twice = next(name for name in used if used.count(name) > 1)
            raise ValueError(f"{PartitionSpec(*entries)} uses the mesh axis {twice!r} twice")
        return cls((*dims, *((),) * (ndim - len(dims))))

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.dims)

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that split it."""
        return tuple(name for each in self.dims for name in each)

    @property
    def is_whole(self) -> bool:
        """Whether every device holds all of it."""
        return not self.partial and not any(self.dims)

    def complete(self) -> Layout:
        """The same without partial sums."""
        return Layout(self.dims) if self.partial else self

    def spec(self) -> PartitionSpec:
        """As JAX writes it, without trailing dimensions that are not split; partial sums do not show."""
        entries = [None if not each else each[0] if len(each) == 1 else each for each in self.dims]
        while entries and entries[-1] is None:
            entries.pop()
        return PartitionSpec(*entries)

    def shards(self, mesh: MeshSpec) -> int:
        """Into how many parts it is split."""
        return mesh.size(*self.axes)

    def local_shape(self, shape: Sequence[int], mesh: MeshSpec) -> tuple[int, ...]:
        """The shape of one device's part; parts that do not divide are as large as the largest."""
        return tuple(-(-size // mesh.size(*names)) for size, names in zip(shape, self.dims, strict=True))

    def local_bytes(self, aval: Any, mesh: MeshSpec) -> int:
        """The bytes of one device's part of an array."""
        return math.prod(self.local_shape(aval.shape, mesh)) * int(aval.dtype.itemsize)

    def divides(self, shape: Sequence[int], mesh: MeshSpec) -> bool:
        """Whether all parts have the same size."""
        return all(size % mesh.size(*names) == 0 for size, names in zip(shape, self.dims, strict=True))

    def check(self, shape: Sequence[int], mesh: MeshSpec, what: str = "the array") -> None:
        """That an array of this shape can lie so.

        Args:
            shape: of the whole array.
            mesh: whose axes it names.
            what: the array, for the message.

        Raises:
            ValueError: it has another number of dimensions, names an axis that the mesh does not have, names
                one twice, or the devices along an axis do not divide a dimension; the message names the
                dimension, the axes and the nearest size that they divide.

        Example:
            >>> Layout((("model",), ())).check((6, 8), MeshSpec.of("model=4", chip="v5e"), "w")
            Traceback (most recent call last):
                ...
            ValueError: dimension 0 of w has size 6, which the 4 devices along model do not divide; 8 they do
        """
        if len(shape) != self.ndim:
            raise ValueError(f"{self} is for {self.ndim} dimensions; {what} has {len(shape)}")
        names = (*self.axes, *self.partial)
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{self} of {what} uses the mesh axis {twice!r} twice")
        mesh.size(*names)
        for dim, (size, split) in enumerate(zip(shape, self.dims, strict=True)):
            parts = mesh.size(*split)
            if size % parts:
                near = max(parts, round(size / parts) * parts)
                raise ValueError(
                    f"dimension {dim} of {what} has size {size}, which the {parts} devices along "
                    f"{'+'.join(split)} do not divide; {near} they do"
                )

    def __str__(self) -> str:
        dims = ", ".join("+".join(each) or "-" for each in self.dims)
        return f"[{dims}]" + (f" sum over {'+'.join(self.partial)}" if self.partial else "")
