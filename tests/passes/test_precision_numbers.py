"""Automatic mixed precision: numbers, gradients, regions and transformations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import lepton_jax as lepton
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from tests.passes._check import rewrite_jaxpr

RNG = np.random.default_rng(0)
ROUNDING = {"bf16": 2.0**-8, "f16": 2.0**-11, "fp8": 0.09}
"""How far a number is rounded, as a part of it; products of many add little to that."""


def array(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-1]), jnp.float32)


def low_products(graph: Graph) -> int:
    return sum(
        n.op in ("dot_general", "conv_general_dilated") and n.operands[0].dtype != "float32"
        for n in graph.walk()
    )


W, V, X, B = array(16, 16), array(16, 16), array(4, 16), array(16)


def network(w: Any, b: Any, v: Any, x: Any) -> Any:
    h = jax.nn.gelu(x @ w + b)
    h = jax.nn.relu(h @ v).reshape(2, 2, 16).transpose(1, 0, 2)
    return jax.nn.softmax(h @ w)


def pooled(kernel: Any, image: Any) -> Any:
    conv = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    h = jax.nn.relu(conv(image, kernel))
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return conv(h, kernel)


def recurrent(w: Any, v: Any, x: Any) -> Any:
    def step(h: Any, row: Any) -> tuple[Any, Any]:
        h = jnp.tanh(row @ w + h @ v)
        return h, h @ w

    return lax.scan(step, jnp.zeros(16), x)


def stacked(ws: Any, x: Any) -> Any:
    layer = jax.checkpoint(lambda x, w: jnp.tanh(x @ w) @ w)
    return lax.scan(lambda x, w: (x + layer(x, w), None), x, ws)[0]


def branching(w: Any, x: Any) -> Any:
    y = lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w)
    return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.tanh(s[1] @ w)), (0, y))[1]


@jax.custom_vjp
def clipped(x: Any, w: Any) -> Any:
    return x @ w


clipped.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda kept, g: (jnp.clip(g, -1, 1) @ kept[1].T, kept[0].T @ jnp.clip(g, -1, 1)),
)


def sharded(w: Any, x: Any) -> Any:
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("d")
    body: Callable[..., Any] = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    return body(x, w)


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
    "network": (network, (W, B, V, X), 3),
    "pooled": (pooled, (array(3, 3, 4, 4), array(2, 4, 4, 4)), 2),
    "recurrent": (recurrent, (W, V, X), 3),
    "stacked": (stacked, (array(3, 16, 16), X), 2),
    "branching": (branching, (W, X), 4),
    "custom": (clipped, (X, W), 1),
    "sharded": (sharded, (W, X), 1),
    "empty": (lambda x, w: jax.nn.relu(x @ w) @ w, (jnp.zeros((0, 16)), W), 2),
}
"""Programs, their arguments, and how many products they have."""

WHILE = {"branching"}
"""Programs that reverse mode does not differentiate."""


def total(fun: Callable[..., Any]) -> Callable[..., Any]:
    """A weighted sum of all results."""

    def weighted(leaf: Any) -> Any:
        return jnp.sum(leaf * np.cos(np.arange(leaf.size)).reshape(leaf.shape).astype(np.float32))

    return lambda *args: sum(map(weighted, jax.tree.leaves(fun(*args))))


def assert_near(expected: Any, result: Any, rounding: float, name: str) -> None:
    """Assert equal types, and that an array's error is a few roundings."""
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        a, b = np.asarray(a), np.asarray(b)
        error = float(np.linalg.norm(a - b))
        assert error <= 4 * rounding * np.linalg.norm(a), f"{name}: off by {error} of {np.linalg.norm(a)}"


def views(funs: dict[str, Callable[..., Any]]) -> Any:
    """Results, gradients, and results under vmap."""
    found = {}
    for name, fun in funs.items():
        args = PROGRAMS[name][1]
        twice = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), args)
        argnums = tuple(range(len(args)))
        found[name] = (
            fun(*args),
            () if name in WHILE else jax.grad(total(fun), argnums)(*args),
            () if name == "sharded" else jax.vmap(fun)(*twice),
        )
    return found


@functools.cache
def plain_views() -> Any:
    return jax.jit(lambda: views({name: fun for name, (fun, _, _) in PROGRAMS.items()}))()


