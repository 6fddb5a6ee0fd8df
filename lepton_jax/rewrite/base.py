"""What a pass is: a frozen dataclass whose fields are its options, with one method on a graph."""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Union

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite.context import PassContext
from lepton_jax.rewrite.errors import PipelineError


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

    @classmethod
    def with_options(cls, options: Iterable[tuple[str, str]]) -> Pass:
        """The pass with options given as text.

        Raises:
            PipelineError: an option that the pass does not have, or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, text in options:
            if key not in known:
                has = ", ".join(known) if known else "none"
                raise PipelineError(f"pass {cls.name!r} has no option {key!r}; its options: {has}")
            values[key] = _from_text(cls.name, key, text, known[key])
        return cls(**values)


def _to_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _from_text(owner: str, key: str, text: str, wanted: Any) -> Any:
    """`text` as a value of the type `wanted`: bool, int, float, str, a Literal, or None with one of these."""
    if typing.get_origin(wanted) in (Union, types.UnionType):
        if text == "none" and type(None) in typing.get_args(wanted):
            return None
        (wanted,) = (t for t in typing.get_args(wanted) if t is not type(None))
    if typing.get_origin(wanted) is Literal:
        if text in typing.get_args(wanted):
            return text
        choices = ", ".join(map(str, typing.get_args(wanted)))
        raise PipelineError(f"option {key!r} of pass {owner!r} is one of {choices}; got {text!r}")
    if wanted is bool:
        if text in ("true", "false"):
            return text == "true"
        raise PipelineError(f"option {key!r} of pass {owner!r} is true or false; got {text!r}")
    try:
        return wanted(text)
    except ValueError:
        raise PipelineError(
            f"option {key!r} of pass {owner!r} wants {wanted.__name__}; got {text!r}"
        ) from None
