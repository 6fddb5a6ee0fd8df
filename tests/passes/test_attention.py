"""The attention pass on forward programs: it finds every way of writing, keeps the numbers, saves memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.ir.export import to_callable
from tests.passes._attention_forms import (
    B,
    D,
    Form,
    H,
    T,
    causal,
    forms,
    manual,
    masked,
    mix,
    normal,
    one_head,
    padded,
    plain,
    qkv,
    scores_of,
)
from tests.passes._check import all_kept, check, fired, optimised, run

SIMPLER = "fold,algebra,movement,cse,dce"
PASSES = f"inline,dce,fixpoint({SIMPLER},attention{{smallest=2,block=16}})"
FORMS = forms()


def rewritten(fun: Callable[..., Any], *args: Any, passes: str = PASSES) -> Callable[..., Any]:
    """A function after the passes, with its results as they were."""
    flat = to_callable(optimised(fun, *args, passes=passes))
    tree = jax.tree.structure(jax.eval_shape(fun, *args))
    return lambda *args: jax.tree.unflatten(tree, flat(*args))


COMPUTED = [
    *("padded", "alibi", "relative", "one_head", "grouped", "window_and_cap", "in_scan"),
    *("keys_first", "divided_last", "masked_bfloat16"),
]
"""One for each way through the pass; the others differ from them in the matching alone."""


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_found(name: str) -> None:
    fun, args = FORMS[name]
    graph, report = run(fun, *args, passes=PASSES)
    assert report.rules["attention"] >= 1
    assert not any("exp[" in line for line in graph.to_text().splitlines() if line.startswith("  %"))
    assert [v.aval.shape for v in graph.outputs] == [
        o.shape for o in jax.tree.leaves(jax.eval_shape(fun, *args))
    ]


def test_numbers_and_gradients_are_kept() -> None:
    programs = {name: (FORMS[name][0], rewritten(FORMS[name][0], *FORMS[name][1])) for name in COMPUTED}

    def views(given: dict[int, Any]) -> Any:
        def of(name: str, fun: Callable[..., Any]) -> Any:
            args = [given[id(a)] for a in FORMS[name][1]]
            moving = tuple(i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating))

            def total(*args: Any) -> Any:
                leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(fun(*args))]
                return sum(x.sum() for x in leaves), leaves

            slopes, found = jax.grad(total, moving, has_aux=True)(*args)
            return found, [x.astype(jnp.float32) for x in slopes]

        return {name: [of(name, fun) for fun in pair] for name, pair in programs.items()}

    leaves = {id(a): a for name in COMPUTED for a in FORMS[name][1]}
    for name, ((expected, slopes), (got, others)) in jax.jit(views)(leaves).items():
        narrow = FORMS[name][1][0].dtype != jnp.float32
        rtol, atol = (2e-2, 2e-2) if narrow else (1e-4, 1e-5)
        for a, b in zip(expected, got, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)
        for a, b in zip(slopes, others, strict=True):
            tolerance = (5e-2 if narrow else 1e-4) * max(float(jnp.abs(a).max()), 1.0)
            np.testing.assert_allclose(a, b, atol=tolerance, err_msg=name)


def test_holds_under_every_transformation() -> None:
    all_kept({name: FORMS[name] for name in ("masked", "with_logsumexp")}, passes=PASSES)


def test_forward_mode_and_second_order() -> None:
    args = qkv()
    result = rewritten(masked, *args)
    tangents = tuple(normal(*a.shape, seed=7 + i) for i, a in enumerate(args))

    def derivatives(fun: Callable[..., Any]) -> Any:
        slope = jax.grad(lambda *a: (fun(*a) ** 2).sum())
        curvature = jax.jvp(lambda q: slope(q, *args[1:]), args[:1], tangents[:1])[1]
        return jax.jvp(fun, args, tangents), curvature

    expected, found = jax.jit(lambda: (derivatives(masked), derivatives(result)))()
    check(expected[0], found[0])
    np.testing.assert_allclose(expected[1], found[1], atol=2e-4)


def test_golden() -> None:
    q, k, v = (normal(32, 8, seed=s) for s in range(3))
    text = optimised(one_head, q, k, v, passes=PASSES).to_text().splitlines()
    assert [line for line in text if not line.startswith("    ")] == [
        "graph one_head(%0: f32[32,8], %1: f32[32,8], %2: f32[32,8]) {",
        "  %3: f32[32,8], _: f32[32,1], _: f32[32,1] = custom_jvp_call const<i32[2,2]> %2 %1 %0 {",
        "  }",
        "  return %3",
        "}",
    ]


def test_no_array_of_all_scores_is_left() -> None:
    args = qkv()
    assert f",{T},{T}]" in optimised(plain, *args, passes=f"inline,fixpoint({SIMPLER})").to_text()
    assert f",{T},{T}]" not in optimised(plain, *args, passes=PASSES).to_text()


def dropped(key: Any, q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(scores_of(q, k))
    keep = jax.random.bernoulli(key, 0.8, weights.shape)
    return mix(jnp.where(keep, weights / 0.8, 0), v)


def returned(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(scores_of(q, k))
    return mix(weights, v), weights


def over_queries(q: Any, k: Any, v: Any) -> Any:
    return mix(jax.nn.softmax(scores_of(q, k), axis=2), v)


def late_values(q: Any, k: Any, v: Any) -> Any:
    """The values are divided by the sums of the weights over the queries."""
    weights = jax.nn.softmax(scores_of(q, k))
    return mix(weights, v / jnp.moveaxis(weights.sum(2), 1, 2)[..., None])


def minus_mean(q: Any, k: Any, v: Any) -> Any:
    scores = scores_of(q, k)
    weights = jnp.exp(scores - scores.mean(-1, keepdims=True))
    return mix(weights, v), weights.sum(-1)


def of_parameters(table: Any, v: Any) -> Any:
    return jax.nn.softmax(table) @ v


LOOK_ALIKE: dict[str, Form] = {
    "returned": (returned, qkv()),
    "over_queries": (over_queries, qkv()),
    "late_values": (late_values, qkv()),
    "minus_mean": (minus_mean, qkv()),
    "of_parameters": (of_parameters, (normal(T, T), normal(T, D))),
    "one query": (one_head, (normal(1, D), normal(T, D), normal(T, D))),
    "no query": (one_head, (normal(0, D), normal(T, D), normal(T, D))),
}


def test_what_looks_alike_is_left_alone() -> None:
    kept = all_kept(LOOK_ALIKE, passes=PASSES, grad=False, vmap=False, export=False)
    assert [name for name, (_, report) in kept.items() if "attention" in report.rules] == []


def test_dropout_is_left_alone() -> None:
    assert "attention" not in fired(dropped, jax.random.key(0), *qkv(), passes=PASSES)


def test_says_why_not() -> None:
    text = str(lepton.optimize(dropped, PASSES).explain(jax.random.key(0), *qkv()))
    assert "the weights have dropout" in text
    assert "the weights are also read by return" in str(lepton.optimize(returned, PASSES).explain(*qkv()))
    short = [jax.ShapeDtypeStruct((1, 600, 1, D), jnp.float32)] * 3
    text = str(lepton.optimize(plain, "default,attention").explain(*short))
    assert "there are 600 keys; blocks pay from 1024" in text


def test_small_ones_are_left_alone() -> None:
    assert "attention" not in fired(masked, *qkv(), passes="default,attention")


def test_level_exact_leaves_it_alone() -> None:
    assert "attention" not in fired(masked, *qkv(), passes=PASSES, level="exact")
    passes = PASSES.replace("smallest=2", "smallest=2,level=exact")
    assert "attention" not in fired(masked, *qkv(), passes=passes)


def test_rows_that_see_nothing() -> None:
    q, k, v = qkv()
    blind = jnp.zeros((B, T), bool).at[1].set(True)

    def lost(q: Any, k: Any, v: Any, valid: Any) -> Any:
        mask = valid[:, None, None, :] & causal()
        return mix(jax.nn.softmax(jnp.where(mask, scores_of(q, k), -jnp.inf)), v)

    pair = [rewritten(fun, q, k, v, blind) for fun in (lost, padded)]
    result, average = jax.jit(lambda *args: [fun(*args) for fun in pair])(q, k, v, blind)
    assert jnp.isnan(result[0]).all() and not jnp.isnan(result[1]).any()
    np.testing.assert_allclose(average[0], jnp.broadcast_to(v[0].mean(0), v[0].shape), rtol=1e-4, atol=1e-5)


def test_nan_and_infinity_come_through() -> None:
    q, k, v = qkv()
    result = rewritten(manual, q, k, v)
    both = jax.jit(lambda q: (manual(q, k, v), result(q, k, v)))
    for bad in (jnp.nan, jnp.inf):
        expected, found = map(jnp.isnan, both(q.at[0, 3, 1, 2].set(bad)))
        assert expected.any() and not expected.all()
        np.testing.assert_array_equal(expected, found)


def temporaries(fun: Callable[..., Any], *args: Any) -> int:
    """The bytes that a compiled function needs beside its arguments and results."""
    memory = jax.jit(fun).lower(*args).compile().memory_analysis()
    assert memory is not None
    return int(memory.temp_size_in_bytes)


def causal_of(q: Any, k: Any, v: Any) -> Any:
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    return mix(jax.nn.softmax(jnp.where(mask, scores_of(q, k), -jnp.inf)), v)


def test_memory_is_linear_in_the_length() -> None:
    def slopes(fun: Callable[..., Any]) -> Callable[..., Any]:
        def loss(*args: Any) -> Any:
            return (fun(*args) ** 2).sum()

        return jax.grad(loss, (0, 1, 2))

    scores = 4 * H * 2048**2
    short, long = ([jax.ShapeDtypeStruct((1, t, H, 32), jnp.float32)] * 3 for t in (1024, 2048))
    few, many = (rewritten(causal_of, *args, passes="default,attention") for args in (short, long))
    backward = temporaries(slopes(many), *long)
    assert temporaries(many, *long) < scores / 4
    assert backward < 2.2 * temporaries(slopes(few), *short) and backward < scores / 2
