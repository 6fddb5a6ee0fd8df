"""Constant folding computes in numpy: every operation against JAX, number by number."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.passes.simplify._fold import arrays as whole
from lepton_jax.passes.simplify._fold import elementwise
from lepton_jax.passes.simplify._fold.elementwise import Unfoldable
from tests.passes._algebra import special

BINARY = ["add", "sub", "mul", "div", "rem", "max", "min", "eq", "ne", "lt", "le", "gt", "ge"]
BITS = ["and", "or", "xor"]
SHIFTS = ["shift_left", "shift_right_logical", "shift_right_arithmetic"]
UNARY = ["neg", "abs", "sign", "square", "sqrt", "floor", "ceil", "round", "not", "is_finite"]
FUNCTIONS = sorted(
    {
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
        "tan",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "logistic",
    }
    | {"asin", "acos", "atan", "sinh", "cosh", "cbrt", "rsqrt"}
)
_NAMES = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "bitwise_not"}


def in_jax(op: str, *args: Any) -> Any:
    return getattr(lax, _NAMES.get(op, op))(*args)


def agree(op: str, args: list[Any], exact: bool = True) -> int:
    """How many of the numbers numpy computes; those must be what JAX gives."""
    graph = trace(lambda *args: in_jax(op, *args), *args)
    (node,) = graph
    count = 0
    for numbers in zip(*(np.asarray(arg).reshape(-1) for arg in args), strict=True):
        arrays = [np.asarray(number) for number in numbers]
        try:
            found = elementwise.compute(op, node.params, arrays)
        except Unfoldable:
            continue
        count += 1
        expected = np.asarray(in_jax(op, *arrays))
        assert found.dtype == expected.dtype
        wide, want = found.astype(np.float64), expected.astype(np.float64)
        if exact:
            np.testing.assert_array_equal(wide, want)
            np.testing.assert_array_equal(np.signbit(wide[wide == wide]), np.signbit(want[want == want]))
        else:
            eps = float(jnp.finfo(found.dtype).eps)
            np.testing.assert_allclose(wide, want, rtol=8 * eps, atol=8 * eps)
    return count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_binary_operations(dtype: str) -> None:
    x, y = special(dtype), special(dtype, (16, 1))[::-1, 0]
    for op in BINARY:
        assert agree(op, [x, y]) >= 5
    if "float" not in dtype:
        for op in BITS:
            assert agree(op, [x, y]) == 16
        for op in SHIFTS:
            assert agree(op, [x, abs(y) % 8]) >= 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_unary_operations(dtype: str) -> None:
    x = special(dtype)
    kind = jnp.dtype(dtype).kind
    floats = "sqrt floor ceil round is_finite"
    without = {"i": floats, "u": f"abs {floats}"}.get(kind, "not")
    ops = [op for op in UNARY if op not in without.split()]
    for op in ops:
        assert agree(op, [x]) >= 12


@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions(op: str) -> None:
    x = np.array([-3.0, -0.7, -0.1, 0.0, 0.1, 0.5, 0.9, 1.0, 1.7, 3.0], np.float32)
    assert agree(op, [x], exact=False) == 10


def test_functions_of_two_numbers() -> None:
    x, y = np.array([0.5, 1.0, 2.0, 3.0], np.float32), np.array([2.0, -1.5, 0.3, 0.0], np.float32)
    assert agree("pow", [x, y], exact=False) == 4
    assert agree("atan2", [x, y], exact=False) == 4


def test_every_operation_is_tried() -> None:
    tried = {*BINARY, *BITS, *SHIFTS, *UNARY, *FUNCTIONS, "pow", "atan2"}
    elsewhere = {"add_any", "clamp", "integer_pow", "select_n", "convert_element_type", "real", "imag"}
    assert tried | elsewhere == elementwise.OPS


@pytest.mark.parametrize("target", ["bool", "int8", "uint8", "int32", "bfloat16", "float16", "float32"])
def test_conversions(target: str) -> None:
    for source in ["bool", "int8", "uint8", "int32", "bfloat16", "float16", "float32"]:
        x = special(source)
        if source == target:
            continue
        for number in np.asarray(x):
            try:
                found = elementwise.compute(
                    "convert_element_type", {"new_dtype": jnp.dtype(target)}, [np.asarray(number)]
                )
            except Unfoldable:
                continue
            expected = np.asarray(lax.convert_element_type(jnp.asarray(number), jnp.dtype(target)))
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))


def test_products_of_all_layouts() -> None:
    x = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    y = np.arange(40, dtype=np.int32).reshape(4, 5, 2)
    numbers = (((2,), (0,)), ((0,), (2,)))
    (node,) = trace(lambda x, y: lax.dot_general(x, y, numbers), x, y)
    np.testing.assert_array_equal(whole.compute(node, [x, y]), lax.dot_general(x, y, numbers))
    assert whole.work(node, [x, y]) == 40 * 10 + 1
