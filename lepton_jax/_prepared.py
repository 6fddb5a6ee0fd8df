"""Prepared parameters: the arrays that are kept, and what program they are for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import jax

from lepton_jax._stage import kind_of
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import UsageError


class PrepareError(UsageError):
    """Parameters cannot be prepared, or were prepared for another program."""


@dataclass(frozen=True)
class Digest:
    """What is known of a program that another process traced: equal for equal programs, text for text.

    Attributes:
        text: in hexadecimal.
    """

    text: str


@dataclass(frozen=True, eq=False)
class Form:
    """What prepared parameters are made of, and for which program.

    Forms that `jax.export` has written and read again equal those that they were written from.

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

    def __eq__(self, other: object) -> bool:
        """Whether both are of the same arrays for the same program."""
        if self is other:
            return True
        if not isinstance(other, Form) or self._outside != other._outside:
            return False
        if isinstance(self.key, Digest) or isinstance(other.key, Digest):
            return self.digest == other.digest
        return bool(self.key == other.key and self.given == other.given)

    def __hash__(self) -> int:
        """Forms that are equal have the same."""
        return hash(self._outside)

    @cached_property
    def _outside(self) -> tuple[Any, ...]:
        """What is written out as it is."""
        leaves = tuple((tuple(map(str, shape)), str(dtype), weak) for shape, dtype, weak in self.given[0])
        return (self.names, self.arguments, leaves, self.turned)

    @cached_property
    def digest(self) -> Digest:
        """Of the program, without what differs from process to process."""
        if isinstance(self.key, Digest):
            return self.key
        return Digest(hashlib.sha256(_without_addresses(self.key).encode()).hexdigest())

    def arguments_given(self) -> list[Any]:
        """The arguments that were prepared, as trees of `jax.ShapeDtypeStruct`.

        Raises:
            PrepareError: these parameters were read from an exported program.
        """
        if self.given[1] is None:
            raise PrepareError(
                "these parameters are of an exported program (jax.export): call that with them; "
                "prepare the parameters again to call the function"
            )
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

    def with_arrays(self, arrays: Sequence[Any] | Mapping[str, Any]) -> Prepared:
        """The same form with other arrays, such as those of a checkpoint.

        Args:
            arrays: in order, or by name.

        Raises:
            PrepareError: there are others than these.
        """
        if isinstance(arrays, Mapping):
            if others := sorted(set(arrays) ^ set(self.form.names)):
                raise PrepareError(f"the arrays given are not those that were prepared: {', '.join(others)}")
            arrays = [arrays[name] for name in self.form.names]
        if len(arrays) != len(self.form.names):
            raise PrepareError(f"{len(self.form.names)} arrays were prepared, and {len(arrays)} are given")
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


_ADDRESS: Final = re.compile(r"0x[0-9a-f]+")


def _without_addresses(key: Any) -> str:
    """A key as text that is the same in every process that traces the same program."""
    return _ADDRESS.sub("", key.to_text() if isinstance(key, Graph) else repr(key))


def _write(form: Form) -> bytes:
    """A form as `jax.export` keeps it: all but how the arguments were nested, and the program itself."""
    names, arguments, leaves, turned = form._outside
    found = {
        "program": form.digest.text,
        "names": names,
        "arguments": arguments,
        "given": leaves,
        "turned": turned,
    }
    return json.dumps(found).encode()


def _read(data: bytes) -> Form:
    found = json.loads(bytes(data).decode())
    leaves = tuple((tuple(shape), dtype, weak) for shape, dtype, weak in found["given"])
    arguments = tuple((name, position) for name, position in found["arguments"])
    return Form(Digest(found["program"]), tuple(found["names"]), arguments, (leaves, None), found["turned"])


jax.export.register_pytree_node_serialization(
    Prepared,
    serialized_name="lepton_jax.Prepared",
    serialize_auxdata=_write,
    deserialize_auxdata=_read,
)