CHOSEN = {
    ("bf16", "gpu"): tuple(PROGRAMS),
    ("bf16", "cpu"): ("network", "pooled", "recurrent"),
    ("f16", "gpu"): ("network", "pooled"),
    ("fp8", "gpu"): ("network", "recurrent", "stacked", "branching", "custom"),
}
"""The programs that are run; the graphs of all are looked at."""


@pytest.mark.parametrize(("dtype", "target"), CHOSEN)
def test_numbers_gradients_and_transformations(dtype: str, target: str) -> None:
    """Values and gradients are within the format's rounding, under all transformations; twice is once."""
    passes = f"default,precision{{dtype={dtype},force=true}}"
    rewritten: dict[str, Callable[..., Any]] = {}
    for name, (fun, args, products) in PROGRAMS.items():
        closed, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
        graph, _ = rewrite_jaxpr(closed, name, passes, target=target)
        assert low_products(graph) >= products, name
        float8 = sum(n.op == "dot_general" and "float8" in str(n.operands[0].dtype) for n in graph.walk())
        assert (float8 > 0) == (dtype == "fp8" and name not in ("pooled", "sharded")), name
        flat = to_callable(graph)
        again, _ = rewrite_jaxpr(jax.make_jaxpr(flat)(*args), name, passes.partition(",")[2], target=target)
        assert again.to_text() == rewrite_jaxpr(jax.make_jaxpr(flat)(*args), name, "none")[0].to_text(), name
        tree = jax.tree.structure(shape)
        rewritten[name] = lambda *args, flat=flat, tree=tree: jax.tree.unflatten(tree, flat(*args))

    names = CHOSEN[dtype, target]
    result = jax.jit(lambda: views({name: rewritten[name] for name in names}))()
    for name in names:
        assert_near(plain_views()[name], result[name], ROUNDING[dtype], name)
    exported = jax.export.export(
        jax.jit(lambda: [rewritten[name](*PROGRAMS[name][1]) for name in names if name != "sharded"])
    )
    assert exported().mlir_module_serialized


def test_float8_survives_hard_numbers() -> None:
    """Zeros stay zeros, numbers of any size are scaled, NaN stays NaN."""
    x, w = np.zeros((16, 16), np.float32), np.eye(16, dtype=np.float32)
    times = jax.jit(lepton.optimize(jnp.matmul, "precision{dtype=fp8,force=true}"))
    hole = np.where(np.arange(256).reshape(16, 16) == 0, np.nan, 0).astype(np.float32)
    results = [np.asarray(times(a, w)) for a in (x, x + np.float32(1e30), x + np.float32(1e-30), hole)]
    np.testing.assert_array_equal(results[0], 0.0)
    np.testing.assert_allclose(results[1], 1e30, rtol=1e-2)
    np.testing.assert_allclose(results[2], 1e-30, rtol=1e-2)
    assert np.isnan(results[3]).any()


@pytest.mark.parametrize("dtype", ["bf16", "f16", "fp8"])
def test_derivatives_are_low_products_too(dtype: str) -> None:
    """Of a product with a float32 result, in both modes and twice; those of float8 are not float8."""
    graph, _ = rewrite_jaxpr(
        jax.make_jaxpr(jnp.matmul)(X, W), "f", f"precision{{dtype={dtype},force=true}}", target="gpu"
    )
    fun = to_callable(graph)

    def result(x: Any, w: Any) -> Any:
        return jnp.sin(fun(x, w)[0])

    gradient = jax.make_jaxpr(jax.grad(lambda x, w: result(x, w).sum(), (0, 1)))(X, W)
    dots = [n for n in from_jaxpr(gradient).walk() if n.op == "dot_general"]
    low = "float16" if dtype == "f16" else "bfloat16"
    assert [str(v.dtype) for n in dots[-2:] for v in n.operands] == [low] * 4
    assert {str(aval.dtype) for aval in gradient.out_avals} == {"float32"}

    def exact(x: Any, w: Any) -> Any:
        return jnp.sin(x @ w)

    def derivatives(fun: Any) -> Any:
        direction = jnp.ones_like(X)
        gradient = jax.grad(lambda x, w: fun(x, w).sum(), (0, 1))
        second = jax.jvp(lambda x: gradient(x, W), (X,), (direction,))
        return jax.jvp(lambda x: fun(x, W), (X,), (direction,)), second

    expected, found = jax.jit(lambda: (derivatives(exact), derivatives(result)))()
    assert_near(expected, found, ROUNDING[dtype], dtype)
