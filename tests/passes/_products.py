"""How tests of chains, structure and gather are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.passes._check import all_kept, optimised, run


def pipeline(name: str) -> str:
    """The default simplifications with one pass more."""
    return f"inline,dce,fixpoint{{rounds=4}}(inline,fold,algebra,movement,cse,{name},dce)"


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed + sum(shape)).normal(size=shape), dtype)


def whole(*shape: int, low: int = 0, high: int, seed: int = 0) -> jax.Array:
    """Whole numbers from `low` to `high` - 1, int32."""
    return jnp.asarray(np.random.default_rng(seed).integers(low, high, shape), jnp.int32)


@dataclass(frozen=True)
class Program:
    """A program and its arguments.

    Attributes:
        name: what the test is called.
        fun: the program.
        args: makes the arguments.
        rule: the rule that is to fire, or that must not.
        why: why it must not.
    """

    name: str
    fun: Callable[..., Any]
    args: Callable[[], tuple[Any, ...]]
    rule: str
    why: str = ""


def rules(program: Program, passes: str, level: str = "reassociate", target: str = "cpu") -> dict[str, int]:
    """How often each rule fires."""
    return run(program.fun, *program.args(), passes=passes, level=level, target=target)[1].rules


def check_program(program: Program, passes: str, level: str = "reassociate", export: bool = True) -> None:
    """The rule fires, not at level exact, and the program keeps its meaning."""
    check_programs([program], passes, level, export)


def check_programs(
    programs: Sequence[Program], passes: str, level: str = "reassociate", export: bool = True
) -> None:
    """The rules fire, not at level exact, and the programs keep their meaning."""
    subjects = {program.name: (program.fun, program.args()) for program in programs}
    found = all_kept(subjects, passes=passes, level=level, export=export)
    for program in programs:
        assert program.rule in found[program.name][1].rules, program.name
        assert program.rule not in rules(program, passes, "exact"), program.name


def check_lookalike(program: Program, passes: str) -> None:
    """The rule does not fire; where others do, the program keeps its meaning."""
    check_lookalikes([program], passes)


def check_lookalikes(programs: Sequence[Program], passes: str) -> None:
    """The rules do not fire; where others do, the programs keep their meaning."""
    others = []
    for program in programs:
        fired = rules(program, passes)
        assert program.rule not in fired, f"{program.name}: {program.why}"
        others += [program] if fired else []
    subjects = {program.name: (program.fun, program.args()) for program in others}
    all_kept(subjects, passes=passes, export=False)


def body(fun: Callable[..., Any], *args: Any, passes: str) -> list[str]:
    """The lines of the rewritten graph, without the first and the last."""
    return [line.strip() for line in optimised(fun, *args, passes=passes).to_text().split("\n")][1:-1]
