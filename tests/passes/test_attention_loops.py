"""The attention pass where forward and backward half are apart: in two loops, or one of them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.export import to_callable
from tests.passes._attention_forms import B, D, H, T, forms, mix, normal, scores_of
from tests.passes._check import fired, optimised, run
from tests.passes.test_attention import dropped

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,forward,dce,attention{smallest=2,block=16})"
LAYERS, WIDTH = 3, H * D
FORMS = forms()


def attend(x: Any, p: Any, mask: Any) -> Any:
    """One layer of heads, and its weights."""
    q, k, v = (jnp.einsum("btw,whd->bthd", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.where(mask, scores_of(q, k), -1e9))
    return x + jnp.einsum("bthd,hdw->btw", mix(weights, v), p["o"]), weights


def causal_of(x: Any) -> Any:
    return jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))


def plain(x: Any, p: Any) -> Any:
    return lax.scan(lambda x, p: (attend(x, p, causal_of(x))[0], None), x, p)[0]


def outside(x: Any, p: Any) -> Any:
    """The mask of packed sequences is made once, in front of the loop."""
    segments = jnp.cumsum(jnp.arange(x.shape[1]) % 9 == 0)
    mask = (segments[:, None] == segments) & causal_of(x)
    return lax.scan(lambda x, p: (attend(x, p, mask)[0], None), x, p)[0]


def bent(x: Any, p: Any) -> Any:
    """A bias that is dear to compute is made once, in front of the loop."""
    bias = jnp.sin(jnp.arange(x.shape[1])[:, None] * x[0, 0, 0] - jnp.arange(x.shape[1]))

    def step(x: Any, p: Any) -> Any:
        q, k, v = (jnp.einsum("btw,whd->bthd", x, p[name]) for name in "qkv")
        mixed = mix(jax.nn.softmax(scores_of(q, k) + bias), v)
        return x + jnp.einsum("bthd,hdw->btw", mixed, p["o"]), None

    return lax.scan(step, x, p)[0]


def repeated(x: Any, p: Any) -> Any:
    """Two layers in each step."""

    def step(x: Any, p: Any) -> Any:
        for _ in range(2):
            x = attend(x, p, causal_of(x))[0]
        return x, None

    return lax.scan(step, x, p)[0]


def capped(x: Any, p: Any) -> Any:
    """Capped scores in float32, the rest in bfloat16."""

    def step(x: Any, p: Any) -> Any:
        q, k, v = (jnp.einsum("btw,whd->bthd", x, p[name]) for name in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(5 * jnp.tanh(scores / 5)).astype(v.dtype)
        return x + jnp.einsum("bthd,hdw->btw", mix(weights, v), p["o"]), None

    return lax.scan(step, x.astype(jnp.bfloat16), jax.tree.map(lambda w: w.astype(jnp.bfloat16), p))[0]


def watched(x: Any, p: Any) -> Any:
    """The weights of all layers are a result too."""
    x, weights = lax.scan(lambda x, p: attend(x, p, causal_of(x)), x, p)
    return x.sum() + jnp.sort(weights).sum()


def summed(x: Any, p: Any) -> Any:
    """The loop that reads the exponentials of one layer reads the sums of all of them."""

    def first(x: Any, p: Any) -> Any:
        q, k, v = (jnp.einsum("btw,whd->bthd", x, p[name]) for name in "qkv")
        scores = scores_of(q, k)
        power = jnp.exp(scores - scores.max(-1, keepdims=True))
        total = power.sum(-1)
        mixed = mix(power / total[..., None], v)
        return x + jnp.einsum("bthd,hdw->btw", mixed, p["o"]), (power, total, v)

    x, (powers, totals, values) = lax.scan(first, x, p)

    def second(carry: Any, layer: Any) -> Any:
        power, total, v = layer
        back = jnp.einsum("bhqk,bqhd->bkhd", power / total[..., None], v)
        return carry * 0.5 + total, (back, totals.sum((1, 2)))

    return x, lax.scan(second, totals, (powers, totals, values), reverse=True)


def of(fun: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(lambda x, p: (fun(x, p).astype(jnp.float32) ** 2).sum(), (0, 1))


def arguments(length: int = T) -> tuple[Any, Any]:
    shapes = {"q": (WIDTH, H, D), "k": (WIDTH, H, D), "v": (WIDTH, H, D), "o": (H, D, WIDTH)}
    p = {n: normal(LAYERS, *s, seed=i) / WIDTH**0.5 for i, (n, s) in enumerate(shapes.items())}
    return normal(B, length, WIDTH), p


def compare(expected: Any, found: Any, tolerance: float, name: str) -> None:
    for a, b in zip(jax.tree.leaves(expected), found, strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        limit = tolerance * max(float(jnp.abs(a).max()), 1.0)
        np.testing.assert_allclose(a, b, atol=limit, err_msg=name)


def test_nothing_of_all_scores_is_stacked_over_layers() -> None:
    args, steps = arguments(), {}
    for fun, times in ((plain, 1), (outside, 1), (repeated, 2), (capped, 1)):
        graph, report = run(of(fun), *args, passes=PASSES)
        assert report.rules["attention"] == times, fun.__name__
        assert f",{T},{T}]" not in graph.to_text()
        steps[fun] = to_callable(graph)
    both = jax.jit(lambda *args: [(of(f)(*args), g(*jax.tree.leaves(args))) for f, g in steps.items()])
    for (expected, found), fun in zip(both(*args), steps, strict=True):
        compare(expected, found, 5e-2 if fun is capped else 1e-4, fun.__name__)


def test_a_loop_may_read_the_sums_of_all_layers_beside_the_weights_of_one() -> None:
    args = arguments()
    graph, report = run(summed, *args, passes=PASSES)
    assert report.rules["attention"] == 1
    expected, found = jax.jit(lambda *args: (summed(*args), to_callable(graph)(*jax.tree.leaves(args))))(
        *args
    )
    compare(expected, found, 1e-4, "summed")


def test_what_is_dear_to_compute_stays_in_front_of_the_loop() -> None:
    graph, report = run(bent, *arguments(), passes=PASSES)
    assert report.rules["attention"] == 1
    assert [node.graph for node in graph.walk() if node.op == "sin"] == [graph]


def test_weights_that_a_loop_keeps_for_something_else_stay() -> None:
    args = arguments()
    assert "attention" not in fired(of(watched), *args, passes=PASSES)
    text = str(lepton.optimize(of(watched), PASSES).explain(*args))
    assert "a loop keeps the weights for something else than its gradient" in text


def test_memory_over_layers_is_linear_in_the_length() -> None:
    sizes = []
    for length in (1024, 2048):
        args = jax.eval_shape(lambda: arguments(length))  # noqa: B023 — called at once
        flat = to_callable(optimised(of(outside), *args, passes="default"))
        memory = jax.jit(flat).lower(*jax.tree.leaves(args)).compile().memory_analysis()
        assert memory is not None
        sizes.append(int(memory.temp_size_in_bytes))
    assert sizes[1] < 2.2 * sizes[0]
    assert sizes[1] < 4 * B * H * 2048**2


def pulled(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The gradient of a form alone, from a gradient of its result, with its arguments."""
    fun, args = FORMS[name]
    moving = tuple(i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating))
    made = jax.eval_shape(fun, *args)

    def alone(change: Any, *args: Any) -> Any:
        def some(*moved: Any) -> Any:
            every = dict(enumerate(args)) | dict(zip(moving, moved, strict=True))
            return fun(*every.values())

        return jax.vjp(some, *(args[i] for i in moving))[1](change)

    return alone, (normal(*made.shape, seed=9, dtype=made.dtype), *args)


