"""The attention pass on programs that hold their own gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir.export import to_callable
from tests.passes._attention_forms import T, causal, forms, masked, mix, qkv, scores_of
from tests.passes._check import fired, optimised, run, same

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,dce,attention{smallest=2,block=16})"
FORMS = forms()

COMPUTED = ["padded", "without_maximum", "grouped", "one_head", "window_and_cap", "biased", "wide_softmax"]
COMPUTED += ["manual", "divided_last"]  # their maximum is differentiated too
"""One for each way through the pass; the others differ from them in the matching alone."""

NAMES = [
    *("masked", "with_logsumexp", "alibi", "packed", "library", "biased_mask", "flax_linen"),
    *("flax_nnx", "in_equinox", "one_key_head", "keys_first", "mapped", "boolean", "filled"),
]


def gradient_of(fun: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    """Loss and gradients with respect to every array of floating-point numbers."""

    def loss(*args: Any) -> Any:
        return sum((o.astype(jnp.float32) ** 2).sum() for o in jax.tree.leaves(fun(*args)))

    moving = tuple(i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating))
    return jax.value_and_grad(loss, moving)


@pytest.mark.parametrize("name", [*COMPUTED, *NAMES])
def test_the_backward_half_is_computed_in_blocks(name: str) -> None:
    fun, args = FORMS[name]
    graph, report = run(gradient_of(fun, args), *args, passes=PASSES)
    assert report.rules["attention"] == 1
    assert not any(node.op == "exp" and node.result.shape[-1] > 1 for node in graph)


@functools.cache
def steps() -> Callable[..., Any]:
    """Every form in `COMPUTED` with its gradients, before and after; of its arguments by their ids."""
    plain = {name: gradient_of(*FORMS[name]) for name in COMPUTED}
    blocks = {
        name: to_callable(optimised(step, *FORMS[name][1], passes=PASSES)) for name, step in plain.items()
    }

    def both(given: dict[int, Any]) -> Any:
        args = {name: [given[id(a)] for a in FORMS[name][1]] for name in COMPUTED}
        return {
            name: (jax.tree.leaves(plain[name](*args[name])), blocks[name](*args[name])) for name in COMPUTED
        }

    return jax.jit(both)


ARGUMENTS = {id(a): a for name in COMPUTED for a in FORMS[name][1]}


def test_numbers_and_gradients_are_kept() -> None:
    for name, (expected, found) in steps()(ARGUMENTS).items():
        narrow = FORMS[name][1][0].dtype != jnp.float32
        for a, b in zip(expected, found, strict=True):
            scale = max(float(jnp.abs(a.astype(jnp.float32)).max()), 1.0)
            a, b, tolerance = a.astype(jnp.float32), b.astype(jnp.float32), 5e-2 if narrow else 1e-4
            np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=name)


def test_holds_under_every_transformation() -> None:
    args = qkv()
    same(gradient_of(masked, args), *args, passes=PASSES, grad=False)


def test_sums_over_keys_need_no_loop_of_their_own() -> None:
    for name, loops in (("masked", 2), ("grouped", 2), ("biased", 2), ("divided_last", 3)):
        fun, args = FORMS[name]
        graph = optimised(gradient_of(fun, args), *args, passes=PASSES)
        assert sum(node.op in ("scan", "custom_jvp_call") for node in graph) == loops


def test_gradient_of_the_gradient() -> None:
    args = qkv()
    step = gradient_of(masked, args)
    flat = to_callable(optimised(step, *args, passes=PASSES))

    def both(q: Any) -> Any:
        expected = jax.grad(lambda q: (step(q, *args[1:])[1][0] ** 2).sum())(q)
        return expected, jax.grad(lambda q: (flat(q, *args[1:])[1] ** 2).sum())(q)

    expected, result = jax.jit(both)(args[0])
    np.testing.assert_allclose(expected, result, atol=1e-4 * float(jnp.abs(expected).max()))


def test_two_layers() -> None:
    args = qkv()

    def deep(q: Any, k: Any, v: Any) -> Any:
        return masked(masked(q, k, v), k, v)

    step = gradient_of(deep, args)
    graph, report = run(step, *args, passes=PASSES)
    assert report.rules["attention"] == 2
    assert f",{T},{T}]" not in graph.to_text().replace("bool", "")
    both = jax.jit(lambda *args: (jax.tree.leaves(step(*args)), to_callable(graph)(*args)))
    for a, b in zip(*both(*args), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(float(jnp.abs(a).max()), 1.0))


def test_leaves_alone_weights_that_are_wanted() -> None:
    args = qkv()

    def entropy(q: Any, k: Any, v: Any) -> Any:
        weights = jax.nn.softmax(jnp.where(causal(), scores_of(q, k), -1e9))
        return mix(weights, v), jnp.sort(weights, axis=-1)

    assert "attention" not in fired(gradient_of(entropy, args), *args, passes=PASSES)


def test_memory_is_linear_in_the_length() -> None:
    def loss(q: Any, k: Any, v: Any) -> Any:
        mask = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
        return (mix(jax.nn.softmax(jnp.where(mask, scores_of(q, k), -jnp.inf)), v) ** 2).sum()

    step = jax.value_and_grad(loss, (0, 1, 2))
    sizes = []
    for length in (1024, 2048):
        args = [jax.ShapeDtypeStruct((1, length, 4, 32), jnp.float32)] * 3
        flat = to_callable(optimised(step, *args, passes="default,attention"))
        memory = jax.jit(flat).lower(*args).compile().memory_analysis()
        assert memory is not None
        sizes.append(int(memory.temp_size_in_bytes))
    assert sizes[1] < 2.2 * sizes[0]
    assert sizes[1] < 4 * 4 * 2048**2 / 2


def test_rows_that_see_nothing() -> None:
    valid = FORMS["padded"][1][3]
    blind = jnp.ones_like(valid).at[0].set(False)
    for a, b in zip(*steps()({**ARGUMENTS, id(valid): blind})["padded"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(float(jnp.abs(a).max()), 1.0))


def test_few_bits_lose_no_more_than_in_the_plain_program() -> None:
    def library(q: Any, k: Any, v: Any) -> Any:
        return mix(jax.nn.softmax(scores_of(q, k), axis=-1), v)

    def error(found: Any, expected: Any) -> float:
        return float(jnp.linalg.norm(found.astype(jnp.float32) - expected) / jnp.linalg.norm(expected))

    rounded = [(a * b).astype(jnp.bfloat16) for a, b in zip(qkv(), (8, 1, 1), strict=True)]
    step = gradient_of(library, tuple(rounded))
    graph, report = run(step, *rounded, passes=PASSES)
    assert report.rules["attention"] == 1
    expected = step(*(a.astype(jnp.float32) for a in rounded))[1]
    for ours, plain, exact in zip(to_callable(graph)(*rounded)[1:], step(*rounded)[1], expected, strict=True):
        assert error(ours, exact) <= error(plain, exact)


def test_ties_of_few_bits_that_count_are_left_alone() -> None:
    def one_more(q: Any, k: Any, v: Any) -> Any:
        scores = scores_of(q, k)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        return mix(weights / (1 + weights.sum(-1, keepdims=True)), v)

    args = qkv()
    few = [a.astype(jnp.bfloat16) for a in args]
    assert "attention" in fired(gradient_of(one_more, args), *args, passes=PASSES)
    assert "attention" not in fired(gradient_of(one_more, tuple(few)), *few, passes=PASSES)
