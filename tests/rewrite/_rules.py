"""Small rules and programs that the tests of rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp

from lepton_jax.ir import trace
from lepton_jax.ir.graph import Node
from lepton_jax.rewrite import (
    Level,
    PassContext,
    Rule,
    node_rule,
    rewrite,
    rule,
    run_rules,
)
from lepton_jax.rewrite.rule import Outcome
from lepton_jax.targets import get_target
from tests.passes._algebra import short

X = jnp.arange(6.0).reshape(2, 3)
T = jnp.arange(24.0).reshape(2, 3, 4)
LEVELS: tuple[Level, ...] = get_args(Level)


def one() -> Sequence[Sequence[Any]]:
    return [[jax.ShapeDtypeStruct((2, 3), jnp.float32)]]


def two() -> Sequence[Sequence[Any]]:
    return [[jax.ShapeDtypeStruct((2, 3), jnp.float32)] * 2]


def matrices() -> Sequence[Sequence[Any]]:
    return [[jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((3, 4), jnp.float32)]]


def cube() -> Sequence[Sequence[Any]]:
    return [[jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)]]


def itself(x: Any) -> Any:
    return x


def first(x: Any, y: Any) -> Any:
    return x


def context(level: Level = "approximate", target: str = "cpu", explain: bool = True) -> PassContext:
    return PassContext(get_target(target), level, explain=explain)


def applied(rules: Rule | Sequence[Rule], fun: Callable[..., Any], *args: Any) -> tuple[str, PassContext]:
    """The graph of a function after some rules, in one line, and the context that they ran in."""
    graph, ctx = trace(fun, *args), context()
    run_rules(graph, [rules] if isinstance(rules, Rule) else rules, ctx)
    return short(graph), ctx


def reasons(ctx: PassContext) -> list[str]:
    return [miss.reason for miss in ctx.misses]


@node_rule("neg")
def neg_of_neg(node: Node, ctx: PassContext) -> Outcome:
    """-(-x) → x"""
    inner = node.operands[0].node
    return inner.operands[0] if inner is not None and inner.op == "neg" else None


@node_rule("sin", "cos")
def sin_to_cos(node: Node, ctx: PassContext) -> Outcome:
    """sin(x) → cos(x) + 0, and of cos, too"""
    return rewrite(cosine, *node.operands) if node.op == "sin" else None


def cosine(x: jax.Array) -> jax.Array:
    return jnp.cos(x) * 1.0


@rule(one)
def log_of_exp(x: Any) -> Any:
    """log(exp(x)) → x"""
    return jnp.log(jnp.exp(x))


LOG_OF_EXP = log_of_exp.replacement(itself)
