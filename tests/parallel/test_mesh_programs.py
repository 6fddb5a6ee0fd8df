"""Programs that were once refused over a mesh, or not compiled by XLA: the results are those of `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax.ir import trace
from lepton_jax.ir.inline import copy_graph
from lepton_jax.parallel._plan.identity import all_values
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.propagation import propagate

MESH = "data=2,model=4"
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


A, B, X = normal(8, 8) * 0.1, normal(8, 8), normal(6, 3)


def exchanged(a: jax.Array, b: jax.Array) -> Any:
    """A loop makes one array of the first argument, a parameter, and of the second, a batch."""
    first, second = lax.fori_loop(0, 3, lambda _, c: (c[1], jnp.tanh(a @ c[0] + c[1])), (a, b))
    return (first * second).sum(0)


def of_parameters(w: jax.Array, x: jax.Array) -> jax.Array:
    """In the loop the batch's dimension is one of a parameter."""
    total, _ = lax.scan(
        lambda c, block: (c + jnp.exp(w @ block.T).sum(-1), None), w[:, 0], x.reshape(4, 2, 8)
    )
    return total


def in_reverse(x: jax.Array, y: jax.Array) -> Any:
    """Slices and paddings of which XLA's partitioner makes arrays of other shapes, where it may choose."""

    def combine(later: Any, earlier: Any) -> Any:
        return later[0] * earlier[0], earlier[1] + earlier[0] * later[1]

    return lax.associative_scan(combine, (jnp.exp(-x), y), reverse=True)


def of_its_own(x: jax.Array) -> Any:
    """A reduction by a function that XLA cannot apply to parts on several devices."""
    return lax.reduce(x, -jnp.inf, jnp.logaddexp, (0,)), lax.reduce(x * 2, -jnp.inf, jnp.logaddexp, (1,))


def without_results(w: jax.Array, x: jax.Array) -> jax.Array:
    """A callback that gives nothing back."""
    y = x @ w
    jax.debug.callback(lambda _: None, y)
    return y


def scalar(threshold: jax.Array) -> Any:
    """Nothing in it can be split."""
    return lax.while_loop(lambda c: c * c < threshold, lambda c: c + 1, jnp.int32(0))


PROGRAMS: list[tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = [
    (exchanged, (A, B), ("dp", "auto")),
    (of_parameters, (A, B), ("dp", ("dp", {"x": None}))),
    (in_reverse, (X, X), ({"x": P("data"), "y": P("data")},)),
    (of_its_own, (B,), ({"x": P("data", "model")},)),
    (without_results, (A, B), ("dp",)),
    (scalar, (np.int32(30),), ("auto",)),
]


@pytest.mark.parametrize("fun, args, shards", PROGRAMS, ids=[fun.__name__ for fun, _, _ in PROGRAMS])
def test_results_are_those_of_jit(
    fun: Callable[..., Any], args: tuple[Any, ...], shards: tuple[Any, ...]
) -> None:
    expected = jax.device_get(jax.jit(fun)(*args))
    for shard in shards:
        run = lepton.optimize(fun, mesh=MESH, shard=shard)
        assert run.plan(*args).axes == (("data", 2), ("model", 4)), shard
        found = jax.device_get(run(*args))
        for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5, err_msg=f"{fun.__name__} {shard}")


def test_what_yields_gives_way_to_what_is_one_array_with_it() -> None:
    graph = trace(exchanged, A, B)
    a, b = graph.inputs
    mesh, rows = MeshSpec.of(MESH, chip="cpu"), Layout((("data",), ()))
    given = {a: Layout.whole(2), b: rows}
    with pytest.raises(ValueError, match="a loop or a call makes them one array"):
        propagate(graph, given, mesh)
    assert str(propagate(graph, given, mesh, yielding=[a])[a]) == "[data, -]"
    assert str(propagate(graph, given, mesh, yielding=[a, b])[b]) == "[-, -]"  # the first one holds
    columns = Layout(((), ("data",)))
    stacked = trace(lambda xs: lax.scan(lambda c, x: (c, x * 2), 0.0, xs)[1], A)
    (scan,) = stacked
    inside = scan.regions[0].inputs[-1]
    given = {stacked.inputs[0]: rows, inside: Layout((("data",),))}
    found = propagate(stacked, given, mesh, yielding=[inside])  # `data` is taken by the stacked dimension
    assert (str(found[stacked.inputs[0]]), str(found[inside])) == ("[data, -]", "[-]")
    found = propagate(stacked, {stacked.inputs[0]: columns}, mesh, yielding=[stacked.inputs[0]])
    assert str(found[inside]) == "[data]"


def test_a_copy_has_its_values_in_the_order_of_the_program() -> None:
    def two_regions(x: jax.Array) -> Any:
        first = lax.cond(x[0] > 0, jnp.sin, lambda x: jnp.cos(x) * 2, x)
        return lax.scan(lambda c, _: (c * 2, None), first, None, length=2)[0]

    graph = trace(two_regions, A[0])
    cond, scan = (node for node in graph if node.regions)
    graph.holders.pop(cond)
    graph.holders[cond] = None  # as if it were made after the loop
    copy = copy_graph(graph)
    assert [node.op for node in graph.holders] != [node.op for node in copy.holders]
    shapes = [[(value.shape, value.node and value.node.op) for value in all_values(g)] for g in (graph, copy)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 8 and scan.results[0] in all_values(graph)
