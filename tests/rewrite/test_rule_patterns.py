"""Patterns: what they match, and what only looks alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.export import to_callable
from lepton_jax.rewrite import (
    RuleError,
    rule,
    run_rules,
)
from lepton_jax.rewrite.matcher import Match
from tests.rewrite import _rules
from tests.rewrite._rules import (
    LOG_OF_EXP,
    T,
    X,
    applied,
    context,
    cube,
    first,
    itself,
    matrices,
    one,
    reasons,
    two,
)


def test_a_pattern_knows_itself() -> None:
    assert LOG_OF_EXP.name == "log-of-exp"
    assert LOG_OF_EXP.doc == "log(exp(x)) → x"
    assert LOG_OF_EXP.ops() == {"log"}
    assert LOG_OF_EXP.where.rpartition(":")[0] == _rules.__file__


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_a_pattern_matches_all_shapes_and_dtypes(shape: tuple[int, ...], dtype: str) -> None:
    assert applied(LOG_OF_EXP, lambda x: jnp.log(jnp.exp(x)), jnp.ones(shape, dtype))[0] == "%0"


def test_something_between_does_not_match() -> None:
    assert "exp" in applied(LOG_OF_EXP, lambda x: jnp.log(jnp.exp(x) + 1.0), X)[0]
    text, ctx = applied(LOGISTIC, lambda x: 1.0 / (1.0 + jnp.exp(jnp.sin(x))), X)
    assert "logistic" not in text
    assert reasons(ctx) == ["expected neg, found sin"]


def test_another_operation_is_not_even_similar() -> None:
    assert applied(LOG_OF_EXP, jnp.sin, X)[1].misses == []


def test_a_pattern_may_be_called_functions() -> None:
    @rule(one)
    def halves(x: Any) -> Any:
        """where(x > 0, x, 0) → relu(x)"""
        return jnp.where(x > 0, x, 0.0)

    relu = halves.replacement(jax.nn.relu)
    called = trace(lambda x: jnp.where(x > 0, x, 0.0), X)
    inlined = trace(lambda x: lax.select(x > 0, x, jnp.zeros_like(x)), X)
    ctx = context()
    run_rules(called, [relu], ctx)
    run_rules(inlined, [relu], ctx)
    assert ctx.counts == {"halves": 1}
    assert "select_n" not in inlined.to_text()


# Attributes


@rule(cube, attributes={"inner": (1, 0, 2), "outer": (2, 0, 1)})
def transpose_of_transpose(x: Any, inner: Any, outer: Any) -> Any:
    """transpose(transpose(x, p), q) → transpose(x, p[q])"""
    return lax.transpose(lax.transpose(x, inner), outer)


@transpose_of_transpose.replacement
def one_transpose(x: Any, inner: Any, outer: Any) -> Any:
    return lax.transpose(x, tuple(inner[d] for d in outer))


@pytest.mark.parametrize(("inner", "outer"), [((2, 1, 0), (0, 2, 1)), ((1, 2, 0),) * 2, ((0, 2, 1),) * 2])
def test_attributes_have_the_programs_values(inner: tuple[int, ...], outer: tuple[int, ...]) -> None:
    def program(x: jax.Array) -> jax.Array:
        return lax.transpose(lax.transpose(x, inner), outer)

    graph = trace(program, T)
    assert run_rules(graph, [one_transpose], context()) == 1
    assert len(list(graph)) <= 1
    np.testing.assert_array_equal(to_callable(graph)(T)[0], program(T))


@rule(cube)
def swap_last_twice(x: Any) -> Any:
    """swap(swap(x)) → x, where swap exchanges the last two dimensions"""
    return jnp.swapaxes(jnp.swapaxes(x, -1, -2), -1, -2)


SWAP_LAST_TWICE = swap_last_twice.replacement(itself)


def test_another_permutation_is_another_program() -> None:
    def alike(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(jnp.swapaxes(x, 0, 1), -1, -2)

    text, ctx = applied(SWAP_LAST_TWICE, alike, T)
    assert text.count("transpose") == 2
    assert reasons(ctx) == ["transpose has permutation=(1, 0, 2), the pattern (0, 2, 1)"]
    assert applied(SWAP_LAST_TWICE, lambda x: jnp.swapaxes(jnp.swapaxes(x, -1, -2), -2, -1), T)[0] == "%0"


@rule(matrices)
def transposed_product(x: Any, y: Any) -> Any:
    """(x y)ᵀ → yᵀ xᵀ"""
    return (x @ y).T


@transposed_product.replacement
def product_of_transposes(x: Any, y: Any) -> Any:
    return y.T @ x.T


def test_another_precision_is_another_program() -> None:
    y = jnp.ones((3, 4))
    assert applied(product_of_transposes, lambda x, y: (x @ y).T, X, y)[1].counts == {"transposed-product": 1}


def test_the_precision_in_force_belongs_to_the_pattern() -> None:
    @rule(matrices)
    def product(x: Any, y: Any) -> Any:
        """(x y)ᵀ → yᵀ xᵀ"""
        return (x @ y).T

    @product.replacement
    def transposed(x: Any, y: Any) -> Any:
        return y.T @ x.T

    y = jnp.ones((3, 4))
    with jax.default_matmul_precision("highest"):
        text, ctx = applied(transposed, lambda x, y: (x @ y).T, X, y)
    assert ctx.counts == {"product": 1}
    assert "HIGHEST" in text


@rule(one)
def through_half(x: Any) -> Any:
    """x rounded to bfloat16 and back → x"""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def test_another_dtype_is_another_program() -> None:
    rounded = through_half.replacement(itself)
    assert applied(rounded, lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), X)[0] == "%0"
    text, ctx = applied(rounded, lambda x: x.astype(jnp.float16).astype(jnp.float32), X)
    assert "float16" in text
    assert reasons(ctx) == ["convert_element_type has new_dtype=float16, the pattern bfloat16"]


# Operands


@rule(one)
def logistic_in_full(x: Any) -> Any:
    """1 / (1 + exp(-x)) → logistic(x)"""
    return 1.0 / (1.0 + jnp.exp(-x))


LOGISTIC = logistic_in_full.replacement(lax.logistic)


@pytest.mark.parametrize(
    "fun",
    [
        lambda x: 1.0 / (1.0 + jnp.exp(-x)),
        lambda x: 1.0 / (jnp.exp(-x) + 1.0),
        lambda x: jnp.float32(1) / (jnp.exp(-x) + np.float32(1)),
    ],
)
def test_constants_and_commutative_operands(fun: Callable[[Any], Any]) -> None:
    graph = trace(fun, X)
    assert run_rules(graph, [LOGISTIC], context()) == 1
    assert "logistic" in graph.to_text()


def test_other_constants_do_not_match() -> None:
    _, ctx = applied(LOGISTIC, lambda x: 1.0 / (2.0 + jnp.exp(-x)), X)
    assert not ctx.counts
    assert any("expected the constant 1.0" in reason or "expected exp" in reason for reason in reasons(ctx))
    assert not applied(LOGISTIC, lambda x: (1.0 + jnp.exp(-x)) / 1.0, X)[1].counts


@rule(two)
def times_quotient(x: Any, y: Any) -> Any:
    """y * (x / y) → x"""
    return y * (x / y)


TIMES_QUOTIENT = times_quotient.replacement(first)


def test_a_parameter_that_occurs_twice_is_one_value() -> None:
    y = X + 1.0
    assert applied(TIMES_QUOTIENT, lambda x, y: y * (x / y), X, y)[0] == "%0"
    assert applied(TIMES_QUOTIENT, lambda x, y: (x / y) * y, X, y)[0] == "%0"
    assert not applied(TIMES_QUOTIENT, lambda x, y, z: z * (x / y), X, y, y)[1].counts
    assert not applied(TIMES_QUOTIENT, lambda x, y: x * (x / y), X, y)[1].counts


def test_both_parameters_may_be_one_value() -> None:
    assert applied(TIMES_QUOTIENT, lambda x: x * (x / x), X)[0] == "%0"


def test_equal_constants_are_one_value() -> None:
    c = np.full((2, 3), 2.0, np.float32)
    c[0] = 3.0
    assert applied(TIMES_QUOTIENT, lambda x: c * (x / c.copy()), X)[0] == "%0"
    assert not applied(TIMES_QUOTIENT, lambda x: c * (x / (c + 1)), X)[1].counts


# Alternatives


@rule(one, options=({"scaled": False}, {"scaled": True}))
def soft_sign(x: Any, scaled: bool) -> Any:
    """x / (1 + |x|), or twice that, → tanh of it"""
    y = x / (1.0 + jnp.abs(x))
    return y * 2.0 if scaled else y


@soft_sign.replacement
def as_tanh(x: Any, scaled: bool) -> Any:
    return jnp.tanh(x) * 2.0 if scaled else jnp.tanh(x)


def test_options_are_alternatives() -> None:
    assert as_tanh.ops() == {"div", "mul"}
    assert applied(as_tanh, lambda x: x / (1.0 + jnp.abs(x)), X)[0] == "%1 = tanh[accuracy=None] %0; %1"
    text, ctx = applied([as_tanh], lambda x: (x / (1.0 + jnp.abs(x))) * 2.0, X)
    assert text == "%1 = tanh[accuracy=None] %0; %2 = mul %1 2.0; %2"
    assert ctx.counts == {"soft-sign": 1}


def test_examples_are_alternatives() -> None:
    def examples() -> Sequence[Sequence[Any]]:
        return [[jax.ShapeDtypeStruct((3,), jnp.float32)], [jax.ShapeDtypeStruct((2, 3), jnp.float32)]]

    @rule(examples)
    def total(x: Any) -> Any:
        """The sum of a vector, or the mean of a matrix along its rows, of -x → - that of x"""
        return jnp.sum(-x) if x.ndim == 1 else jnp.mean(-x, 1)

    @total.replacement
    def minus_total(x: Any) -> Any:
        return -jnp.sum(x) if x.ndim == 1 else -jnp.mean(x, 1)

    assert minus_total.ops() == {"reduce_sum", "div"}
    assert applied(minus_total, lambda x: jnp.sum(-x), X[0])[1].counts == {"total": 1}
    assert applied(minus_total, lambda x: jnp.mean(-x, 1), X)[1].counts == {"total": 1}
    assert not applied(minus_total, lambda x: jnp.mean(-x, 0), X)[1].counts


# Conditions


def test_inner_values_that_are_read_elsewhere() -> None:
    def shared(x: jax.Array) -> Any:
        y = jnp.exp(x)
        return jnp.log(y), y

    text, ctx = applied(LOG_OF_EXP, shared, X)
    assert "log" in text
    assert reasons(ctx) == ["the exp in it is also read elsewhere"]

    @rule(one, single_use=False)
    def log_of_shared_exp(x: Any) -> Any:
        """log(exp(x)) → x"""
        return jnp.log(jnp.exp(x))

    assert (
        applied(log_of_shared_exp.replacement(itself), shared, X)[0] == "%1 = exp[accuracy=None] %0; %0, %1"
    )


def test_a_condition_on_the_match() -> None:
    @rule(one)
    def exp_of_log(x: Any) -> Any:
        """exp(log(x)) → x, for matrices"""
        return jnp.exp(jnp.log(x))

    @exp_of_log.where
    def matrix(match: Match) -> str | None:
        assert [node.op for node in match.nodes] == ["exp", "log"]
        return None if match.values["x"].ndim == 2 else "it is no matrix"

    with_condition = exp_of_log.replacement(itself)
    assert applied(with_condition, lambda x: jnp.exp(jnp.log(x)), X)[0] == "%0"
    _, ctx = applied(with_condition, lambda x: jnp.exp(jnp.log(x)), T)
    assert reasons(ctx) == ["it is no matrix"]


def test_weak_types_do_not_keep_a_pattern_from_matching() -> None:
    text, _ = applied(LOG_OF_EXP, lambda s: jnp.log(jnp.exp(s)), 1.5)
    assert text == "%0"


def test_a_pattern_without_an_operation_is_an_error() -> None:
    nothing = rule(one)(itself).replacement(itself)
    with pytest.raises(RuleError, match="the pattern itself must have one result, made by an operation"):
        run_rules(trace(jnp.sin, X), [nothing], context())

    @rule(one)
    def both(x: Any) -> Any:
        """Two results"""
        return jnp.sin(x), jnp.cos(x)

    with pytest.raises(RuleError, match="the pattern both must have one result"):
        run_rules(trace(jnp.sin, X), [both.replacement(itself)], context())


def test_an_attribute_that_is_no_parameter_is_an_error() -> None:
    @rule(cube, attributes={"order": (0, 1, 2, 3)})
    def unused(x: Any, order: Any) -> Any:
        """transpose(x) → x"""
        return lax.transpose(x, (1, 0, 2))

    with pytest.raises(RuleError, match=r"has a parameter \(0, 1, 2, 3\) \(attribute order\)"):
        run_rules(trace(lambda x: x.T, X), [unused.replacement(itself)], context())


def test_a_pattern_with_a_rule_of_its_own_cannot_be_compared() -> None:
    @rule(one)
    def relu_twice(x: Any) -> Any:
        """relu(relu(x)) → relu(x)"""
        return jax.nn.relu(jax.nn.relu(x))

    relu = relu_twice.replacement(jax.nn.relu)
    _, ctx = applied(relu, lambda x: jax.nn.relu(jax.nn.relu(x)), X)
    assert not ctx.counts
    assert len(reasons(ctx)) == 1


def test_a_pattern_that_fails_at_the_programs_shapes_does_not_match() -> None:
    @rule(cube)
    def sum_of_three(x: Any) -> Any:
        """The sum over the last dimension of a tensor of three → zero"""
        if x.ndim != 3:
            raise ValueError("three dimensions are needed")
        return jnp.sum(-x, -1)

    @sum_of_three.replacement
    def minus(x: Any) -> Any:
        return -jnp.sum(x, -1)

    assert applied(minus, lambda x: jnp.sum(-x, -1), T)[1].counts == {"sum-of-three": 1}
    _, ctx = applied(minus, lambda x: jnp.sum(-x, -1), X)
    assert reasons(ctx) == ["the pattern cannot be traced at these shapes: three dimensions are needed"]
