"""The attention pass with library kernels: when cuDNN or splash attention is put in, and its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.ir.export import to_callable
from lepton_jax.passes.fuse._attention.kernels import reference, splash
from lepton_jax.passes.fuse._attention.lowered import trial
from lepton_jax.passes.fuse._attention.shape import FEATURE, Shape
from tests.passes._attention_forms import Form, forms, normal
from tests.passes._check import run

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,dce,attention{smallest=2,block=16,kernels=true})"
FORMS = forms()

LENGTH = 128

KERNEL = "attention-kernel"


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which JAX finds cuDNN."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91900)
    trial.cache_clear()
    yield
    trial.cache_clear()


def halved(form: Form) -> Form:
    """A form in bfloat16."""
    fun, args = form
    return fun, tuple(a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a for a in args)


def training(fun: Callable[..., Any], args: tuple[Any, ...], values: int = 3) -> Callable[..., Any]:
    """Loss and gradients with respect to queries, keys and values."""

    def loss(*args: Any) -> Any:
        return (fun(*args).astype(jnp.float32) ** 2).sum()

    return jax.value_and_grad(loss, tuple(range(min(len(args), values))))


def calls(graph: Any, args: tuple[Any, ...], platform: str, name: str) -> int:
    """How many kernels a graph has where it is lowered for a platform."""
    traced = jax.jit(to_callable(graph)).trace(*jax.tree.leaves(args))
    return str(traced.lower(lowering_platforms=(platform,)).as_text()).count(name)


TAKEN = [
    *("masked", "filled", "biased_mask", "plain", "without_maximum", "one_key_head", "keys_first", "mapped"),
    *("library", "flax_nnx", "repeated", "grouped", "padded", "wide_softmax", "packed", "masked_float16"),
]


@pytest.mark.parametrize("name", TAKEN)
def test_cudnn_takes(name: str, cudnn: None) -> None:
    fun, args = halved(FORMS[name]) if "float16" not in name else FORMS[name]
    for program in (fun, training(fun, args)):
        _, report = run(program, *args, passes=PASSES, target="gpu")
        assert report.rules[KERNEL] == 1 and "attention" not in report.rules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("window_and_cap", "cuDNN does not cap scores"),
        ("alibi", "a bias of nearly all scores would have to be held whole"),
        ("with_logsumexp", "are results too"),
        ("divided_last", "the weights are divided after the product"),
        ("relative", "the scores are made of several products"),
        ("one_head", "value shape should be"),
        ("masked", "cuDNN computes bfloat16 and float16, not float32"),
    ],
)
def test_cudnn_leaves_to_blocks(name: str, reason: str, cudnn: None) -> None:
    fun, args = halved(FORMS[name]) if name != "masked" else FORMS[name]
    explained = lepton.optimize(fun, PASSES, target="gpu").explain(*args)
    assert reason in str(explained)
    assert run(fun, *args, passes=PASSES, target="gpu")[1].rules["attention"] == 1


def test_without_cudnn_there_are_blocks() -> None:
    fun, args = halved(FORMS["masked"])
    assert "cuDNN is not detected" in str(lepton.optimize(fun, PASSES, target="gpu").explain(*args))
    assert run(fun, *args, passes=PASSES, target="gpu")[1].rules["attention"] == 1


def test_lowers_to_cudnn_forward_and_backward(cudnn: None) -> None:
    fun, args = halved(FORMS["masked"])
    graph, _ = run(training(fun, args), *args, passes=PASSES, target="gpu")
    assert calls(graph, args, "cuda", "__cudnn$fmhaSoftmax(") == 1
    assert calls(graph, args, "cuda", "__cudnn$fmhaSoftmaxBackward(") == 1
    assert calls(graph, args, "cpu", "cudnn") == 0
    forward = to_callable(run(fun, *args, passes=PASSES, target="gpu")[0])
    later = jax.jit(jax.grad(lambda *x: forward(*x)[0].astype(jnp.float32).sum(), (0, 1, 2)))
    assert "fmhaSoftmaxBackward" in later.trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def test_kernels_are_asked_for(cudnn: None) -> None:
    fun, args = halved(FORMS["masked"])
    passes = PASSES.replace(",kernels=true", "")
    assert KERNEL not in run(fun, *args, passes=passes, target="gpu")[1].rules


def test_short_ones_are_left_alone(cudnn: None) -> None:
    fun, args = halved(FORMS["masked"])
    assert KERNEL not in run(fun, *args, passes="max", target="gpu")[1].rules


# Numbers: on a CPU the same program computes the plain form, in the same arrangement of axes


def grouped(q: Any, k: Any, v: Any) -> Any:
    """Grouped queries, a window and capped scores."""
    row, column = (lax_iota(d) for d in (0, 1))
    scores = 5 * jnp.tanh(jnp.einsum("btgrd,bsgd->bgrts", q, k) / 5)
    scores = jnp.where((row >= column) & (row - column < 40), scores, -jnp.inf)
    return jnp.einsum("bgrts,bsgd->btgrd", jax.nn.softmax(scores), v)


def padded(q: Any, k: Any, v: Any, valid: Any) -> Any:
    """Causal and padded: some queries see nothing and average everything."""
    mask = valid[:, None, None, :] & (lax_iota(0) >= lax_iota(1))
    scores = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k) * 0.3, -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def lax_iota(dimension: int) -> Any:
    """[queries, keys], numbered along one of them."""
    return jax.lax.broadcasted_iota(jnp.int32, (LENGTH, LENGTH), dimension)


VALID = jnp.arange(2 * LENGTH).reshape(2, LENGTH) % LENGTH > 9

PROGRAMS: list[Form] = [
    (grouped, (normal(2, LENGTH, 2, 3, 8), *(normal(2, LENGTH, 2, 8, seed=s) for s in (1, 2)))),
    (padded, (*(normal(2, LENGTH, 3, 8, seed=s) for s in range(3)), VALID)),
]


@pytest.mark.parametrize(("fun", "args"), PROGRAMS)
def test_splash_attention_keeps_the_numbers(fun: Callable[..., Any], args: tuple[Any, ...]) -> None:
    step = training(fun, args)
    graph, report = run(step, *args, passes=PASSES, target="tpu")
    assert report.rules[KERNEL] == 1
    assert calls(graph, args, "tpu", "tpu_custom_call") == 3
    both = jax.jit(lambda *args: (jax.tree.leaves(step(*args)), to_callable(graph)(*args)))
    for a, b in zip(*both(*args), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


def test_splash_attention_wants_whole_lanes() -> None:
    fun, args = FORMS["masked"]
    explained = str(lepton.optimize(fun, PASSES, target="tpu").explain(*args))
    assert "the numbers of queries and keys are no multiples of 128" in explained


def test_the_kernel_computes_what_the_plain_form_does() -> None:
    cases: list[tuple[tuple[float, float], float | None]]
    cases = [((-math.inf, 0.0), None), ((-40.0, 0.0), 5.0), ((-math.inf, math.inf), None)]
    shapes = [banded(band, cap) for band, cap in cases]
    arrays = [normal(1, 2 * LENGTH, 2, LENGTH, seed=s) for s in range(3)]
    both = jax.jit(
        lambda *x: [(reference(*x, shape=shape), splash(*x, shape=shape, interpret=True)) for shape in shapes]
    )
    for case, (expected, got) in zip(cases, both(*arrays), strict=True):
        np.testing.assert_allclose(expected, got, rtol=1e-3, atol=1e-3, err_msg=str(case))


def banded(band: tuple[float, float], cap: float | None) -> Shape:
    """Two heads, and each query sees keys at distances between two bounds."""
    plain = (((0,), (2,), (1,), (FEATURE,)),) * 2
    return Shape(
        sizes=(1, 2, 2 * LENGTH, 2 * LENGTH),
        query=2,
        key=3,
        batch=(0,),
        heads=(1,),
        groups=(),
        axes=(plain[0], ((0,), (3,), (1,), (FEATURE,)), ((0,), (3,), (1,), (FEATURE,))),
        result=plain[0],
        scale=0.3,
        cap=cap,
        band=band,
        extras=(),
        fill=-math.inf,
        sources=("float32", "float32", "float32"),
    )
