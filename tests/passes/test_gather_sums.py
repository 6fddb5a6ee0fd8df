"""Gather: cross-entropy with one-hot labels, sums and counts of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import log_softmax, one_hot

from lepton_jax.ir.export import to_callable
from tests.passes._check import optimised, same
from tests.passes._products import (
    Program,
    body,
    check_lookalikes,
    check_programs,
    normal,
    pipeline,
    rules,
    whole,
)

PASSES = pipeline("gather")
PICK, CLASSES, STACK = "sum-with-one-hot", "sum-by-class", "stack-of-masked-sums"
N, V = 60, 1000


def labels(*shape: int, classes: int = V) -> jax.Array:
    """Classes, some of which do not exist."""
    return whole(*shape, low=-1, high=classes + 1)


def logits() -> tuple[Any, ...]:
    return normal(N, V), labels(N)


def loss(x: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.sum(one_hot(y, V) * log_softmax(x), axis=-1))


def weighted(x: jax.Array, y: jax.Array) -> jax.Array:
    weights = 1.0 + jnp.arange(N) / N
    return -jnp.sum(one_hot(y, V) * log_softmax(x) * weights[:, None])


def tokens() -> tuple[Any, ...]:
    return normal(6, 9, V), labels(6, 9)


K = 12


def points(*rest: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (normal(3000, *rest), labels(3000, classes=K))


def masked(x: jax.Array, s: jax.Array, first: int = 0) -> jax.Array:
    shape = (-1, *(1,) * (x.ndim - 1))
    return jnp.stack([jnp.sum(jnp.where((s == i).reshape(shape), x, 0), 0) for i in range(first, first + K)])


def by_vmap(x: jax.Array, s: jax.Array) -> jax.Array:
    return jax.vmap(lambda i: jnp.sum(jnp.where((s == i)[:, None], x, 0), 0))(jnp.arange(K))


PROGRAMS = [
    Program("loss", loss, logits, PICK),
    Program("loss-gradient", jax.grad(loss), logits, PICK),
    Program("weighted-loss", weighted, logits, PICK),
    Program("total", lambda x, y: -jnp.sum(one_hot(y, V) * log_softmax(x)) / N, logits, PICK),
    Program("tokens", lambda x, y: jnp.sum(one_hot(y, V) * log_softmax(x), -1), tokens, PICK),
    Program(
        "bfloat16",
        lambda x, y: jnp.sum(one_hot(y, V, dtype="bfloat16") * x.astype("bfloat16"), -1),
        logits,
        PICK,
    ),
    Program("plain", lambda x, y: jnp.sum(one_hot(y, V) * x, -1), logits, PICK),
    Program("chosen", lambda x, y: jnp.sum(jnp.where(one_hot(y, V, dtype=bool), x, 0), -1), logits, PICK),
    Program("first-axis", lambda x, y: jnp.sum(one_hot(y, V, axis=0) * x.T, 0), logits, PICK),
    Program("masked-sums", masked, points(8), STACK),
    Program("masked-numbers", masked, points(), STACK),
    Program("masked-from-one", lambda x, s: masked(x, s, 1), points(), STACK),
    Program(
        "masked-products",
        lambda x, s: jnp.stack([((s == i)[:, None] * x).sum(0) for i in range(K)], axis=1),
        points(8),
        STACK,
    ),
    Program("by-vmap", by_vmap, points(8), CLASSES),
    Program(
        "by-broadcast", lambda x, s: jnp.sum(one_hot(s, K)[:, :, None] * x[:, None, :], 0), points(8), CLASSES
    ),
    Program("counts", lambda x, s: jnp.sum(one_hot(s, K), 0) + x[0, 0], points(1), CLASSES),
    Program("whole-counts", lambda x, s: jnp.sum(s[:, None] == jnp.arange(K), 0), points(), CLASSES),
]


def test_sums_fire_and_keep_the_meaning() -> None:
    check_programs(PROGRAMS, PASSES)


def test_not_on_a_tpu() -> None:
    for program in PROGRAMS[9:14]:
        assert program.rule in rules(program, PASSES, target="gpu")
        assert program.rule not in rules(program, PASSES, target="tpu")


LOOKALIKES = [
    Program(
        "cast to fewer bits",
        lambda x, y: lax.reduce_sum((one_hot(y, V) * x).astype("bfloat16"), (1,)),
        logits,
        PICK,
    ),
    Program(
        "smoothed",
        lambda x, y: jnp.sum((0.9 * one_hot(y, V) + 0.1 / V) * log_softmax(x), -1),
        logits,
        PICK,
        "the labels are smoothed",
    ),
    Program("unsummed", lambda x, y: one_hot(y, V) * x, logits, PICK, "nothing is summed"),
    Program("greatest", lambda x, y: jnp.max(one_hot(y, V) * x, -1), logits, PICK, "no sum"),
    Program("ranges", lambda x, y: jnp.sum((y[:, None] >= jnp.arange(V)) * x, -1), logits, PICK, "a range"),
    Program(
        "kept-elsewhere",
        lambda x, y: jnp.sum(jnp.where(one_hot(y, V, dtype=bool), x, 1.0), -1),
        logits,
        PICK,
        "what is not chosen is one",
    ),
    Program(
        "gaps",
        lambda x, s: jnp.stack([jnp.sum(jnp.where(s == i, x, 0)) for i in (0, 1, 3)]),
        points(),
        STACK,
        "a class is left out",
    ),
    Program(
        "different-values",
        lambda x, s: jnp.stack([jnp.sum(jnp.where(s == i, x * (i + 1.0), 0)) for i in range(K)]),
        points(),
        STACK,
        "each class sums something else",
    ),
    Program(
        "means",
        lambda x, s: jnp.stack([jnp.max(jnp.where(s == i, x, 0)) for i in range(K)]),
        points(),
        STACK,
        "no sums",
    ),
    Program(
        "differs-by-class",
        lambda x, s: jnp.sum(one_hot(s, K) * x[:, :K], 0),
        points(K),
        CLASSES,
        "the summed values depend on the class",
    ),
]


def test_what_only_looks_alike_stays() -> None:
    check_lookalikes(LOOKALIKES, PASSES)


def test_the_loss_makes_no_log_probabilities() -> None:
    lines = body(loss, *logits(), passes=PASSES)
    large = [line for line in lines if f": f32[{N},{V}] = " in line]
    assert len(large) == 2  # x - max and its exponential
    assert any("gather[" in line for line in lines)
    assert not any("iota" in line for line in lines)


def test_masked_sums_become_one_scatter() -> None:
    lines = body(masked, *points(8)(), passes=PASSES)
    assert len(lines) == 4
    assert "scatter-add[" in lines[2] and lines[2].startswith("%4: f32[12,8]")


def rewritten(fun: Callable[..., Any], *args: Any) -> np.ndarray[Any, Any]:
    return np.asarray(to_callable(optimised(fun, *args, passes=PASSES))(*args)[0])


def test_labels_that_do_not_exist_cost_nothing() -> None:
    x = normal(4, V)
    got = rewritten(lambda x, y: jnp.sum(one_hot(y, V) * log_softmax(x), -1), x, jnp.array([-1, V, 0, V - 1]))
    assert (got[:2] == 0).all() and (got[2:] < 0).all()


def test_nan_stays_in_its_class() -> None:
    x, s = points(8)()
    got = rewritten(masked, x.at[7, 2].set(jnp.nan), s.at[7].set(3))
    assert np.isnan(got[3, 2]) and np.isnan(got).sum() == 1


def test_nan_that_is_picked_stays() -> None:
    x, y = logits()
    got = rewritten(lambda x, y: jnp.sum(one_hot(y, V) * x, -1), x.at[2, 5].set(jnp.nan), y.at[2].set(5))
    assert np.isnan(got[2]) and np.isfinite(np.delete(got, 2)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int32"])
def test_other_dtypes(dtype: str) -> None:
    x, s = points(8)()
    x = (4 * x).astype(dtype)[:400]
    same(masked, x, s[:400], passes=PASSES, grad=False, export=False)
    same(lambda x, y: jnp.sum(one_hot(y, 8, dtype=x.dtype) * x, -1), x, s[:400], passes=PASSES, grad=False)


def test_nothing_to_sum() -> None:
    same(masked, normal(0, 8), labels(0), passes=PASSES, export=False)
    same(lambda x, y: jnp.sum(one_hot(y, V) * x, -1), normal(0, V), labels(0), passes=PASSES, export=False)
