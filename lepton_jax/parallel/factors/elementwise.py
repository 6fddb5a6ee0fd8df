"""Operations on each element."""

from __future__ import annotations

from typing import Final

import jax.numpy as jnp

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors.build import Build, like
from lepton_jax.parallel.factors.rule import Factors, factor_rule
from lepton_jax.parallel.factors.zeros import jointly

ONE: Final = (
    *("sign", "floor", "ceil", "round", "abs", "exp", "exp2", "expm1", "log", "log1p", "log2", "logistic"),
    *("tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("sqrt", "rsqrt", "cbrt", "square", "erf", "erfc", "erf_inv", "lgamma", "digamma", "integer_pow"),
    *("one_minus_square", "polynomial", "reduce_precision", "clz", "population_count"),
    *("bessel_i0e", "bessel_i1e", "is_finite", "not"),
)
SEVERAL: Final = (
    *("pow", "atan2", "clamp", "nextafter", "igamma", "igammac", "igamma_grad_a", "random_gamma_grad"),
    *("polygamma", "zeta", "regularized_incomplete_beta", "rem", "max", "min", "and", "or", "xor", "mulhi"),
    *("shift_left", "shift_right_logical", "shift_right_arithmetic", "threefry2x32", "random_fold_in"),
    *("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"),
)
LINEAR: Final = (
    *("neg", "real", "imag", "conj", "copy", "copy_p", "name", "stop_gradient", "pvary", "pcast"),
    *("sharding_constraint", "shard_hint", "reshard", "mesh_cast", "layout_constraint", "random_clone"),
)
SUMS: Final = ("add", "add_any", "sub", "complex")
SEPARATE: Final = ("optimization_barrier", "device_put")
ELEMENTWISE: Final = frozenset(
    {*ONE, *SEVERAL, *LINEAR, *SUMS, *SEPARATE, "mul", "div", "convert_element_type", "select_n"}
)


@factor_rule(*ONE, *SEVERAL)
def elementwise(node: Node) -> Factors:
    """Each dimension is a factor of the result and of all operands that have it; size 1 broadcasts."""
    return _pointwise(node, [])


@factor_rule(*LINEAR)
def linear(node: Node) -> Factors:
    """As `elementwise`; f(x + y) = f(x) + f(y)."""
    return _pointwise(node, [{0}])


@factor_rule(*SUMS)
def sums(node: Node) -> Factors:
    """Both operands are parts of sums, or one of them where the other is 0."""
    return _pointwise(node, jointly(dict(enumerate(node.operands))))


@factor_rule("mul")
def mul(node: Node) -> Factors:
    """One operand is part of a sum, not both."""
    return _pointwise(node, [{0}, {1}])


@factor_rule("div")
def div(node: Node) -> Factors:
    """What is divided may be part of a sum, where the division is exact."""
    return _pointwise(node, [{0}] if _inexact(node.operands[0]) else [])


@factor_rule("convert_element_type")
def convert(node: Node) -> Factors:
    """Sums go through from one floating type to another: each part is rounded for itself."""
    floats = _inexact(node.operands[0]) and _inexact(node.results[0])
    return _pointwise(node, [{0}] if floats else [])


@factor_rule("select_n")
def select_n(node: Node) -> Factors:
    """All cases are parts of sums, or all but those that are 0; which of them it is, is no sum."""
    return _pointwise(node, jointly(dict(enumerate(node.operands[1:], start=1))))


@factor_rule(*SEPARATE)
def separate(node: Node) -> Factors:
    """Result i is operand i."""
    build = Build()
    dims = [build.each(value) for value in node.results]
    return build.done(dims, dims, [range(len(dims))])


def _pointwise(node: Node, sets: list[set[int]]) -> Factors:
    build, first = Build(), node.results[0]
    dims = build.each(first)
    return build.done(
        [like(value, first.shape, dims) for value in node.operands], [dims] * len(node.results), sets
    )


def _inexact(value: Value) -> bool:
    return value.dtype is not None and bool(jnp.issubdtype(value.dtype, jnp.inexact))
