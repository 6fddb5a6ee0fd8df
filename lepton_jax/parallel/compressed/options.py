"""How gradients are compressed: what the user says of it, and which gradients go how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import jax.numpy as jnp
import numpy as np

from lepton_jax.parallel.compressed.codes import FORMATS
from lepton_jax.parallel.compressed.power import View, matrices_of
from lepton_jax.parallel.compressed.top_k import CHUNK

Method = Literal["int8", "fp8_e4m3", "fp8_e5m2", "powersgd", "topk"]

METHODS: Final = get_args(Method)


@dataclass(frozen=True)
class Compression:
    """How gradients are added up over devices with fewer bytes.

    Attributes:
        method: `int8`, `fp8_e4m3` and `fp8_e5m2`: codes with a scale for each block. `powersgd`: products of
            two thin matrices. `topk`: the largest elements.
        axes: the mesh axes over which gradients are added up.
        inner: of these the ones along which links are fast (within a slice): the sum over them is exact, and
            only the sum of each slice is compressed.
        block: of codes: elements that share a scale.
        rank: of PowerSGD's matrices.
        share: of the elements that `topk` sends.
        smallest: gradients with fewer bytes go exactly, and so do those of one dimension or none.
        bucket: bytes of float32 that travel together; a larger gradient travels alone.
        start: so many steps go exactly first.
        least_rate: PowerSGD leaves gradients alone that it does not make so many times smaller.
        feedback: whether what is lost is added to the next step's gradients.

    Raises:
        ValueError: an option makes no sense.
    """

    method: Method = "int8"
    axes: tuple[str, ...] = ("data",)
    inner: tuple[str, ...] = ()
    block: int = 256
    rank: int = 4
    share: float = 0.01
    smallest: int = 1 << 16
    bucket: int = 1 << 25
    start: int = 0
    least_rate: float = 2.0
    feedback: bool = True

    def __post_init__(self) -> None:
        for name in ("axes", "inner"):
            given: Any = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        if self.method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}, not {self.method!r}")
        if not self.axes or not set(self.inner) < set(self.axes):
            raise ValueError(
                "axes name one mesh axis or more, and inner some of them but not all, "
                f"not axes={self.axes}, inner={self.inner}"
            )
        least = {"block": 1, "rank": 1, "smallest": 0, "bucket": 1, "start": 0, "least_rate": 1.0}
        for name, at_least in least.items():
            given = getattr(self, name)
            if given < at_least:
                raise ValueError(f"{name} is at least {at_least}, not {given}")
            if isinstance(at_least, int) and int(given) != given:
                raise ValueError(f"{name} is a whole number, not {given}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share is above 0 and at most 1, not {self.share}")

    @property
    def outer(self) -> tuple[str, ...]:
        """The axes between which what travels is compressed."""
        return tuple(axis for axis in self.axes if axis not in self.inner)

    @property
    def is_codes(self) -> bool:
        """Whether it sends codes in blocks."""
        return self.method in FORMATS

    def padded(self, size: int, outer: int, inner: int) -> int:
        """How long the vector of a bucket is so that all parts are whole."""
        unit = inner * (outer * self.block if self.is_codes else CHUNK)
        return -(-size // unit) * unit


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together.

    Attributes:
        leaves: which, by their positions among the leaves of the tree.
        shapes: of each.
    """

    leaves: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """How many elements they have."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Buckets:
    """Which gradients go how.

    Attributes:
        exact: those that go as they are; each bucket has one dtype.
        flat: those that go as vectors, in codes or by their largest elements.
        matrices: those that PowerSGD takes, with how it takes them as matrices.
    """

    exact: tuple[Bucket, ...]
    flat: tuple[Bucket, ...]
    matrices: tuple[tuple[int, View], ...]


def buckets_of(leaves: Sequence[Any], how: Compression) -> Buckets:
    """Sort gradients into buckets, the last of the tree first, as differentiation makes them about so.

    Buckets do not depend on the number of devices.

    Args:
        leaves: arrays, or what has a shape and a dtype.
        how: what the user wants.
    """
    exact: dict[np.dtype[Any], list[int]] = {}
    flat: list[int] = []
    matrices: list[tuple[int, View]] = []
    for i in reversed(range(len(leaves))):
        leaf = leaves[i]
        small = len(leaf.shape) < 2 or math.prod(leaf.shape) * leaf.dtype.itemsize < how.smallest
        view = matrices_of(leaf.shape, how.rank, how.least_rate) if how.method == "powersgd" else None
        if small or not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
            exact.setdefault(np.dtype(leaf.dtype), []).append(i)
        elif how.method != "powersgd":
            flat.append(i)
        elif view is None:
            exact.setdefault(np.dtype(leaf.dtype), []).append(i)
        else:
            matrices.append((i, view))
    return Buckets(
        tuple(each for group in exact.values() for each in _filled(group, leaves, how.bucket)),
        tuple(_filled(flat, leaves, how.bucket)),
        tuple(matrices),
    )


def _filled(order: Sequence[int], leaves: Sequence[Any], most: int) -> list[Bucket]:
    """Leaves in this order in buckets of at most so many bytes of float32."""
    groups: list[list[int]] = []
    size = 0
    for i in order:
        added = 4 * math.prod(leaves[i].shape)
        if not groups or size + added > most:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += added
    return [Bucket(tuple(group), tuple(tuple(leaves[i].shape) for i in group)) for group in groups]
