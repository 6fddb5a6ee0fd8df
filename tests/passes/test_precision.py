"""Automatic mixed precision: which products, what follows them, what stays in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite import PassManager, Pipeline, PipelineError, Report, UsageError
from lepton_jax.targets import CPU, GPU, get_target, processor
from tests.passes._check import rewrite_jaxpr, run

CLEAN = "inline,dce,fixpoint(fold,algebra,movement,cse,dce)"
FORCED = f"{CLEAN},precision{{force=true}}"


def f32(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mlp(w: Any, b: Any, v: Any, x: Any) -> Any:
    return jnp.exp(jnp.maximum(x @ w + b, 0.0) @ v)


MLP = (f32(8, 16), f32(16), f32(16, 4), f32(2, 8))


def block(p: dict[str, Any], x: Any) -> Any:
    """A transformer block: norm, attention, norm, two layers with gelu."""

    def norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    h = norm(x)
    q, k, v = (jnp.einsum("btd,dhe->bthe", h, p[name]) for name in "qkv")
    scores = jnp.einsum("bthe,bshe->bhts", q, k) / 2.0
    mixed = jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(scores), v)
    x = x + jnp.einsum("bthe,hed->btd", mixed, p["o"])
    return x + jax.nn.gelu(norm(x) @ p["up"] + p["bias"]) @ p["down"]


BLOCK = {name: f32(8, 2, 4) for name in "qkv"} | {
    "o": f32(2, 4, 8),
    "up": f32(8, 16),
    "bias": f32(16),
    "down": f32(16, 8),
}


def dtypes(graph: Graph) -> dict[str, list[str]]:
    """The dtypes of the results of all operations, by operation."""
    found: dict[str, list[str]] = {}
    for node in graph.walk():
        found.setdefault(node.op, []).append(str(node.results[0].dtype))
    return found


def low_products(graph: Graph) -> int:
    """How many products take low operands."""
    ops = ("dot_general", "conv_general_dilated")
    return sum(n.op in ops and str(n.operands[0].dtype) in ("bfloat16", "float16") for n in graph.walk())


def test_text_on_a_cpu() -> None:
    """Products are converted, sums stay in float32, and what is exact follows."""
    assert run(mlp, *MLP, passes=FORCED, target="cpu")[0].to_text() == (
        "graph mlp(%0: f32[8,16], %1: f32[16], %2: f32[16,4], %3: f32[2,8]) {\n"
        "  %4: bf16[2,8] = convert_element_type[new_dtype=bfloat16 weak_type=False] %3\n"
        "  %5: bf16[8,16] = convert_element_type[new_dtype=bfloat16 weak_type=False] %0\n"
        "  %6: f32[2,16] = dot_general[dimension_numbers=(((1,),(0,)),((),()))"
        " preferred_element_type=float32] %4 %5\n"
        "  %7: f32[1,16] = broadcast_in_dim[broadcast_dimensions=(1,) shape=(1,16)] %1\n"
        "  %8: f32[2,16] = add %6 %7\n"
        "  %9: f32[2,16] = max %8 0.0\n"
        "  %10: bf16[2,16] = convert_element_type[new_dtype=bfloat16 weak_type=False] %9\n"
        "  %11: bf16[16,4] = convert_element_type[new_dtype=bfloat16 weak_type=False] %2\n"
        "  %12: f32[2,4] = dot_general[dimension_numbers=(((1,),(0,)),((),()))"
        " preferred_element_type=float32] %10 %11\n"
        "  %13: f32[2,4] = exp[accuracy=None] %12\n"
        "  return %13\n"
        "}"
    )


def test_text_on_a_gpu() -> None:
    """What stands between two products is low; the last product gives float32, with low derivatives."""
    assert run(mlp, *MLP, passes=FORCED, target="gpu")[0].to_text() == (
        "graph mlp(%0: f32[8,16], %1: f32[16], %2: f32[16,4], %3: f32[2,8]) {\n"
        "  %4: bf16[2,8] = convert_element_type[new_dtype=bfloat16 weak_type=False] %3\n"
        "  %5: bf16[8,16] = convert_element_type[new_dtype=bfloat16 weak_type=False] %0\n"
        "  %6: bf16[2,16] = dot_general[dimension_numbers=(((1,),(0,)),((),()))"
        " preferred_element_type=bfloat16] %4 %5\n"
        "  %7: bf16[16] = convert_element_type[new_dtype=bfloat16 weak_type=False] %1\n"
        "  %8: bf16[1,16] = broadcast_in_dim[broadcast_dimensions=(1,) shape=(1,16)] %7\n"
        "  %9: bf16[2,16] = add %6 %8\n"
        "  %10: bf16[2,16] = max %9 0.0:bf16[]\n"
        "  %11: bf16[16,4] = convert_element_type[new_dtype=bfloat16 weak_type=False] %2\n"
        "  %12: f32[2,4] = custom_jvp_call %10 %11 {\n"
        "    region body(%0: bf16[2,16], %1: bf16[16,4]) {\n"
        "      %2: f32[2,4] = dot_general[dimension_numbers=(((1,),(0,)),((),()))"
        " preferred_element_type=float32] %0 %1\n"
        "      return %2\n"
        "    }\n"
        "  }\n"
        "  %13: f32[2,4] = exp[accuracy=None] %12\n"
        "  return %13\n"
        "}"
    )


def test_what_is_delicate_stays_in_float32() -> None:
    """Softmax, norms and the residual stream; the scores that softmax reads are not rounded."""
    graph, report = run(block, BLOCK, f32(2, 3, 8), passes=FORCED, target="gpu")
    found = dtypes(graph)
    assert low_products(graph) == len(found["dot_general"]) == 8
    for op in ("exp", "div", "rsqrt", "reduce_max", "reduce_sum"):
        assert set(found[op]) == {"float32"}, op
    assert found["tanh"] == ["bfloat16"]  # of gelu, between two products
    assert {str(v.dtype) for v in graph.outputs} == {"float32"}
    scores = [n for n in graph.walk() if n.op == "dot_general" and n.result.shape[-2:] == (3, 3)]
    assert [str(n.result.dtype) for n in scores] == ["float32"]
    residual = [n for n in graph if n.op == "add" and n.result.shape == (2, 3, 8)]
    assert len(residual) == 2 and {str(n.result.dtype) for n in residual} == {"float32"}
    assert report.notes == ["precision: 8 of 8 float32 products run in bfloat16"]


def test_a_loss_is_not_rounded() -> None:
    """In the gradient of a squared error, prediction and target are subtracted in float32."""

    def loss(w: Any, v: Any, x: Any, y: Any) -> Any:
        return jnp.mean((jax.nn.relu(x @ w) @ v - y) ** 2)

    graph = run(
        jax.grad(loss, (0, 1)), f32(8, 16), f32(16, 4), f32(2, 8), f32(2, 4), passes=FORCED, target="gpu"
    )[0]
    (difference,) = [node for node in graph if node.op == "sub"]
    assert [str(v.dtype) for v in difference.operands] == ["float32", "float32"]
    assert low_products(graph) == 5
    relu = next(node for node in graph if node.op == "custom_jvp_call")
    assert str(relu.result.dtype) == "bfloat16"
    assert [str(v.dtype) for v in graph.outputs] == ["float32", "float32"]


def test_what_is_no_float32_product_is_untouched() -> None:
    """Integers, complex numbers, float64, what is low, and a product with a precision of its own."""

    def many(i: Any, c: Any, h: Any, x: Any) -> Any:
        return i @ i, c @ c, h @ h, jnp.matmul(x, x, precision="highest"), jnp.exp(x)

    args = [jax.ShapeDtypeStruct((16, 16), d) for d in (jnp.int32, jnp.complex64, jnp.bfloat16, jnp.float32)]
    closed = jax.make_jaxpr(many)(*args)
    graph, report = rewrite_jaxpr(closed, "f", "precision{force=true}", target="gpu")
    assert graph.to_text() == from_jaxpr(closed, "f").to_text()
    assert report.notes == [
        "precision: 0 of 1 float32 products run in bfloat16; "
        "1 left: the program asks for a precision of its own"
    ]
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(lambda d: d @ d)(jax.ShapeDtypeStruct((16, 16), jnp.float64))
        graph, report = rewrite_jaxpr(closed, "f", "precision{force=true}", target="gpu")
        assert graph.to_text() == from_jaxpr(closed, "f").to_text() and report.notes == []


def scoped(x: Any, w: Any) -> Any:
    with jax.named_scope("body"):
        x = x @ w
    with jax.named_scope("head"):
        return x @ w


@pytest.mark.parametrize(("options", "dots"), [('keep="head$"', ["head"]), ("scope=head", ["body"])])
def test_selectors(options: str, dots: list[str]) -> None:
    """`keep` leaves what it matches in float32, `scope` what it does not."""
    graph, report = run(
        scoped, f32(4, 4), f32(4, 4), passes=f"precision{{force=true,{options}}}", target="gpu"
    )
    kept = [n for n in graph.walk() if n.op == "dot_general" and n.operands[0].dtype == jnp.float32]
    assert [node.scope for node in kept] == dots
    assert "1 of 2" in report.notes[0] and options.partition("=")[0] in report.notes[0]


def test_selectors_that_are_wrong_say_so() -> None:
    """One that matches nothing, and one that is no regular expression."""
    with pytest.raises(UsageError, match="matches the scope of no product; the scopes are: body, head"):
        run(scoped, f32(4, 4), f32(4, 4), passes="precision{keep=tail}")
    with pytest.raises(PipelineError, match="keep='\\(' is no regular expression"):
        Pipeline.parse('precision{keep="("}')
    assert run(jnp.exp, f32(3), passes="precision{keep=tail}")[1].notes == []  # no products at all


def reasons(fun: Callable[..., Any], *args: Any, passes: str, target: Any) -> tuple[Graph, Report]:
    rates = get_target(target) if isinstance(target, str) else target
    manager = PassManager(Pipeline.parse(passes), rates, strict=True, explain=True)
    return manager.run(jax.make_jaxpr(fun)(*args))


@pytest.mark.parametrize(
    ("passes", "target", "reason"),
    [
        ("precision{dtype=f16}", "cpu", "no float16 products"),
        ("precision{dtype=f16}", "tpu", "no float16 products"),
        ("precision{dtype=fp8}", "cpu", "no float8 products"),
        ("precision{dtype=fp8}", "tpu", "no float8 products"),
    ],
)
def test_formats_that_a_target_lacks_are_refused(passes: str, target: str, reason: str) -> None:
    """The report says why, and `explain` where."""
    graph, report = reasons(jnp.matmul, f32(2048, 2048), f32(2048, 2048), passes=passes, target=target)
    assert low_products(graph) == 0 and reason in report.notes[0]
    assert [miss.rule for miss in report.misses] == ["low-product"]


def test_what_is_converted_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the processor has bfloat16, only large products, and no convolution."""

    def many(x: Any, w: Any, small: Any, image: Any, kernel: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        return (
            x @ w,
            small @ small,
            lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout),
        )

    args = f32(256, 4096), f32(4096, 4096), f32(64, 64), f32(8, 56, 56, 64), f32(3, 3, 64, 64)
    monkeypatch.setattr(processor, "has", lambda *names: True)
    graph, report = reasons(many, *args, passes="precision", target="cpu")
    assert low_products(graph) == 1 and graph.outputs[0].node is not None
    assert [miss.reason for miss in report.misses] == [
        "too small to gain on a cpu",
        "convolutions in low precision are not faster on a cpu",
    ]
    # Converting the weight takes longer than the product saves, unless the weight is a parameter.
    thin = jax.make_jaxpr(jnp.matmul)(f32(16, 4096), f32(4096, 4096))
    manager = PassManager(Pipeline.parse("precision"), CPU, strict=True)
    assert low_products(manager.run(thin)[0]) == 0
    assert low_products(manager.run(thin, params=frozenset({1}))[0]) == 1
    monkeypatch.setattr(processor, "has", lambda *names: False)
    graph, report = reasons(many, *args, passes="precision", target="cpu")
    assert (
        low_products(graph) == 0
        and "3 left: this processor has no instructions for products" in report.notes[0]
    )
    elsewhere = dataclasses.replace(GPU, name="abacus", platform="abacus")
    graph, report = reasons(many, *args, passes="precision", target=elsewhere)
    assert low_products(graph) == 0 and "nothing is known of what a abacus is fast at" in report.notes[0]
    slow = dataclasses.replace(CPU, flops={**CPU.flops, "bfloat16": CPU.flops["float32"]})
    graph, report = reasons(many, *args, passes="precision", target=slow)
    assert low_products(graph) == 0 and "measured to be no faster" in report.notes[0]


