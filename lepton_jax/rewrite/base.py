"""What a pass is: a frozen dataclass whose fields are its options, with one method on a graph."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Union

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite.context import PassContext
from lepton_jax.rewrite.errors import PipelineError
from lepton_jax.rewrite.trial import Trials


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a whole graph.

    A subclass is a frozen dataclass: its fields are the options that users write in a
    pipeline's text, as in `fold{limit=1024}`. It edits the graph in place, regions too, and asks
    `ctx.fire(rule, node)` before every single change, so that each is counted, explained
    and can be bisected.

    Example:
        >>> @dataclass(frozen=True)
        ... class DropNegations(Pass):
        ...     name = "drop-negations"
        ...     def run(self, graph, ctx):
        ...         for node in graph.walk():
        ...             if node.op == "neg" and ctx.fire("drop-negation", node):
        ...                 node.result.replace_uses(node.operands[0])
        >>> str(DropNegations())
        'drop-negations'
    """

    name: ClassVar[str]
    """What the pass is called in a pipeline's text."""

    idempotent: ClassVar[bool] = True
    """Whether running it again on what it left changes nothing, so that the manager need not do so."""

    approximates: ClassVar[bool] = False
    """Whether its results differ by more than rounding, as whoever names it accepts."""

    lowers: ClassVar[bool] = False
    """Whether it writes operations that neither other passes nor layouts know: pipelines have it last, and it
    does not run on a mesh."""

    reads_weights: ClassVar[bool] = False
    """Whether it wants to see the weights before the program is written, as `lepton.compile` shows them."""

    @property
    def calibrates(self) -> bool:
        """Whether its options ask for calibration, where the program has a place for it."""
        return False

    def __post_init__(self) -> None:
        """Check the options; a subclass that checks more calls this first.

        Raises:
            ValueError: an option is none of the values that it may have.
        """
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        for name in changed:
            choices, value = _choices(_hints(type(self))[name]), getattr(self, name)
            if choices is not None and value not in choices.values():
                raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")

    @abstractmethod
    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Rewrite `graph` in place."""

    def __str__(self) -> str:
        """The pass as pipeline text, options that have their default left out."""
        shown = [
            f"{f.name}={_to_text(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name + (f"{{{','.join(shown)}}}" if shown else "")

    def on_trial(self, record: Trials) -> Pass | None:
        """The same pass with each of its sites turned on by a flag, for `lepton.sensitivity`.

        Args:
            record: where it says what its sites are.

        Returns:
            None where it has no sites that could be tried.
        """
        return None

    @classmethod
    def with_options(cls, options: Iterable[tuple[str, str]]) -> Pass:
        """The pass with options given as text.

        Raises:
            PipelineError: an option that the pass does not have, or that is missing, or a value of
                the wrong type or that the pass itself refuses.
        """
        options = list(options)
        hints = _hints(cls) if options else {}  # slow, and most passes are given none
        known = {name: hints[name] for name in (f.name for f in dataclasses.fields(cls)) if options}
        values: dict[str, Any] = {}
        for key, text in options:
            if key not in known:
                has = ", ".join(known) if known else "none"
                raise PipelineError(f"pass {cls.name!r} has no option {key!r}; its options: {has}")
            values[key] = _from_text(cls.name, key, text, known[key])
        for f in dataclasses.fields(cls):
            if f.name not in values and f.default is f.default_factory is dataclasses.MISSING:
                raise PipelineError(f"pass {cls.name!r} needs the option {f.name!r}")
        try:
            return cls(**values)
        except ValueError as error:
            raise PipelineError(f"pass {cls.name!r}: {error}") from error


@functools.cache
def _hints(cls: type[Pass]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


_BARE: Final = re.compile(r"[A-Za-z_][\w\-]*")
"""Texts that stand in a pipeline without quotes."""


def _to_text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str) and (value == "none" or not _BARE.fullmatch(value)):
        return json.dumps(value)
    return str(value)


def _from_text(owner: str, key: str, text: str, wanted: Any) -> Any:
    """`text` as a value of the type `wanted`: bool, int, float, str, a Literal, None, or a union of these."""
    union = typing.get_origin(wanted) in (Union, types.UnionType)
    members = typing.get_args(wanted) if union else (wanted,)
    kinds = sorted(members, key=lambda kind: (kind is not type(None), kind is str))  # any text is a str
    for kind in kinds:
        with contextlib.suppress(ValueError):
            return _as(kind, text)
    verb = "wants" if any(_choices(kind) is None for kind in kinds) else "is"
    choices = " or ".join(map(_described, kinds))
    raise PipelineError(f"option {key!r} of pass {owner!r} {verb} {choices}; got {text!r}")


def _as(kind: Any, text: str) -> Any:
    """`text` as a value of one type.

    Raises:
        ValueError: it is none.
        TypeError: values of this type have no text form.
    """
    choices = _choices(kind)
    if choices is not None:
        name = text if text in choices else json.dumps(text)  # "none" among the choices needs no quotes
        if name not in choices:
            raise ValueError(text)
        return choices[name]
    if kind is str:
        return json.loads(text) if text.startswith('"') else text
    if kind in (int, float):
        return kind(text)
    raise TypeError(f"an option of type {kind} has no text form")


def _choices(kind: Any) -> dict[str, Any] | None:
    """The values of a type that has few, by their text; None for other types."""
    few = {bool: (True, False), type(None): (None,)}
    if kind not in few and typing.get_origin(kind) is not Literal:
        return None
    return {_to_text(value): value for value in few.get(kind, typing.get_args(kind))}


def _described(kind: Any) -> str:
    choices = _choices(kind)
    if choices is None:
        return str(kind.__name__)
    return f"one of {', '.join(choices)}" if typing.get_origin(kind) is Literal else " or ".join(choices)
