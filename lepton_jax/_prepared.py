"""Prepared parameters: the arrays that are kept, and what program they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lepton_jax._stage import kind_of
from lepton_jax.rewrite import UsageError


class PrepareError(UsageError):
    """Parameters cannot be prepared, or were prepared for another program."""


@dataclass(frozen=True)
class Form:
    """What prepared parameters are made of, and for which program.

    Attributes:
        key: equal for equal `prepare` programs.
        names: of the arrays that are kept, after the parameters that they are made of.
        arguments: which arguments were prepared: name and position (None: by name).
        given: their trees of shapes and dtypes, as leaves and tree structure.
        turned: which floating-point weights are stored turned, in the order of their products.
    """

    key: Any
    names: tuple[str, ...]
    arguments: tuple[tuple[str, int | None], ...]
    given: tuple[tuple[Any, ...], Any]
    turned: str = ""

    def arguments_given(self) -> list[Any]:
        """The arguments that were prepared, as trees of `jax.ShapeDtypeStruct`."""
        leaves = [jax.ShapeDtypeStruct(s, d, weak_type=w) for s, d, w in self.given[0]]
        return list(jax.tree.unflatten(self.given[1], leaves))


@jax.tree_util.register_pytree_node_class
class Prepared(Mapping[str, jax.Array]):
    """What is kept of parameters: arrays by name. A pytree, to be sharded, saved or moved like any other.

    Attributes:
        form: what it was made for.
    """

    __slots__ = ("_arrays", "form")

    def __init__(self, arrays: Sequence[Any], form: Form) -> None:
        self._arrays = tuple(arrays)
        self.form = form

    def __getitem__(self, name: str) -> Any:
        if name not in self.form.names:
            raise KeyError(f"{name!r} is not among the prepared arrays {', '.join(self.form.names)}")
        return self._arrays[self.form.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.form.names)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays, in order."""
        return self._arrays

    @property
    def nbytes(self) -> int:
        """The bytes that the arrays take in memory."""
        return sum(int(array.nbytes) for array in self._arrays)

    def with_arrays(self, arrays: Sequence[Any]) -> Prepared:
        """The same form with other arrays, such as those of a checkpoint."""
        return Prepared(arrays, self.form)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Form]:
        """For JAX."""
        return self._arrays, self.form

    @classmethod
    def tree_unflatten(cls, form: Form, arrays: Sequence[Any]) -> Prepared:
        """For JAX."""
        return cls(arrays, form)

    def __repr__(self) -> str:
        return f"Prepared({len(self)} arrays, {', '.join(self.form.names)})"


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """An array without what is in it."""
    shape, dtype, weak = kind_of(leaf)
    return jax.ShapeDtypeStruct(shape, dtype, weak_type=weak)
