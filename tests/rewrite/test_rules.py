"""Rules: what they return, when they may fire, and how the driver runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.check import check
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.rewrite import (
    Level,
    PassContext,
    RewriteLoop,
    RuleError,
    node_rule,
    rewrite,
    run_rules,
)
from lepton_jax.rewrite.rule import Outcome
from tests.rewrite import _rules
from tests.rewrite._rules import (
    LEVELS,
    LOG_OF_EXP,
    T,
    X,
    applied,
    context,
    neg_of_neg,
    sin_to_cos,
)


@node_rule("exp")
def exp_stays(node: Node, ctx: PassContext) -> Outcome:
    """exp(x) → exp(x), which is no change"""
    return node.result


def test_a_node_rule_knows_itself() -> None:
    assert neg_of_neg.name == "neg-of-neg"
    assert neg_of_neg.ops() == {"neg"}
    assert neg_of_neg.doc == "-(-x) → x"
    assert neg_of_neg.where.rpartition(":")[0] == _rules.__file__
    assert sin_to_cos.ops() == {"sin", "cos"}


def test_a_node_rule_returns_a_value() -> None:
    assert applied(neg_of_neg, lambda x: -jnp.sin(lax.neg(lax.neg(x))), X)[0] == (
        "%1 = sin[accuracy=None] %0; %2 = neg %1; %2"
    )


def test_a_node_rule_returns_a_traced_function() -> None:
    text, ctx = applied(sin_to_cos, lambda x: jnp.sin(x) + 1.0, X)
    assert text == "%1 = cos[accuracy=None] %0; %2 = mul %1 1.0; %3 = add %2 1.0; %3"
    assert ctx.counts == {"sin-to-cos": 1}


def test_the_node_itself_is_no_change() -> None:
    text, ctx = applied(exp_stays, jnp.exp, X)
    assert text == "%1 = exp[accuracy=None] %0; %1"
    assert not ctx.counts


def test_what_was_changed_is_recorded() -> None:
    _, ctx = applied(neg_of_neg, lambda x: lax.neg(lax.neg(x)), X)
    (application,) = ctx.applications
    assert (application.rule, application.op) == ("neg-of-neg", "neg")
    assert "test_rules.py" in application.where
    assert application.saving > 0


def test_a_rule_says_what_was_missing() -> None:
    @node_rule("sin")
    def never(node: Node, ctx: PassContext) -> Outcome:
        """sin(x) → nothing"""
        ctx.miss("never", node, "it never fires")
        return None

    _, ctx = applied(never, jnp.sin, X)
    assert [(miss.rule, miss.op, miss.reason) for miss in ctx.misses] == [("never", "sin", "it never fires")]
    quiet = context(explain=False)
    run_rules(trace(jnp.sin, X), [never], quiet)
    assert quiet.misses == []


def test_a_guard_says_why_it_does_not_pay() -> None:
    def large(node: Node, ctx: PassContext) -> str | None:
        return "it is too small" if node.result.ndim < 3 else None

    @node_rule("sin", guard=large)
    def guarded(node: Node, ctx: PassContext) -> Outcome:
        """sin(x) → x"""
        return node.operands[0]

    assert applied(guarded, jnp.sin, T)[0] == "%0"
    _, ctx = applied(guarded, jnp.sin, X)
    assert [(miss.rule, miss.reason) for miss in ctx.misses] == [("guarded", "it is too small")]
    assert not ctx.counts


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("limit", [None, *LEVELS])
@pytest.mark.parametrize("allowed", LEVELS)
def test_levels(level: Level, allowed: Level, limit: Level | None) -> None:
    @node_rule("sin", level=level)
    def leveled(node: Node, ctx: PassContext) -> Outcome:
        """sin(x) → x"""
        return node.operands[0]

    fired = run_rules(trace(jnp.sin, X), [leveled], context(allowed), level=limit)
    tightest = min(LEVELS.index(allowed), LEVELS.index(limit or "approximate"))
    assert fired == (LEVELS.index(level) <= tightest)


def test_backends() -> None:
    @node_rule("sin", backends=("gpu", "tpu"))
    def not_here(node: Node, ctx: PassContext) -> Outcome:
        """sin(x) → x"""
        return node.operands[0]

    assert run_rules(trace(jnp.sin, X), [not_here], context(target="cpu")) == 0
    for target in ("gpu", "tpu"):
        assert run_rules(trace(jnp.sin, X), [not_here], context(target=target)) == 1


def test_a_gate_forbids_single_changes() -> None:
    ctx = context()
    ctx.gate = lambda number, step, name: number != 2
    graph = trace(lambda x: [jnp.sin(x), jnp.sin(x + 1), jnp.sin(x + 2)], X)
    run_rules(graph, [sin_to_cos], ctx)
    assert ctx.counts == {"sin-to-cos": 2}
    assert graph.to_text().count("sin[") == 1


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 3), jnp.float32)

    def as_operand(node: Node, ctx: PassContext) -> Outcome:
        """sin(x) → x"""
        return node.operands[0]

    assert run_rules(trace(jnp.sin, x), [node_rule("sin")(as_operand)], context()) == 0
    assert run_rules(trace(jnp.sin, x), [node_rule("sin", needs_static=False)(as_operand)], context()) == 1


# The driver


def test_rules_run_until_none_fires() -> None:
    def program(x: jax.Array) -> jax.Array:
        for _ in range(7):
            x = lax.neg(x)
        return x

    assert applied(neg_of_neg, program, X)[0] == "%1 = neg %0; %1"
    once = trace(program, X)
    assert run_rules(once, [neg_of_neg], context(), fixpoint=False) < 6
    again = trace(program, X)
    assert run_rules(again, [neg_of_neg], context()) == 3


def test_what_a_rewrite_makes_is_looked_at() -> None:
    @node_rule("cos")
    def cos_to_neg(node: Node, ctx: PassContext) -> Outcome:
        """cos(x) → -(-x)"""
        return rewrite(twice_negated, *node.operands)

    text, ctx = applied([sin_to_cos, cos_to_neg, neg_of_neg], jnp.sin, X)
    assert text == "%1 = mul %0 1.0; %1"
    assert ctx.counts == {"sin-to-cos": 1, "cos-to-neg": 1, "neg-of-neg": 1}


def twice_negated(x: jax.Array) -> jax.Array:
    return lax.neg(lax.neg(x))


def test_the_first_rule_that_applies_wins() -> None:
    @node_rule("sin")
    def sin_away(node: Node, ctx: PassContext) -> Outcome:
        """sin(x) → x"""
        return node.operands[0]

    assert applied([sin_away, sin_to_cos], jnp.sin, X)[1].counts == {"sin-away": 1}
    assert applied([sin_to_cos, sin_away], jnp.sin, X)[1].counts == {"sin-to-cos": 1}


def test_regions_are_rewritten() -> None:
    def program(x: jax.Array) -> Any:
        return lax.scan(lambda c, row: (lax.neg(lax.neg(c)) + row, -row), x[0], x)

    graph, ctx = trace(program, X), context()
    run_rules(graph, [neg_of_neg], ctx)
    assert ctx.counts == {"neg-of-neg": 1}
    for a, b in zip(to_callable(graph)(X), jax.tree.leaves(program(X)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dead_nodes_are_not_rewritten_and_erased_ones_go() -> None:
    graph = trace(lambda x: [lax.neg(lax.neg(jnp.sin(x)))], X)
    (sine, *_) = graph
    assert run_rules(graph, [neg_of_neg], context()) == 1
    assert [node.op for node in graph] == ["sin"]
    assert sine.alive
    dead = trace(lambda x: [lax.neg(lax.neg(x)), x][1], X)
    assert run_rules(dead, [neg_of_neg], context()) == 0


def sine(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


def tangent(x: jax.Array) -> jax.Array:
    return jnp.tan(x)


@node_rule("sin")
def sin_to_tan(node: Node, ctx: PassContext) -> Outcome:
    """sin(x) → tan(x)"""
    return rewrite(tangent, *node.operands)


@node_rule("tan")
def tan_to_sin(node: Node, ctx: PassContext) -> Outcome:
    """tan(x) → sin(x)"""
    return rewrite(sine, *node.operands)


def test_rules_that_fight_are_named() -> None:
    with pytest.raises(RewriteLoop, match="sin-to-tan and tan-to-sin"):
        run_rules(trace(jnp.sin, X), [sin_to_tan, tan_to_sin], context())
    single = trace(jnp.sin, X)
    assert run_rules(single, [sin_to_tan, tan_to_sin], context(), fixpoint=False) == 1


def test_a_budget() -> None:
    def program(x: jax.Array) -> Any:
        return [lax.neg(lax.neg(x + i)) for i in range(5)]

    with pytest.raises(RewriteLoop, match="more than 3 rewrites; the last were neg-of-neg"):
        run_rules(trace(program, X), [neg_of_neg], context(), budget=3)
    assert run_rules(trace(program, X), [neg_of_neg], context(), budget=5) == 5


# Where new nodes come from


def test_source_and_scope_are_inherited() -> None:
    def program(x: jax.Array) -> jax.Array:
        with jax.named_scope("outer"), jax.named_scope("inner"):
            return jnp.sin(x)

    graph = trace(program, X)
    (old,) = graph
    run_rules(graph, [sin_to_cos], context())
    assert [node.op for node in graph] == ["cos", "mul"]
    for node in graph:
        assert node.scope == "outer/inner"
        assert node.source is old.source
        assert node.rule is not None
        assert (node.rule.rule, node.rule.depth) == ("sin-to-cos", 1)
    assert "outer/inner" in jax.jit(to_callable(graph)).lower(X).as_text(debug_info=True)


# Rules that are wrong in themselves


def test_a_replacement_of_another_type_is_an_error() -> None:
    def flatten(x: jax.Array) -> jax.Array:
        return x.reshape(-1)

    def halve(x: jax.Array) -> jax.Array:
        return x.astype(jnp.bfloat16)

    def double(x: jax.Array) -> list[jax.Array]:
        return [x, x]

    for wrong in (flatten, halve, double):

        @node_rule("sin")
        def broken(node: Node, ctx: PassContext, wrong: Callable[..., Any] = wrong) -> Outcome:
            """sin(x) → something else"""
            return rewrite(wrong, *node.operands)

        with pytest.raises(RuleError, match="rule broken replaces sin giving"):
            run_rules(trace(jnp.sin, X), [broken], context())


def test_a_graph_stays_sound() -> None:
    graph: Graph = trace(lambda x: [jnp.sin(x), jnp.cos(jnp.sin(x)) * 2.0], X)
    run_rules(graph, [sin_to_cos, neg_of_neg, LOG_OF_EXP], context())
    check(graph)
    np.testing.assert_allclose(to_callable(graph)(X)[0], jnp.cos(X), rtol=1e-6)


def test_rules_that_ran_before_look_only_near_what_has_changed() -> None:
    """A rule that counts where it is tried: all nodes at first, then those about the change alone."""
    tried: list[str] = []

    @node_rule("sin", "cos", "exp")
    def look(node: Node, ctx: PassContext) -> Outcome:
        """Nothing changes."""
        tried.append(node.op)
        return None

    def far(x: Any) -> Any:
        for _ in range(20):
            x = jnp.sin(x)
        return jnp.cos(jnp.exp(x) * 2.0)

    graph = trace(far, 1.0)
    run_rules(graph, [look], context())
    assert tried == ["sin"] * 20 + ["exp", "cos"]
    before = graph.total_version()
    tried.clear()
    run_rules(graph, [look], context(), since=before)
    assert tried == []
    (product,) = [node for node in graph if node.op == "mul"]
    product.set_operand(1, product.operands[0])
    run_rules(graph, [look], context(), since=before)
    assert tried == ["sin", "exp", "cos"]


def test_a_change_in_a_region_brings_its_node_back() -> None:
    graph = trace(lambda x: jax.lax.fori_loop(0, 3, lambda _, c: jnp.sin(lax.neg(lax.neg(c))), x), 1.0)
    tried: list[str] = []

    @node_rule("scan")
    def look(node: Node, ctx: PassContext) -> Outcome:
        """Nothing changes."""
        tried.append(node.op)
        return None

    run_rules(graph, [look], context())
    before = graph.total_version()
    assert run_rules(graph, [neg_of_neg], context()) == 1
    run_rules(graph, [look], context(), since=before)
    assert tried == ["scan", "scan"]