def test_what_is_converted_on_a_gpu() -> None:
    """Large products are; one row times a matrix that must be converted first is not."""
    large = reasons(jnp.matmul, f32(4096, 4096), f32(4096, 4096), passes="precision{dtype=f16}", target="gpu")
    assert low_products(large[0]) == 1
    row, report = reasons(jnp.matmul, f32(1, 4096), f32(4096, 4096), passes="precision", target="gpu")
    assert low_products(row) == 0 and "1 left: no faster by estimate" in report.notes[0]
    looped = reasons(
        lambda h, w: lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=50)[0],
        *(f32(8, 4096), f32(4096, 4096)),
        passes="precision",
        target="gpu",
    )
    assert low_products(looped[0]) == 1  # the matrix is converted once, in front of the loop
    prepared = PassManager(Pipeline.parse("precision"), GPU, strict=True)
    closed = jax.make_jaxpr(jnp.matmul)(f32(1, 4096), f32(4096, 4096))
    assert low_products(prepared.run(closed, params=frozenset({1}))[0]) == 1


def test_each_value_is_converted_once() -> None:
    """By all products that read it, by the user's own conversion, and not at all if it was low before."""

    def shared(x: Any, w: Any, h: Any) -> Any:
        wide = h.astype(jnp.float32)
        return x @ w, x.astype(jnp.bfloat16), w @ x, wide @ w, wide + 1.0

    h = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)
    graph = run(shared, f32(4, 4), f32(4, 4), h, passes="precision{force=true}", target="cpu")[0]
    assert low_products(graph) == 3
    casts = [(str(n.operands[0].dtype), n.operands[0]) for n in graph if n.op == "convert_element_type"]
    assert sorted(source for source, _ in casts) == ["bfloat16", "float32", "float32"]
    assert {value for _, value in casts} == set(graph.inputs)


def test_a_chain_that_is_forbidden_stays_in_float32_as_a_whole() -> None:
    """Bisection can tell chains from products."""
    closed = jax.make_jaxpr(mlp)(*MLP)
    manager = PassManager(
        Pipeline.parse(FORCED), GPU, strict=True, gate=lambda number, name, rule: rule != "low-chain"
    )
    graph, report = manager.run(closed)
    assert low_products(graph) == 2 and set(dtypes(graph)["add"]) == {"float32"}
    assert report.rules["low-product"] == 2 and "low-chain" not in report.rules


def test_it_runs_when_it_is_named() -> None:
    """At the default level, last in a pipeline; a pipeline can be written out and read again."""
    optimised = lepton.optimize(mlp, "default,precision{force=true}", target="gpu")
    assert low_products(optimised.trace(*MLP).graph) == 2
    text = 'precision{dtype=f16,keep="a|b",force=true}'
    assert str(Pipeline.parse(text)) == text
    with pytest.raises(PipelineError, match="one of bf16, f16, fp8"):
        Pipeline.parse("precision{dtype=f32}")
