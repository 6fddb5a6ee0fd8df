"""Gradients of norms: one product for two sums, and products with vectors for sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, run
from tests.passes._golden import assert_text
from tests.passes._loops import normal

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,gradients,dce)"
G, X, SCALE, SHIFT = normal(6, 4), normal(6, 4, seed=1), normal(4), normal(4, seed=1)
RULES = {"sum-of-weighted", "sum-of-terms", "sum-of-centred"}

Norm = Callable[..., Any]


@pytest.fixture(autouse=True)
def small_arrays_too() -> Iterator[None]:
    with profit.disregarded():
        yield


def rms(x: Any, scale: Any) -> Any:
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def layer(x: Any, scale: Any, shift: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def layer_by_division(x: Any, scale: Any, shift: Any) -> Any:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + shift


def linen_layer(x: Any, scale: Any, shift: Any) -> Any:
    return linen.LayerNorm().apply({"params": {"scale": scale, "bias": shift}}, x)


def linen_rms(x: Any, scale: Any) -> Any:
    return linen.RMSNorm().apply({"params": {"scale": scale}}, x)


def nnx_layer(x: Any, scale: Any, shift: Any) -> Any:
    norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
    nnx.update(norm, {"scale": scale, "bias": shift})
    return norm(x)


def nnx_rms(x: Any, scale: Any) -> Any:
    norm = nnx.RMSNorm(4, rngs=nnx.Rngs(0))
    nnx.update(norm, {"scale": scale})
    return norm(x)


def equinox_layer(x: Any, scale: Any, shift: Any) -> Any:
    norm = eqx.tree_at(lambda n: (n.weight, n.bias), eqx.nn.LayerNorm(4), (scale, shift))
    return jax.vmap(norm)(x)


def equinox_rms(x: Any, scale: Any) -> Any:
    norm = eqx.tree_at(lambda n: (n.weight,), eqx.nn.RMSNorm(4, use_bias=False), (scale,))
    return jax.vmap(norm)(x)


def with_gradient(norm: Norm) -> Norm:
    def f(g: Any, *args: Any) -> Any:
        y, pull = jax.vjp(norm, *args)
        return y, pull(g)

    return f


NORMS: dict[str, Norm] = {
    norm.__name__: norm
    for norm in (
        *(layer, layer_by_division, linen_layer, nnx_layer, equinox_layer),
        *(rms, linen_rms, nnx_rms, equinox_rms),
    )
}


def arguments(name: str) -> tuple[Any, ...]:
    return (G, X, SCALE) if "rms" in name else (G, X, SCALE, SHIFT)


def dots(graph: Graph) -> int:
    return sum(node.op == "dot_general" for node in graph.walk())


def test_norms_as_they_are_written() -> None:
    programs = {name: (with_gradient(norm), arguments(name)) for name, norm in NORMS.items()}
    for name, (graph, report) in all_kept(
        programs, passes=PASSES, grad=False, vmap=False, export=False
    ).items():
        assert report.rules["sum-of-weighted"] == dots(graph) >= 2, name
        assert ("sum-of-centred" in report.rules) == (name in HANDED_TO_THE_MEAN), name


HANDED_TO_THE_MEAN = {"layer", "layer_by_division", "equinox_layer"}
"""Norms whose gradient adds up, for the mean, what goes back to its elements; others know that it is zero."""


def test_differentiated_again_batched_and_exported() -> None:
    """Of sequences in a batch, and of what is not a number."""

    def batched(g: Any, x: Any, scale: Any) -> Any:
        return with_gradient(rms)(g.reshape(2, 3, 4), x.reshape(2, 3, 4), scale)

    rough = X.at[1, 2].set(jnp.inf).at[3, 0].set(jnp.nan)
    [(graph, _)] = all_kept({"f": (batched, (G, X, SCALE))}, passes=PASSES).values()
    assert dots(graph) == 2
    program = {"rough": (with_gradient(rms), (G, rough, SCALE))}
    all_kept(program, passes=PASSES, grad=False, vmap=False, export=False)


def test_text() -> None:
    def f(x: Any, y: Any, scale: Any, rate: Any) -> Any:
        return (x * y * scale).sum(1), (x * rate[:, None] * y).sum(0)

    graph, _ = run(f, X, G, SCALE, X[:, 0], passes=PASSES)
    assert_text(
        graph,
        """
        graph f(%0: f32[6,4], %1: f32[6,4], %2: f32[4], %3: f32[6]) {
          %4: f32[6,4] = mul %1 %0
          %5: f32[6] = dot_general[dimension_numbers=(((1,),(0,)),((),())) precision=(HIGHEST,HIGHEST)] %4 %2
          %6: f32[4] = dot_general[dimension_numbers=(((0,),(0,)),((),())) precision=(HIGHEST,HIGHEST)] %3 %4
          return %5, %6
        }
        """,
    )


def look_alikes() -> dict[str, Callable[..., Any]]:
    def alone(x: Any, y: Any, w: Any) -> Any:
        return (x * y * w).sum(1)

    def other_products(x: Any, y: Any, w: Any) -> Any:
        return (x * y * w).sum(1), (x * jnp.sin(y) * x[:, :1]).sum(0)

    def no_weights(x: Any, y: Any, w: Any) -> Any:
        return (x * y).sum(1), (x * y).sum(0)

    def computed_for_it(x: Any, y: Any, w: Any) -> Any:
        return (jnp.tanh(x) * w).sum(1)

    def divided_by_an_array(x: Any, y: Any, w: Any) -> Any:
        return (x / y * w).sum(1), (x / y * x[:, :1]).sum(0)

    def computed_terms(x: Any, y: Any, w: Any) -> Any:
        return (jnp.sin(x) * w + (x - x.mean(1, keepdims=True))).sum(1)

    def terms_without_a_mean(x: Any, y: Any, w: Any) -> Any:
        return (x * w + y).sum(1), (x * w + (y - x.mean(1, keepdims=True))).sum(1)

    def of_another_mean(x: Any, y: Any, w: Any) -> Any:
        return (x - 2 * x.mean(1, keepdims=True)).sum(1), (x - x.mean(0, keepdims=True)).sum(1)

    def of_the_mean_of_rows_along_columns(x: Any, y: Any, w: Any) -> Any:
        square = x @ x.T
        return (square - square.mean(1)[None, :]).sum(1)

    products = (alone, other_products, no_weights, computed_for_it, divided_by_an_array)
    means = (computed_terms, terms_without_a_mean, of_another_mean, of_the_mean_of_rows_along_columns)
    found = (*products, *means)
    return {f.__name__: f for f in found}


@pytest.mark.parametrize("name", look_alikes())
def test_look_alikes_stay(name: str) -> None:
    assert not RULES & set(run(look_alikes()[name], X, G, SCALE, passes=PASSES)[1].rules)


def test_only_floats_that_a_cpu_multiplies() -> None:
    f = with_gradient(rms)
    narrow = [x.astype(jnp.bfloat16) for x in (G, X, SCALE)]
    whole = [(10 * x).astype(jnp.int32) for x in (X, SCALE)]
    assert not RULES & set(run(f, *narrow, passes=PASSES)[1].rules)
    assert not RULES & set(run(lambda x, w: (x * w).sum(1), *whole, passes=PASSES)[1].rules)
    assert not RULES & set(run(f, G, X, SCALE, passes=PASSES, target="gpu")[1].rules)
    assert np.dtype(narrow[0].dtype) != np.float32
