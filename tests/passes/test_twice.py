"""Programs on which the default pipeline once left something for a second run to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

from tests.passes._check import Subject
from tests.passes._golden import ONE, X, ops

ROWS = np.sin(np.arange(12, dtype=np.float32)).reshape(3, 4)
"""Above -1, which is known of chosen rows and not of a product that chooses them."""


def one_hot_product() -> Any:
    chosen = jax.nn.one_hot(np.arange(1), 3) @ ROWS + 1.0
    return jnp.arctan2(jnp.ones((1, 1, 1)), 1 + jnp.abs(chosen))


def transform_and_back() -> Any:
    ones = jnp.real(jnp.fft.ifft(jnp.fft.fft(jnp.ones(3, "complex64"))))
    return jnp.logaddexp(jnp.ones(3), ones)


def facts_of_a_loop_in_a_loop(x: Any) -> Any:
    zeros = jnp.zeros(2)

    def body(carry: Any, _: Any) -> Any:
        filled = lax.fori_loop(0, 2, lambda i, c: c.at[i].set(zeros[i] * 0.5), zeros)
        return jnp.broadcast_to(filled, (2, 2, 2)), None

    return lax.scan(body, x, length=2, reverse=True)[0]


def call_in_a_custom_rule(x: Any) -> Any:
    @jax.custom_vjp
    def f(a: Any, b: Any) -> Any:
        return jnp.where(a > 0, a, a)

    f.defvjp(lambda a, b: (f(a, b), None), lambda _, ct: (3 * ct, ct))
    return jax.jit(lambda y: f(x, x))(x)


def call_in_a_custom_rule_in_a_branch(x: Any) -> Any:
    @jax.custom_jvp
    def f(a: Any) -> Any:
        return jnp.clip(a, -1, 1)

    f.defjvp(lambda p, t: (f(*p), t[0] * 2))
    return lax.cond(jnp.float32(1.0) > 0, f, lambda a: a, x)


def effects_that_never_run(x: Any) -> Any:
    def speak(i: Any, y: Any) -> Any:
        return io_callback(lambda v: v, jax.ShapeDtypeStruct(y.shape, y.dtype), y, ordered=True)

    def body(i: Any, y: Any) -> Any:
        return lax.fori_loop(0, 0, speak, y)

    return lax.fori_loop(0, 3, jax.jit(body), x)


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "one-hot product": (one_hot_product, (), "gpu"),
    "transform and back": (transform_and_back, (), "gpu"),
    "facts of a loop in a loop": (facts_of_a_loop_in_a_loop, (jnp.ones((2, 2, 2)),), "cpu"),
    "call in a custom rule": (call_in_a_custom_rule, (X,), "cpu"),
    "call in a custom rule in a branch": (call_in_a_custom_rule_in_a_branch, (X,), "cpu"),
    "effects that never run": (effects_that_never_run, (ONE,), "cpu"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_twice_is_once(name: str) -> None:
    fun, args, target = PROGRAMS[name]
    Subject(fun, args, "default", "reassociate", target).rewrite_again("default", "reassociate", target)


def test_loops_without_effects_go() -> None:
    assert ops(Subject(effects_that_never_run, (ONE,), "default", "exact", "cpu").graph) == []
