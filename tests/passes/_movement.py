"""How tests of movement's rules are written: a function, its shapes, and the graph that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.passes._check import all_bitwise, all_kept, fired, optimised, same

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A program in which a rule fires.

    Attributes:
        rule: the rule's name.
        fun: the program.
        shapes: of its float32 arguments.
        text: the body of the graph that it becomes.
        level: the rule's semantics level.
    """

    rule: str
    fun: Callable[..., Any]
    shapes: tuple[Shape, ...]
    text: tuple[str, ...]
    level: str = "exact"

    @property
    def name(self) -> str:
        return f"{self.rule}: {self.text[-2] if len(self.text) > 1 else self.text[-1]}"


@dataclass(frozen=True)
class Lookalike:
    """A program in which a rule must not fire, and why."""

    rule: str
    why: str
    fun: Callable[..., Any]
    shapes: tuple[Shape, ...]


def array(shape: Shape, dtype: Any = "float32", seed: int = 0) -> jax.Array:
    """Normal random numbers, cast; booleans are their signs."""
    numbers = np.random.default_rng(seed).normal(size=shape) * 3
    return jnp.asarray(numbers > 0 if dtype == "bool" else numbers.astype(jnp.dtype(dtype)))


def special(shape: Shape, dtype: Any = "float32", seed: int = 0) -> jax.Array:
    """Random numbers among which are zeros of both signs, infinities and NaN."""
    numbers = np.asarray(array(shape, "float32", seed)).copy()
    extremes = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan], np.float32)
    numbers.flat[: extremes.size] = extremes[: numbers.size]
    return jnp.asarray(numbers, jnp.dtype(dtype))


def arrays(shapes: tuple[Shape, ...]) -> list[jax.Array]:
    """Random arguments."""
    return [array(shape, seed=i) for i, shape in enumerate(shapes)]


def body(fun: Callable[..., Any], *args: Any, level: str = "reassociate") -> tuple[str, ...]:
    """The lines of the rewritten graph, without the first and the last."""
    return tuple(
        line.strip() for line in optimised(fun, *args, passes="movement", level=level).to_text().split("\n")
    )[1:-1]


def check_case(case: Case) -> None:
    """The rule fires at its level and not below, and the graph is the one expected."""
    args = arrays(case.shapes)
    assert case.rule in fired(case.fun, *args, passes="movement", level=case.level)
    assert body(case.fun, *args, level=case.level) == case.text
    if case.level != "exact":
        assert case.rule not in fired(case.fun, *args, passes="movement", level="exact")


def check_meaning(cases: Sequence[Case]) -> None:
    """All that passes are held to, at the level of each case."""
    for level in sorted({case.level for case in cases}):
        programs = {
            f"{case.name} ({i})": (case.fun, tuple(arrays(case.shapes)))
            for i, case in enumerate(cases)
            if case.level == level
        }
        all_kept(programs, passes="movement", level=level)
    exact = [case for case in cases if case.level == "exact"]
    hostile = {
        f"{case.name} ({i})": (case.fun, tuple(special(shape, seed=i) for i, shape in enumerate(case.shapes)))
        for i, case in enumerate(exact)
    }
    all_bitwise(hostile, passes="movement")


def check_lookalike(case: Lookalike) -> None:
    """The rule does not fire, and what else fires does no harm."""
    args = arrays(case.shapes)
    rules = fired(case.fun, *args, passes="movement")
    assert case.rule not in rules, case.why
    if rules:
        same(case.fun, *args, passes="movement")
