"""The attention pass where weights are masked after the exponential, or divided by more than their sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from tests.passes._attention_forms import B, Form, H, T, causal, mix, normal, qkv, scores_of
from tests.passes._check import fired, run

PASSES = "inline,dce,fixpoint(inline,fold,algebra,movement,cse,dce,attention{smallest=2,block=16})"

VALID = jnp.arange(B * T).reshape(B, T) % T > 9
"""The first queries of each sequence see no key at all, behind a causal mask."""


def seen(valid: Any) -> Any:
    return valid[:, None, None, :] & causal()


def by_logsumexp(q: Any, k: Any, v: Any) -> Any:
    scores = jnp.where(causal(), scores_of(q, k), -jnp.inf)
    return mix(jnp.exp(scores - jax.nn.logsumexp(scores, -1, keepdims=True)), v)


def with_logsumexp(q: Any, k: Any, v: Any, valid: Any) -> Any:
    """Rows that see nothing are found by their logarithm, which is a result too."""
    scores = jnp.where(seen(valid), scores_of(q, k), -jnp.inf)
    norm = jax.nn.logsumexp(scores, -1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(norm), norm, 0))
    return mix(weights, v), norm


def softmax_where(q: Any, k: Any, v: Any, valid: Any) -> Any:
    return mix(jax.nn.softmax(scores_of(q, k), where=seen(valid)), v)


def masked_by_hand(q: Any, k: Any, v: Any, valid: Any) -> Any:
    """The maximum is that of all scores, masked ones too."""
    scores = scores_of(q, k)
    weights = jnp.where(seen(valid), jnp.exp(scores - scores.max(-1, keepdims=True)), 0)
    return mix(weights / (weights.sum(-1, keepdims=True) + 1e-9), v)


def multiplied(q: Any, k: Any, v: Any, valid: Any) -> Any:
    """The mask is a factor, and the sum is bounded."""
    scores = jnp.where(seen(valid), scores_of(q, k), -1e9)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True))) * seen(valid)
    return mix(weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6), v)


def masked_twice(q: Any, k: Any, v: Any, valid: Any) -> Any:
    weights = jax.nn.softmax(jnp.where(seen(valid), scores_of(q, k), -1e9))
    return mix(jnp.where(seen(valid), weights, 0), v)


def without_nan(q: Any, k: Any, v: Any, valid: Any) -> Any:
    weights = jax.nn.softmax(jnp.where(seen(valid), scores_of(q, k), -jnp.inf))
    return mix(jnp.where(jnp.isnan(weights), 0, weights), v)


def plus_one(q: Any, k: Any, v: Any) -> Any:
    scores = jnp.where(causal(), scores_of(q, k), -jnp.inf)
    top = jnp.maximum(scores.max(-1, keepdims=True), 0)
    weights = jnp.exp(scores - top)
    return mix(weights / (jnp.exp(-top) + weights.sum(-1, keepdims=True)), v)


def sink(q: Any, k: Any, v: Any, logit: Any) -> Any:
    """A learned score for each head that takes part in the softmax and is cut off again."""
    scores = jnp.where(causal(), scores_of(q, k), -jnp.inf)
    column = jnp.broadcast_to(logit[:, None, None], (B, H, T, 1))
    return mix(jax.nn.softmax(jnp.concatenate([scores, column], -1))[..., :-1], v)


def partial_results(q: Any, k: Any, v: Any) -> Any:
    """What is summed up over devices: nothing is divided, so the maximum's own derivative counts."""
    scores = jnp.where(causal(), scores_of(q, k), -jnp.inf)
    top = scores.max(-1)
    weights = jnp.exp(scores - top[..., None])
    return mix(weights, v), weights.sum(-1), top


FORMS: dict[str, Form] = {
    fun.__name__: (fun, (*qkv(), *more))
    for fun, *more in (
        (by_logsumexp,),
        (with_logsumexp, VALID),
        (softmax_where, VALID),
        (masked_by_hand, VALID),
        (multiplied, VALID),
        (masked_twice, VALID),
        (without_nan, VALID),
        (plus_one,),
        (sink, normal(H, seed=5)),
        (partial_results,),
    )
}


def loss_of(fun: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    """A weighted sum of all results that are finite, with gradients with respect to all floats."""

    def loss(*args: Any) -> Any:
        leaves = [jnp.where(jnp.isfinite(x), x, 0) for x in jax.tree.leaves(fun(*args))]
        return sum((x * np.cos(np.arange(x.size)).reshape(x.shape)).sum() for x in leaves)

    return jax.value_and_grad(loss, tuple(i for i, a in enumerate(args) if a.dtype == jnp.float32))


@pytest.mark.parametrize("name", FORMS)
def test_values_and_gradients_in_either_order(name: str) -> None:
    """Blocks first and then differentiated, and a program that holds its own gradient."""
    fun, args = FORMS[name]
    graph, report = run(fun, *args, passes=PASSES)
    assert report.rules["attention"] == 1
    assert not any(node.op == "exp" and node.result.shape[-2:] == (T, T) for node in graph)
    step, trained = run(loss_of(fun, args), *args, passes=PASSES)
    assert trained.rules["attention"] == 1
    assert not any(node.op == "exp" and node.result.shape[-2:] == (T, T) for node in step)
    blocks, gradients = to_callable(graph), to_callable(step)

    def every(*args: Any) -> Any:
        plain = jax.tree.leaves(fun(*args)), jax.tree.leaves(loss_of(fun, args)(*args))
        return plain, (blocks(*args), jax.tree.leaves(loss_of(blocks, args)(*args)), gradients(*args))

    (values, slopes), (found, *others) = jax.jit(every)(*args)
    for expected, given in [(values, found), *((slopes, other) for other in others)]:
        for a, b in zip(expected, given, strict=True):
            largest = float(np.abs(np.where(np.isfinite(a), a, 0)).max())
            np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, largest), err_msg=name)


def read_whole(q: Any, k: Any, v: Any, logit: Any) -> Any:
    """The weight of the sink is a result with all the others."""
    column = jnp.broadcast_to(logit[:, None, None], (B, H, T, 1))
    weights = jax.nn.softmax(jnp.concatenate([scores_of(q, k), column], -1))
    return mix(weights[..., :-1], v), weights


def two_halves(q: Any, k: Any, v: Any, logit: Any) -> Any:
    """As many scores are joined as there are."""
    scores = scores_of(q, k) + logit[:, None, None]
    return mix(jax.nn.softmax(jnp.concatenate([scores, 2 * scores], -1))[..., :T], v)


@pytest.mark.parametrize("fun", [read_whole, two_halves])
def test_joined_scores_that_stay(fun: Callable[..., Any]) -> None:
    rules = fired(fun, *FORMS["sink"][1], passes=PASSES)
    assert not {"attention", "attention-sink"} & set(rules)
