"""Layouts as users write them: specs for arrays by patterns of their paths, and logical axis names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jax.sharding import PartitionSpec

from lepton_jax.ir.paths import choose, matches
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec

Entry = tuple[str, ...] | None
"""The names that split one dimension; None leaves it open."""
Spec = tuple[Entry, ...]
"""A spec in hashable form: of each dimension its entry; dimensions left out are not split."""
Rules = tuple[tuple[str, tuple[str, ...]], ...]
"""Logical names with the mesh axes they stand for; several for one name are tried in order."""

OPEN: Final = PartitionSpec.UNCONSTRAINED


def spec_of(written: Any, what: str) -> Spec:
    """A spec as users write it: a `PartitionSpec`, a tuple of names, one name, or None for "not split".

    Args:
        what: whose spec it is, for messages.

    Raises:
        TypeError: it is none of these.

    Example:
        >>> spec_of(PartitionSpec("data", None), "x"), spec_of(("embed", ("data", "model")), "x")
        ((('data',), ()), (('embed',), ('data', 'model')))
    """
    if written is None:
        return ()
    if isinstance(written, str):
        return ((written,),)
    if not isinstance(written, (PartitionSpec, tuple, list)):
        raise TypeError(
            f"shard: the spec of {what} is {written!r}; it is a PartitionSpec, a tuple of names, or None"
        )
    if getattr(written, "unreduced", ()) or getattr(written, "reduced", ()):
        raise TypeError(
            f"shard: the spec of {what} is {written}; parts of sums are Lepton's to place: leave out "
            "unreduced= and reduced="
        )
    return tuple(_entry(each, what) for each in written)


def _entry(each: Any, what: str) -> Entry:
    if each is OPEN:
        return None
    if each is None:
        return ()
    if isinstance(each, str):
        return (each,)
    if isinstance(each, (tuple, list)) and all(isinstance(name, str) for name in each):
        return tuple(each)
    raise TypeError(f"shard: {each!r} in the spec of {what} is neither a name, a tuple of names, nor None")


def rules_of(written: Mapping[str, Any] | Iterable[tuple[str, Any]] | None) -> Rules:
    """Logical axis rules in hashable form, from a mapping or from pairs, as Flax writes them.

    Example:
        >>> rules_of({"embed": None, "mlp": "model", "batch": ("replica", "data")})
        (('embed', ()), ('mlp', ('model',)), ('batch', ('replica', 'data')))
    """
    pairs = list(written.items() if isinstance(written, Mapping) else written or ())
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"shard: the rule {pair!r} is not a pair of a logical name and what it stands for, as "
                "('mlp', 'model') or ('batch', ('replica', 'data'))"
            )
    return tuple((str(name), _entry(axes, f"the rule of {name!r}") or ()) for name, axes in pairs)


@dataclass(frozen=True)
class Annotator:
    """Makes layouts of specs on a mesh.

    Attributes:
        mesh: the mesh.
        rules: what logical names stand for. A name without a rule is a mesh axis.
    """

    mesh: MeshSpec
    rules: Rules = ()

    def entries(self, spec: Spec, ndim: int, what: str) -> tuple[Entry, ...]:
        """The mesh axes of each of `ndim` dimensions; None where the spec leaves it open.

        Raises:
            ValueError: the spec is longer than the array has dimensions, names neither an axis nor a rule, or
                uses an axis twice.
        """
        if len(spec) > ndim:
            raise ValueError(
                f"shard: {what} has {ndim} dimension{'s' * (ndim != 1)}, its spec {shown(spec)} has "
                f"{len(spec)} entries: leave out {len(spec) - ndim}"
            )
        used: list[str] = []
        found = [self._axes(each, used, spec, what) for each in spec]
        return (*found, *((),) * (ndim - len(spec)))

    def _axes(self, entry: Entry, used: list[str], spec: Spec, what: str) -> Entry:
        if entry is None:
            return None
        axes: list[str] = []
        for name in entry:
            for axis in self._stands_for(name, used, what):
                if axis in used:
                    raise ValueError(
                        f"shard: the spec {shown(spec)} of {what} splits two dimensions along {axis!r}; an "
                        "axis splits one dimension of an array"
                    )
                used.append(axis)
                axes.append(axis)
        return tuple(axes)

    def _stands_for(self, name: str, used: Sequence[str], what: str) -> tuple[str, ...]:
        """The mesh axes of a name: those of its first rule whose axes are free, as Flax chooses."""
        rules = [axes for logical, axes in self.rules if logical == name]
        for axes in rules:
            for axis in axes:
                self._check_axis(axis, f"the rule of {name!r}")
            if not set(axes) & set(used):
                return axes
        if rules:
            return ()
        self._check_axis(name, f"the spec of {what}")
        return (name,)

    def _check_axis(self, name: str, where: str) -> None:
        known = [*self.mesh.names, *dict(self.rules)]
        if name in self.mesh.names:
            return
        near = difflib.get_close_matches(name, known, 1)
        raise ValueError(
            f"shard: {name!r} in {where} is not an axis of the mesh {self.mesh}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" A logical name needs a rule: lepton.Sharding(..., rules={{{name!r}: None}})"
        )

    def layout(self, spec: Spec, shape: Sequence[Any], what: str) -> Layout:
        """The layout of an array of this shape; dimensions that the spec leaves open are not split.

        Raises:
            ValueError: as `entries`, or a dimension is not divided by the axes that shall split it.
        """
        found = tuple(each or () for each in self.entries(spec, len(shape), what))
        for position, (size, axes) in enumerate(zip(shape, found, strict=True)):
            self.check_divides(size, axes, position, what)
        return Layout(found)

    def check_divides(self, size: Any, axes: tuple[str, ...], position: int, what: str) -> None:
        """Raise where axes do not split a dimension evenly.

        Raises:
            ValueError: with the nearest sizes that they would.
        """
        parts = self.mesh.size(*axes)
        if not isinstance(size, int) or size % parts == 0:
            return
        below, above = size // parts * parts, -(-size // parts) * parts
        sizes = " or ".join(str(each) for each in (below, above) if each)
        names = " and ".join(map(repr, axes))
        raise ValueError(
            f"shard: {what} has size {size} in dimension {position}, which the mesh "
            f"{'axis' if len(axes) == 1 else 'axes'} {names} of size {parts} cannot split evenly; "
            f"a size of {sizes} would do, or None there in its spec"
        )


def matched(specs: Mapping[str, Spec], paths: Sequence[str]) -> dict[int, Spec]:
    """Of each array that a pattern chooses its spec; where several do, the last one holds.

    Args:
        specs: by patterns, see `lepton_jax.ir.paths`.
        paths: what the arrays are called.

    Raises:
        ValueError: a pattern chooses nothing; the message lists what there is.

    Example:
        >>> matched({".../kernel": (("model",),), "a/kernel": ()}, ["a/kernel", "b/kernel", "b/bias"])
        {0: (), 1: (('model',),)}
    """
    choose(tuple(specs), paths, "shard")
    found: dict[int, Spec] = {}
    for position, path in enumerate(paths):
        for pattern, spec in specs.items():
            if matches(pattern, path):
                found[position] = spec
    return found


def shown(spec: Spec) -> str:
    """A spec as users write it."""
    entries = [
        OPEN if each is None else None if not each else each[0] if len(each) == 1 else each for each in spec
    ]
    return str(PartitionSpec(*entries)).replace("PartitionSpec", "P")
