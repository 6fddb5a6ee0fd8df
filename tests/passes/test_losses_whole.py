"""Losses: logits that stay whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import lepton_jax as lepton
from lepton_jax.ir.export import to_callable
from tests.passes._check import check, fired, optimised
from tests.passes.test_losses_tiles import (
    CLASSES,
    PASSES,
    TOKENS,
    WIDTH,
    Loss,
    along_axis,
    flat,
    labels,
    normal,
)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(q @ k) @ v


def returns_logits(h: jax.Array, w: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = h @ w
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1).mean(), logits


def sorts_rows(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    logits = jnp.cumsum(h @ w, axis=0)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1).mean()


def centred(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    logits = h @ w
    logits = logits - logits.mean(0)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1).mean()


@pytest.mark.parametrize("fun", [returns_logits, sorts_rows, centred])
def test_left_alone(fun: Loss) -> None:
    args = flat()
    assert "tiled-logits" not in fired(fun, *args, passes=PASSES)
    misses = lepton.optimize(fun, PASSES).explain(*args)
    assert "tiled-logits" in str(misses)


def test_attention_is_left_alone() -> None:
    args = normal(TOKENS, WIDTH), normal(WIDTH, CLASSES, seed=1), normal(CLASSES, WIDTH, seed=2)
    assert "tiled-logits" not in fired(attention, *args, passes=PASSES)


def test_small_logits_are_left_alone() -> None:
    assert "tiled-logits" not in fired(along_axis, *flat(), passes="inline,losses")


def test_few_tokens_are_left_alone() -> None:
    """Where the weights are as large as the logits, their gradient would be read for each tile."""
    args = normal(TOKENS, 128), normal(128, CLASSES, seed=1), labels(TOKENS)
    assert "tiled-logits" not in fired(along_axis, *args, passes=PASSES)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(lepton.PipelineError, match="holds nothing"):
        lepton.optimize(along_axis, "losses{tile=0}").trace(*flat())
    with pytest.raises(lepton.PipelineError, match="less than two tiles"):
        lepton.optimize(along_axis, "losses{tile=4,least=2}").trace(*flat())


def test_unknown_lengths_are_left_alone() -> None:
    tokens, classes = jax.export.symbolic_shape("t, v")
    args = (
        jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((WIDTH, classes), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    rewritten = lepton.optimize(along_axis, PASSES)
    exported = jax.export.export(jax.jit(rewritten))(*args)
    check(along_axis(*flat()), exported.call(*flat()))


def test_logits_with_effects_behind_them() -> None:
    """What is printed is printed: it reads rows, and the loss comes after it."""

    def fun(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        norm = jax.nn.logsumexp(h @ w, axis=-1)
        jax.debug.print("{}", norm[0])
        return norm.sum() + y.sum()

    graph = optimised(fun, *flat(), passes=PASSES)
    assert sum(node.op in ("debug_callback", "debug_print") for node in graph.walk()) == 1
    check(fun(*flat()), to_callable(graph)(*flat())[0])
