"""One rule, and nothing else, applied to a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import CheckStructure, PassContext, PassManager, Pipeline, profit
from lepton_jax.rewrite.context import Level
from lepton_jax.targets import get_target
from tests.properties._draw import Program


@dataclass(frozen=True)
class Instance:
    """A program before and after a rule.

    Attributes:
        rule: the rule's name.
        level: its semantics level.
        program: the program as drawn.
        seed: what it was drawn from.
        before: its graph.
        after: its graph with the rule applied wherever it applies.
        fired: how often that was.
    """

    rule: str
    level: Level
    program: Program
    seed: tuple[int, ...]
    before: Graph
    after: Graph
    fired: int

    @property
    def moving(self) -> tuple[int, ...]:
        """The arguments that gradients are taken with respect to."""
        if not self.program.grad or not any(is_real(v.dtype) for v in self.before.outputs):
            return ()
        leaves = jax.tree.leaves(self.program.args)
        return tuple(i for i, leaf in enumerate(leaves) if is_real(leaf.dtype))

    def __str__(self) -> str:
        head = f"{self.rule} ({self.level}), drawn from {self.seed}"
        return f"{head}\nbefore: {self.before.to_text()}\nafter: {self.after.to_text()}"


def is_real(dtype: Any) -> bool:
    """Whether a dtype holds real floating-point numbers."""
    return bool(jnp.issubdtype(dtype, np.floating))


def apply(
    program: Program, passes: str, rule: str, level: Level, seed: tuple[int, ...], loosest: bool = False
) -> Instance:
    """Trace a program, prepare it, and run a pass in which only one rule may change anything.

    Rules fire whether or not they pay.

    Args:
        passes: the pass, with options.
        level: the rule's level: it has to fire where no looser rule may.
        loosest: let it fire at any level; for programs in which it must not.
    """
    closed = jax.make_jaxpr(program.fun)(*program.args)
    (step,) = Pipeline.parse(program.passes or passes).steps
    assert not hasattr(step, "steps")
    before, after = (_prepared(closed, program) for _ in range(2))
    rates = get_target(program.target)
    ctx = PassContext(rates, "approximate" if loosest else level, lambda _, __, name: name == rule)
    ctx.is_static, ctx.current_pass = after.is_static, step.name
    with profit.disregarded():
        step.run(after, ctx)
    CheckStructure().after_pass(step, after, True)
    return Instance(rule, level, program, seed, before, after, ctx.counts[rule])


def _prepared(closed: Any, program: Program) -> Graph:
    pipeline = Pipeline.parse(program.prepare)
    return PassManager(pipeline, get_target(program.target), strict=True).run(closed, "program")[0]