ALONE = ["masked", "grouped", "one_key_head", "padded"]
ALONE += ["wide_softmax", "window_and_cap", "biased", "manual"]


def test_a_gradient_alone_is_computed_in_blocks() -> None:
    steps = {name: pulled(name) for name in ALONE}
    graphs = {name: run(fun, *args, passes=PASSES) for name, (fun, args) in steps.items()}
    assert {name: report.rules.get("attention") for name, (_, report) in graphs.items()} == dict.fromkeys(
        ALONE, 1
    )
    blocks = {name: to_callable(graph) for name, (graph, _) in graphs.items()}
    both = jax.jit(
        lambda given: {n: (steps[n][0](*given[n]), blocks[n](*jax.tree.leaves(given[n]))) for n in given}
    )
    for name, (expected, found) in both({name: args for name, (_, args) in steps.items()}).items():
        compare(expected, found, 5e-2 if name == "wide_softmax" else 1e-4, name)


def cross_entropy(x: Any, w: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(x @ w), labels[:, None], 1).mean()


@pytest.mark.parametrize("case", ["dropout", "cross entropy"])
def test_gradients_that_look_alike_are_left_alone(case: str) -> None:
    if case == "dropout":
        step = jax.grad(lambda *x: (dropped(jax.random.key(0), *x) * normal(B, T, H, D)).sum(), (0, 1, 2))
        args = FORMS["plain"][1]
    else:
        step = jax.grad(cross_entropy, (0, 1))
        args = (normal(T, D), normal(D, T), jnp.arange(T) % 5)
    assert "attention" not in fired(step, *args, passes=PASSES)
