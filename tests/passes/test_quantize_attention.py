"""Attention's two products in codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton

RNG: Final = np.random.default_rng(0)


def floats(*shape: int) -> jax.Array:
    """Normal numbers."""
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def plain(q: Any, k: Any, v: Any) -> Any:
    """Heads as batches, q [batch, heads, tokens, width]."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / 4
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v)


def causal(q: Any, k: Any, v: Any) -> Any:
    """A mask, a cap, and a softmax that is divided by its sum after the product."""
    scores = jnp.tanh(jnp.einsum("bhqd,bhkd->bhqk", q, k) / 30) * 30
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v) / weights.sum(-1)[..., None]


def grouped(q: Any, k: Any, v: Any) -> Any:
    """Two queries' heads for each of the keys'; the library function."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k[:, :2], v[:, :2]))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def one_head(q: Any, k: Any, v: Any) -> Any:
    """Without batches, mapped over both; keys on the left."""

    def head(q: Any, k: Any, v: Any) -> Any:
        scores = (k @ q.T) * 0.25
        return jax.nn.softmax(scores, 0).T @ v

    return jax.vmap(jax.vmap(head))(q, k, v)


def in_loops(q: Any, k: Any, v: Any) -> Any:
    """Layers of a scan."""
    return lax.scan(lambda x, _: (x + plain(x, k, v), None), q, None, length=2)[0]


PROGRAMS: Final[dict[str, Callable[..., Any]]] = {
    "plain": plain,
    "causal": lambda q, k, v: causal(q[::-1], k, v),
    "grouped": grouped,
    "one head": one_head,
    "in loops": in_loops,
}


def every(*x: Any) -> Any:
    """All programs as one."""
    return {name: fun(*x) for name, fun in PROGRAMS.items()}


def error(expected: Any, found: Any) -> float:
    """The norm of the error as a part of that of the result."""
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


X: Final = (floats(2, 4, 12, 16), floats(2, 4, 12, 16), floats(2, 4, 12, 16))


@pytest.mark.parametrize(("form", "most", "dtype"), [("int8", 0.02, "int8"), ("fp8", 0.08, "float8_e4m3fn")])
def test_both_products_are_of_codes(form: str, most: float, dtype: str) -> None:
    f = lepton.optimize(every, f"default,quantize-attention{{format={form}}}")
    expected, found = jax.jit(every)(*X), f(*X)
    for name in PROGRAMS:
        assert 0 < error(expected[name], found[name]) < most, name
    rules = f.report.rules
    assert rules["quantized-scores"] == rules["quantized-mix"] == len(PROGRAMS)
    dots = [node for node in f.trace(*X).graph.walk() if node.op == "dot_general"]
    assert len(dots) == 2 * len(PROGRAMS)
    assert {str(v.dtype) for node in dots for v in node.operands} == {dtype}
    assert all("scores, mix" in site.done for site in f.report.sites)


def test_many_equal_weights_are_not_lost() -> None:
    """A thousand keys with the same score: weights of a thousandth have the largest code."""
    q, k, v = jnp.zeros((1, 1, 4, 16)), jnp.zeros((1, 1, 1000, 16)), floats(1, 1, 1000, 16) + 1
    f = lepton.optimize(plain, "default,quantize-attention")
    assert error(plain(q, k, v), f(q, k, v)) < 0.01
    assert f.report.rules["quantized-mix"] == 1


def test_rows_that_see_nothing_are_what_they_were() -> None:
    def masked(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
        seen = jnp.arange(12)[:, None] > jnp.arange(12)
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)

    found = lepton.optimize(masked, "default,quantize-attention")(*X)
    assert jnp.isnan(found[:, :, 0]).all() and jnp.isfinite(found[:, :, 1:]).all()


def test_what_is_left_alone() -> None:
    def project(q: Any, w: Any) -> Any:
        return jax.nn.softmax(q) @ w  # no scores: a product of a softmax of an input

    kept = lepton.optimize(project, "default,quantize-attention").trace(floats(4, 8), floats(8, 8))
    assert not kept.report.rules.get("quantized-mix")
    half = lepton.optimize(plain, "default,quantize-attention{scores=false}").trace(*X)
    assert half.report.rules["quantized-mix"] == 1 and "quantized-scores" not in half.report.rules
    long = (jax.ShapeDtypeStruct((1, 2, 2048, 16), jnp.float32),) * 3
    blocks = lepton.optimize(plain, "default,quantize-attention").trace(*long)
    assert blocks.report.rules["attention"] == 1 and "quantized-mix" not in blocks.report.rules
    codes = lepton.optimize(plain, "default,-attention,quantize-attention").trace(*long)
    assert codes.report.rules["quantized-mix"] == 1
    with pytest.raises(lepton.PipelineError, match="int8, fp8_e4m3 or fp8_e5m2"):
        lepton.optimize(plain, "quantize-attention{format=int4}")
