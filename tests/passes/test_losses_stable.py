"""Losses: the forms that do not overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from tests.passes._check import check, fired, optimised, same

SIMPLIFY = "inline,dce,fixpoint(fold,algebra,movement,cse,dce)"
PASSES = f"{SIMPLIFY},losses,{SIMPLIFY}"
STABLE = f"{SIMPLIFY},losses{{stable=true}},{SIMPLIFY}"
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 20)), jnp.float32)

Fun = Callable[..., Any]

LARGE = jnp.asarray([-300.0, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0, 300.0])

FORMS: list[tuple[str, Fun, Fun]] = [
    ("log-of-logistic", lambda x: jnp.log(jax.nn.sigmoid(x)), jax.nn.log_sigmoid),
    ("log-of-logistic", lambda x: jnp.log(1 / (1 + jnp.exp(-x))), jax.nn.log_sigmoid),
    ("log-of-one-minus-logistic", lambda x: jnp.log(1 - jax.nn.sigmoid(x)), lambda x: -jax.nn.softplus(x)),
    ("log-of-one-minus-logistic", lambda x: jnp.log1p(-jax.nn.sigmoid(x)), lambda x: -jax.nn.softplus(x)),
    ("softplus-written-out", lambda x: jnp.log(1 + jnp.exp(x)), jax.nn.softplus),
    ("softplus-written-out", lambda x: jnp.log1p(jnp.exp(x)), jax.nn.softplus),
    ("log-of-sum-of-exp", lambda x: jnp.log(jnp.exp(x).sum(-1)), lambda x: jax.nn.logsumexp(x, -1)),
    (
        "log-of-sum-of-exp",
        lambda x: jnp.log(jnp.exp(x).sum(0, keepdims=True)),
        lambda x: jax.nn.logsumexp(x, 0, keepdims=True),
    ),
]


@pytest.mark.parametrize(("rule", "fun", "form"), FORMS)
def test_stable_form(rule: str, fun: Fun, form: Fun) -> None:
    assert rule not in fired(fun, LARGE, passes=PASSES), "off by default"
    assert fired(fun, LARGE, passes=STABLE)[rule] == 1
    rewritten = to_callable(optimised(fun, LARGE, passes=STABLE))
    check(form(LARGE), rewritten(LARGE)[0])
    check(jax.grad(lambda x: form(x).sum())(LARGE), jax.grad(lambda x: rewritten(x)[0].sum())(LARGE))
    same(fun, X[0], passes=STABLE)
    same(fun, X[0].astype(jnp.bfloat16), passes=STABLE, grad=False)


@pytest.mark.parametrize(("rule", "fun", "form"), FORMS)
def test_stable_form_of_what_is_not_finite(rule: str, fun: Fun, form: Fun) -> None:
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        x = jnp.asarray([0.5, bad])
        (result,) = to_callable(optimised(fun, x, passes=STABLE))(x)
        np.testing.assert_allclose(result, fun(x), rtol=1e-6)


NOT_FORMS: list[Fun] = [
    lambda x: jnp.log(2.0 + jnp.exp(x)),
    lambda x: jnp.log(2.0 - jax.nn.sigmoid(x)),
    lambda x: jnp.log(jnp.exp(x).max(-1)),
    lambda x: jax.nn.logsumexp(x, -1),
    lambda x: jnp.log((x * jnp.exp(x)).sum(-1)),
    lambda x: jnp.log1p(jax.nn.sigmoid(x)),
]


@pytest.mark.parametrize("fun", NOT_FORMS)
def test_looks_like_a_stable_form(fun: Fun) -> None:
    rules = fired(fun, X, passes=STABLE)
    assert not {rule for rule, _, _ in FORMS} & set(rules)


def test_complex_numbers_stay() -> None:
    z = lax.complex(X, X)
    assert "log-of-sum-of-exp" not in fired(lambda z: jnp.log(jnp.exp(z).sum(-1)), z, passes=STABLE)
