"""Constant folding computes in numpy: every operation against JAX, number by number."""

from __future__ import annotations

from typing import Any

import jax
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


def agree(calls: dict[str, list[Any]], exact: bool = True) -> dict[str, int]:
    """How many of the numbers numpy computes, by operation; those must be what JAX gives."""
    calls = {op: [np.asarray(arg) for arg in args] for op, args in calls.items()}
    results = jax.jit(lambda calls: {op: in_jax(op, *args) for op, args in calls.items()})(calls)
    counts = dict.fromkeys(calls, 0)
    for op, args in calls.items():
        (node,) = trace(lambda *args, op=op: in_jax(op, *args), *args)
        columns = [arg.reshape(-1) for arg in args]
        for *numbers, expected in zip(*columns, np.asarray(results[op]), strict=True):
            try:
                found = elementwise.compute(op, node.params, [np.asarray(number) for number in numbers])
            except Unfoldable:
                continue
            counts[op] += 1
            assert found.dtype == expected.dtype, op
            wide, want = found.astype(np.float64), expected.astype(np.float64)
            if exact:
                np.testing.assert_array_equal(wide, want, err_msg=op)
                signs = np.signbit(wide[wide == wide]), np.signbit(want[want == want])
                np.testing.assert_array_equal(*signs, err_msg=op)
            else:
                eps = float(jnp.finfo(found.dtype).eps)
                np.testing.assert_allclose(wide, want, rtol=8 * eps, atol=8 * eps, err_msg=op)
    return counts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_binary_operations(dtype: str) -> None:
    x, y = np.asarray(special(dtype)), np.asarray(special(dtype, (16, 1)))[::-1, 0]
    assert min(agree({op: [x, y] for op in BINARY}).values()) >= 5
    if "float" not in dtype:
        assert set(agree({op: [x, y] for op in BITS}).values()) == {16}
        assert min(agree({op: [x, abs(y) % 8] for op in SHIFTS}).values()) >= 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_unary_operations(dtype: str) -> None:
    x = special(dtype)
    kind = jnp.dtype(dtype).kind
    floats = "sqrt floor ceil round is_finite"
    without = {"i": floats, "u": f"abs {floats}"}.get(kind, "not")
    ops = [op for op in UNARY if op not in without.split()]
    assert min(agree({op: [x] for op in ops}).values()) >= 12


def test_functions() -> None:
    x = np.array([-3.0, -0.7, -0.1, 0.0, 0.1, 0.5, 0.9, 1.0, 1.7, 3.0], np.float32)
    assert set(agree({op: [x] for op in FUNCTIONS}, exact=False).values()) == {10}


def test_functions_of_two_numbers() -> None:
    x, y = np.array([0.5, 1.0, 2.0, 3.0], np.float32), np.array([2.0, -1.5, 0.3, 0.0], np.float32)
    assert agree({"pow": [x, y], "atan2": [x, y]}, exact=False) == {"pow": 4, "atan2": 4}


def test_every_operation_is_tried() -> None:
    tried = {*BINARY, *BITS, *SHIFTS, *UNARY, *FUNCTIONS, "pow", "atan2"}
    elsewhere = {"add_any", "clamp", "integer_pow", "select_n", "convert_element_type", "real", "imag"}
    assert tried | elsewhere == elementwise.OPS


def test_conversions() -> None:
    names = ["bool", "int8", "uint8", "int32", "bfloat16", "float16", "float32"]
    arrays = {name: np.asarray(special(name)) for name in names}

    def converted(arrays: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {a: {b: x.astype(b) for b in names if b != a} for a, x in arrays.items()}

    for source, results in jax.jit(converted)(arrays).items():
        for target, result in results.items():
            for number, expected in zip(arrays[source], np.asarray(result), strict=True):
                params = {"new_dtype": jnp.dtype(target)}
                try:
                    found = elementwise.compute("convert_element_type", params, [np.asarray(number)])
                except Unfoldable:
                    continue
                assert found.dtype == expected.dtype
                wide, want = found.astype(np.float64), expected.astype(np.float64)
                np.testing.assert_array_equal(wide, want, err_msg=f"{source} to {target}")


def test_products_of_all_layouts() -> None:
    x = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    y = np.arange(40, dtype=np.int32).reshape(4, 5, 2)
    numbers = (((2,), (0,)), ((0,), (2,)))
    (node,) = trace(lambda x, y: lax.dot_general(x, y, numbers), x, y)
    np.testing.assert_array_equal(whole.compute(node, [x, y]), lax.dot_general(x, y, numbers))
    assert whole.work(node, [x, y]) == 40 * 10 + 1
