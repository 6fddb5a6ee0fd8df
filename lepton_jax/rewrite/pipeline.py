"""A sequence of passes, and its text form.

    text    = item ("," item)*
    item    = preset | pass | "-" name | "fixpoint" [options] "(" text ")"
    pass    = name [options]
    options = "{" name "=" value ("," name "=" value)* "}"
    value   = name | number | text in double quotes, as in JSON

`-name` takes a pass out of all that stands before it. `str(Pipeline.parse(text))` writes
presets out, and parsing that gives the same pipeline again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lepton_jax.rewrite.base import Pass
from lepton_jax.rewrite.errors import PipelineError
from lepton_jax.rewrite.registry import get_pass, pass_names

_CLEANUP: Final = "inline,dce,cse,forward,dce"
_SIMPLIFY: Final = "inline,fold,algebra,movement,cse,constant-control,forward,dce,invariant"
_SPEED: Final = (
    "gradients,attention,demand,order,gather,structure,chains,losses,"
    "counted,interchange,projection,parallel,recurrence,adjacent,batching,convolution,fourier"
)

_MAX: Final = _SPEED.replace("attention", "attention{kernels=true}")

_LAST: Final = "updates,batched-products,ragged-products"

_DEFAULT: Final = f"inline,dce,fixpoint{{rounds=20}}({_SIMPLIFY},{_SPEED}),{_LAST}"

PRESETS: Final[dict[str, str]] = {
    "none": "",
    "cleanup": _CLEANUP,
    "default": _DEFAULT,
    "deploy": f"{_CLEANUP},absorb,{_DEFAULT}",
    "max": f"inline,dce,fixpoint{{rounds=20}}({_SIMPLIFY},{_MAX}),{_LAST}",
}


@dataclass(frozen=True)
class Fixpoint:
    """Passes that run in turn until none changes the graph.

    Attributes:
        rounds: how many times at the most.
    """

    steps: tuple[Step, ...]
    rounds: int = 10

    def __str__(self) -> str:
        options = "" if self.rounds == 10 else f"{{rounds={self.rounds}}}"
        return f"fixpoint{options}({','.join(map(str, self.steps))})"


Step = Pass | Fixpoint


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; those that lower come last, wherever they were named.

    Example:
        >>> str(Pipeline.parse("cleanup,-cse"))
        'inline,dce,forward,dce'
        >>> str(Pipeline.parse("ragged-products,cse"))
        'cse,ragged-products'
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        """Put the passes that lower behind all others, each once."""
        last = dict.fromkeys(step for step in self.steps if isinstance(step, Pass) and step.lowers)
        if last:
            others = (step for step in self.steps if step not in last)
            object.__setattr__(self, "steps", (*others, *last))

    def __str__(self) -> str:
        return ",".join(map(str, self.steps))

    def passes(self) -> Iterator[Pass]:
        """Every pass in it, those of fixpoints once."""
        yield from _passes(self.steps)

    @property
    def approximate(self) -> tuple[str, ...]:
        """The names of the passes in it that approximate."""
        return tuple(dict.fromkeys(step.name for step in self.passes() if step.approximates))

    def without(self, name: str) -> Pipeline:
        """The pipeline with every pass of that name taken out."""
        return Pipeline(_without(self.steps, name))

    def for_mesh(self) -> Pipeline:
        """The pipeline without the passes that lower, for programs that are to be laid out."""
        return Pipeline(tuple(s for s in self.steps if isinstance(s, Fixpoint) or not s.lowers))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """The pipeline that a text describes.

        Raises:
            PipelineError: bad syntax, an unknown pass, preset or option, a value of the
                wrong type. The message lists what there is.
        """
        parser = _Parser(text)
        steps = parser.items(closing="")
        return cls(steps)


def _passes(steps: tuple[Step, ...]) -> Iterator[Pass]:
    for step in steps:
        if isinstance(step, Fixpoint):
            yield from _passes(step.steps)
        else:
            yield step


def _without(steps: tuple[Step, ...], name: str) -> tuple[Step, ...]:
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Fixpoint):
            inner = _without(step.steps, name)
            kept += [Fixpoint(inner, step.rounds)] if inner else []
        elif step.name != name:
            kept.append(step)
    return tuple(kept)


_NAME: Final = r"[A-Za-z_][\w\-]*"
_NUMBER: Final = r"[-+]?[\d.][\w.+\-]*|-inf(?![\w\-])"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_TOKEN: Final = re.compile(rf"\s*({_NAME}|{_NUMBER}|{_QUOTED}|[,(){{}}=\-])")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                hint = '; paths and patterns are quoted: only="params/up"' if "=" in self.tokens else ""
                raise PipelineError(f"cannot read {text[at:].strip()[:20]!r} in the pipeline {text!r}{hint}")
            self.tokens.append(found[1])
            at = found.end()
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if wanted is not None and token != wanted:
            raise self.error(f"expected {wanted!r}", token)
        self.at += 1
        return token

    def error(self, expected: str, token: str) -> PipelineError:
        return PipelineError(f"{expected} but found {token or 'the end'!r} in the pipeline {self.text!r}")

    def items(self, closing: str) -> tuple[Step, ...]:
        steps: tuple[Step, ...] = ()
        while self.peek() != closing:
            steps = self.item(steps)
            if self.peek() != closing:
                self.take(",")
        return steps

    def item(self, before: tuple[Step, ...]) -> tuple[Step, ...]:
        if self.peek() == "-":
            self.take()
            return self.removal(before, self.take())
        name = self.take()
        if not re.match(r"[A-Za-z_]", name):
            raise self.error("expected the name of a pass", name)
        options = self.options() if self.peek() == "{" else []
        if name not in pass_names() and (dashed := name.replace("_", "-")) in pass_names():
            name = dashed
        if name == "fixpoint":
            return (*before, self.fixpoint(options))
        if name in PRESETS:
            if options:
                raise PipelineError(f"the preset {name!r} has no options")
            return before + Pipeline.parse(PRESETS[name]).steps
        if name not in pass_names():
            raise PipelineError(
                f"there is no pass or preset {name!r}; presets: {', '.join(PRESETS)}; "
                f"passes: {', '.join(pass_names())}"
            )
        return (*before, get_pass(name).with_options(options))

    def removal(self, before: tuple[Step, ...], name: str) -> tuple[Step, ...]:
        if name not in pass_names():
            raise PipelineError(
                f"-{name}: there is no pass {name!r}; the passes are: {', '.join(pass_names())}"
            )
        kept = _without(before, name)
        if kept == before:
            raise PipelineError(f"-{name}: no pass {name!r} stands before it in the pipeline {self.text!r}")
        return kept

    def fixpoint(self, options: list[tuple[str, str]]) -> Fixpoint:
        rounds = 10
        for key, value in options:
            if key != "rounds" or not value.isdecimal() or int(value) < 1:
                raise PipelineError(f"fixpoint has one option, rounds=N with N at least 1; got {key}={value}")
            rounds = int(value)
        self.take("(")
        steps = self.items(closing=")")
        self.take(")")
        if not steps:
            raise PipelineError(f"fixpoint() without passes in the pipeline {self.text!r}")
        return Fixpoint(steps, rounds)

    def options(self) -> list[tuple[str, str]]:
        self.take("{")
        found: list[tuple[str, str]] = []
        while self.peek() != "}":
            key = self.take()
            self.take("=")
            value = self.take()
            if value in ",(){}=-":
                raise self.error(f"expected a value of {key!r}", value)
            if key in dict(found):
                raise PipelineError(f"option {key!r} is given twice in the pipeline {self.text!r}")
            found.append((key, value))
            if self.peek() != "}":
                self.take(",")
        self.take("}")
        return found
