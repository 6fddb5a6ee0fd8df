"""How the tests of algebra's rules are written down, and what each family of rules is held to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from tests.passes._check import all_bitwise, rewrite_jaxpr, run, same

Array = np.ndarray[Any, Any]

X: Array = np.array([-1.5, 0.0, 2.0], np.float32)
Y: Array = np.array([0.5, -2.0, 3.0], np.float32)
N: Array = np.array([-7, 0, 5], np.int32)
M: Array = np.array([3, -1, 12], np.int32)
U: Array = np.array([0, 7, 255], np.uint8)
B: Array = np.array([True, False, True])
C: Array = np.array([False, False, True])
Z: Array = np.array([1 + 2j, -0.5j, 3], np.complex64)
S: Array = np.array(1.5, np.float32)


def unit(n: Any) -> Any:
    """Integers as floats between -1 and 1, which are therefore known to be finite."""
    return jnp.tanh(n.astype(jnp.float32))


@dataclass(frozen=True)
class Case:
    """A program in which a rule fires.

    Attributes:
        rule: the rule's name.
        fun: the program.
        args: its arguments.
        text: the graph that it becomes, as `short` writes it.
        level: the tightest level at which the rule fires.
    """

    rule: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    text: str
    level: str = "exact"


@dataclass(frozen=True)
class Alike:
    """A program that looks as if a rule held, but it does not.

    Attributes:
        why: what is different.
        level: the loosest level at which the rule must not fire.
    """

    rule: str
    why: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    level: str = "approximate"


def name_of(case: Case | Alike) -> str:
    """The id of a test."""
    return f"{case.rule}: {case.text if isinstance(case, Case) else case.why}"


def short(graph: Graph) -> str:
    """A graph in one line: the text form without the frame and the types of results."""
    lines = [line.strip() for line in graph.to_text().splitlines()[1:-1]]
    return "; ".join(re.sub(r"^(%\d+): \S+ =", r"\1 =", line).removeprefix("return ") for line in lines)


def check_case(case: Case) -> None:
    """The rule fires at its level and not below; the graph is the case's; a second run does nothing."""
    graph, report = run(case.fun, *case.args, passes="algebra", level=case.level)
    assert short(graph) == case.text
    assert case.rule in report.rules
    if case.level != "exact":
        assert case.rule not in run(case.fun, *case.args, passes="algebra", level="exact")[1].rules
    again, twice = rewrite_jaxpr(as_jaxpr(graph), "f", "algebra", case.level)
    assert short(again) == case.text
    assert not twice.rules


def as_jaxpr(graph: Graph) -> Any:
    """What JAX traces a graph to."""
    return jax.make_jaxpr(to_callable(graph))(*[value.aval for value in graph.inputs])


def check_alike(case: Alike) -> None:
    """The rule does not fire."""
    assert case.rule not in run(case.fun, *case.args, passes="algebra", level=case.level)[1].rules


def together(cases: Sequence[Case]) -> Callable[..., Any]:
    """One function that returns the results of all cases; they take the same arguments."""
    return lambda *args: [case.fun(*args) for case in cases]


def by_arguments(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases sorted into lists of those that take the same arguments."""
    groups: dict[tuple[int, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(tuple(map(id, case.args)), []).append(case)
    return list(groups.values())


def check_meaning(cases: Sequence[Case]) -> None:
    """Values, gradients, vmap, export and twice-equals-once of all cases, at both levels."""
    for group in by_arguments(cases):
        same(together(group), *group[0].args, passes="algebra", level="reassociate")
        check_bits([case for case in group if case.level == "exact"], *group[0].args)


def check_bits(cases: Sequence[Case], *args: Any) -> None:
    """At level exact nothing changes to the bit, for each case by itself."""
    all_bitwise(
        {f"{name_of(case)} ({i})": (case.fun, args) for i, case in enumerate(cases)}, passes="algebra"
    )


def special(dtype: Any, shape: tuple[int, ...] = (16,)) -> Any:
    """Numbers of a dtype: random ones, zeros of both signs, infinities, NaN, the greatest and least."""
    size = int(np.prod(shape, dtype=int))
    draw = np.random.default_rng(size)
    dtype = jnp.dtype(dtype)
    extremes: list[Any]
    numbers: Array
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        extremes = [info.min, info.max, 0, 1]
        numbers = draw.integers(-9 if info.min else 0, 9, size)
    elif dtype == np.bool_:
        return jnp.asarray(draw.random(shape) > 0.5)
    else:
        limits = jnp.finfo(dtype)
        extremes = [0.0, -0.0, np.inf, -np.inf, np.nan, float(limits.max), float(limits.tiny)]
        numbers = draw.normal(size=size) * 3
    count = min(len(extremes), max(size - 2, 0))
    numbers[:count] = extremes[:count]
    return jnp.asarray(numbers.reshape(shape).astype(dtype))
