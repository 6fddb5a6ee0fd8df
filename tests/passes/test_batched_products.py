"""Products of batches of matrices: their operands and results are copied in whole rows."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from tests.passes._check import run
from tests.passes._quantize import floats

PASS = "inline,dce,batched-products"

VALUES, SCORES = "bhqk,bkhd->bqhd", "bqhd,bkhd->bhqk"


def product(equation: str, *, computed: bool = True) -> Any:
    """An einsum of two arrays, of their doubles if `computed`."""

    def fun(x: Any, y: Any) -> Any:
        return jnp.einsum(equation, x * 2, y * 2) if computed else jnp.einsum(equation, x, y)

    return fun


def fired(fun: Any, *args: Any, **given: Any) -> dict[str, int]:
    return dict(run(fun, *args, passes=PASS, **given)[1].rules)


@pytest.mark.parametrize(
    ("equation", "shapes", "rules"),
    [
        (VALUES, ((2, 3, 8, 16), (2, 16, 3, 8)), {"last-stays-last": 1}),
        ("hqk,khd->qhd", ((3, 8, 16), (16, 3, 8)), {"last-stays-last": 1}),
        (SCORES, ((2, 8, 3, 16), (2, 9, 3, 16)), {"batch-first": 1}),
        ("bhqd,bkhd->bhqk", ((2, 3, 8, 16), (2, 9, 3, 16)), {"batch-first": 1}),
        ("bhqk,bhkd->bhqd", ((2, 3, 8, 16), (2, 3, 16, 8)), {}),
        ("bhqd,bhkd->bhqk", ((2, 3, 8, 16), (2, 3, 9, 16)), {}),
        ("qk,kd->dq", ((8, 16), (16, 8)), {}),
    ],
)
def test_the_forms_give_the_same_numbers(equation: str, shapes: Any, rules: dict[str, int]) -> None:
    x, y = (floats(*shape) for shape in shapes)
    graph, report = run(product(equation), x, y, passes=PASS)
    assert dict(report.rules) == rules
    found = lepton.ir.to_callable(graph)(x, y)[0]
    np.testing.assert_allclose(found, product(equation)(x, y), rtol=1e-5, atol=1e-5)


def test_what_lies_in_memory_is_read_as_it_lies() -> None:
    scores, values = product(SCORES, computed=False), product(VALUES, computed=False)
    few, many = floats(2, 3, 1, 32), floats(2, 3, 8, 32)
    keys = floats(2, 32, 3, 8)
    assert fired(scores, floats(2, 8, 3, 8), keys) == {}
    assert fired(values, few, keys) == {}
    assert fired(values, many, keys) == {"last-stays-last": 1}
    assert fired(product(VALUES), few, keys) == {"last-stays-last": 1}
    assert fired(product(VALUES), many, keys, target="tpu") == {}


def test_tiny_products_stay() -> None:
    assert fired(product(VALUES), floats(2, 3, 4, 7), floats(2, 7, 3, 8)) == {}


def test_only_float32_and_bfloat16() -> None:
    x, y = floats(2, 3, 8, 16), floats(2, 16, 3, 8)
    for dtype, count in ((jnp.bfloat16, 1), (jnp.float16, 0), (jnp.int32, 0)):
        assert len(fired(product(VALUES), x.astype(dtype), y.astype(dtype))) == count


def test_int8_is_multiplied_by_rows() -> None:
    """The same integers, and only where a is summed over columns and b over rows."""
    weights, values = (jnp.asarray(x * 40, jnp.int8) for x in (floats(2, 3, 5, 16), floats(2, 16, 3, 8)))
    numbers = (((1,), (3,)), ((0, 2), (0, 1)))

    def mixed(weights: Any, values: Any) -> Any:
        return jax.lax.dot_general(values, weights, numbers, preferred_element_type=jnp.int32)

    graph, report = run(mixed, weights, values, passes=PASS)
    assert dict(report.rules) == {"int8-rows-on-the-left": 1}
    found = lepton.ir.to_callable(graph)(weights, values)[0]
    np.testing.assert_array_equal(found, mixed(weights, values))
    again = run(lepton.ir.to_callable(graph), weights, values, passes=PASS)[1]
    assert not again.rules
    assert fired(product("bhqd,bhkd->bhqk", computed=False), weights, weights) == {}


def test_transposes_written_out_come_back() -> None:
    """`movement` takes transposes into products; here they are worth having."""

    def attention(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (jnp.sin(x).transpose(0, 2, 1, 3) for x in (q, k, v))
        weights = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2))
        return (weights @ v).transpose(0, 2, 1, 3)

    args = tuple(floats(2, 16, 4, 8) for _ in range(3))
    optimised = lepton.optimize(attention)
    products = [node for node in optimised.trace(*args).graph.walk() if node.op == "dot_general"]
    assert [node.params["dimension_numbers"][1][0] for node in products] == [(0, 1), (0, 1)]
    np.testing.assert_allclose(optimised(*args), attention(*args), rtol=1e-5, atol=1e-6)


def test_attention_of_flax_and_its_gradient() -> None:
    layer = nn.MultiHeadDotProductAttention(num_heads=4)
    x = floats(2, 12, 32)
    params = layer.init(jax.random.key(0), x)

    def loss(params: Any, x: Any) -> Any:
        y: Any = layer.apply(params, x)
        return jnp.sum(jnp.cos(y))

    optimised = lepton.optimize(loss)
    rules = optimised.trace(params, x).report.rules
    assert rules["summed-last"] == 1 and rules["batch-first"] == 1
    expected = jax.value_and_grad(loss)(params, x)
    found = jax.jit(jax.value_and_grad(optimised))(params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)
    stacked = jax.vmap(optimised, (None, 0))(params, jnp.stack([x, x + 1]))
    np.testing.assert_allclose(stacked, [loss(params, x), loss(params, x + 1)], rtol=1e-4)
