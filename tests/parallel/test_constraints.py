"""Constraints written into programs: where, and what they say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import lepton_jax as lepton
from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.aot.compile import compile_for
from lepton_jax.parallel.constraints import constrain
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.told import is_kept_apart, way

P = PartitionSpec


def constrained(
    fun: Callable[..., Any], shapes: list[tuple[int, ...]], specs: list[P], wanted: dict[str, P]
) -> list[tuple[str, list[P]]]:
    """Of each operation that gets constraints its name and what they say, one after the other.

    Args:
        fun: the program.
        shapes: of its arguments, float32; whole numbers where there is one dimension.
        specs: how they lie.
        wanted: how the results of operations of these names shall lie.
    """
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    args = [jax.ShapeDtypeStruct(s, "float32" if len(s) > 1 else "int32") for s in shapes]
    graph = inline_calls(trace(fun, *args))
    given = {v: Layout.from_spec(s, v.ndim) for v, s in zip(graph.inputs, specs, strict=True)}
    given |= {
        value: Layout.from_spec(wanted[node.op], value.ndim)
        for node in graph
        if node.op in wanted
        for value in node.results
    }
    constrain(graph, propagate(graph, given, MeshSpec.of(mesh)), mesh)
    return list(told(graph).items())


def told(graph: Graph) -> dict[str, list[P]]:
    """The constraints behind each operation, by its name."""
    found: dict[str, list[P]] = {}
    origins: dict[Value, str] = {}
    for node in graph:
        if node.op == "sharding_constraint":
            value = node.operands[0]
            name = origins.get(value, value.node.op if value.node is not None else "input")
            origins[node.result] = name
            found.setdefault(name, []).append(node.params["sharding"].spec)
    return found


def test_what_takes_several_steps_is_told_each() -> None:
    """A look-up in a table of split columns, whose rows shall be split: exchanged, then gathered."""
    found = constrained(
        lambda table, ids: jnp.tanh(table.at[ids].get(mode="clip")),
        [(64, 32), (16,)],
        [P(None, ("data", "model")), P()],
        {"gather": P("model")},
    )
    assert dict(found)["gather"] == [P("model", "data"), P("model")]


def test_a_product_that_is_gathered_is_told_how_it_is_made() -> None:
    """Else XLA gathers the operand, here 64 times as large as the result."""
    found = constrained(
        lambda x, w: jnp.tanh(x @ w),
        [(64, 128), (128, 2)],
        [P(("data", "model")), P()],
        {"dot_general": P("data")},
    )
    assert found == [("dot_general", [P(("data", "model")), P("data")])]


def test_a_product_that_is_only_transposed_is_told_behind_that() -> None:
    """XLA then writes the transposed result; a constraint between hides it, as in gradients of weights."""

    def of(fun: Callable[..., Any], **wanted: P) -> list[tuple[str, list[P]]]:
        return constrained(fun, [(64, 32), (32, 16)], [P("data"), P()], {"dot_general": P("data"), **wanted})

    assert of(lambda x, w: jnp.tanh((x @ w).T)) == [("transpose", [P(None, "data")])]
    read = of(lambda x, w: (jnp.tanh((x @ w).T), jnp.sin(x @ w)))
    assert read == [("transpose", [P(None, "data")]), ("dot_general", [P("data")])]
    twice = of(lambda x, w: [jnp.tanh(y.T) + jnp.sin(y).T for y in [x @ w]])
    assert twice == [("dot_general", [P("data")])]
    otherwise = of(lambda x, w: jnp.tanh((x @ w).T), transpose=P("data"))
    assert ("dot_general", [P("data")]) in otherwise


def test_sums_that_a_loop_carries_are_told_where_they_are_made() -> None:
    """Behind its transpose, XLA would send all of a gradient widened to what the loop carries."""

    def sums(x: jax.Array, d: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda s, each: (s + (each[0].T @ each[1]).T, None), jnp.zeros((16, 32)), (x, d))[
            0
        ]

    args = [jax.ShapeDtypeStruct((4, 64, size), "float32") for size in (32, 16)]
    graph = inline_calls(trace(sums, *args))
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    given = {value: Layout.from_spec(P(None, "data"), 3) for value in graph.inputs}
    constrain(graph, propagate(graph, given, MeshSpec.of(mesh)), mesh)
    (body,) = next(node for node in graph if node.op == "scan").regions
    assert {"dot_general"} == set(told(body)) - {"input"}


def test_what_is_summed_over_is_split_alike_in_both_operands() -> None:
    """The gradient of a weight: else XLA gathers all of both."""
    found = constrained(
        lambda x, d: jax.lax.dot_general(x, d, (((0,), (0,)), ((), ()))),
        [(64, 32), (64, 16)],
        [P("data", "model"), P(("data", "model"))],
        {"dot_general": P("model", "data")},
    )
    assert found == [("input", [P("data")]), ("dot_general", [P("model", "data")])]


def test_what_stays_split_otherwise_is_laid_so_before() -> None:
    """XLA for GPUs ends the process at products with the transpose of a weight that is gathered in part."""
    found = constrained(
        lambda x, w: jnp.tanh(x @ w.T),
        [(8, 16), (32, 16)],
        [P("model"), P(("data", "model"))],
        {"dot_general": P("model", "data")},
    )
    assert ("input", [P("data", None)]) in found or ("transpose", [P(None, "data")]) in found


@pytest.mark.parametrize("scanned", [False, True])
def test_devices_along_an_idle_axis_are_left_out(scanned: bool) -> None:
    """FSDP over one axis of two: XLA would let the other gather, and scatter, a part each."""

    def step(ws: Any, x: Any) -> Any:
        def loss(ws: Any) -> Any:
            if scanned:
                return (jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0] ** 2).mean()
            return (jnp.tanh(x @ ws[0]) ** 2).mean()

        return jax.tree.map(lambda w, g: w - g, ws, jax.grad(loss)(ws))

    args = (jax.ShapeDtypeStruct((2, 64, 64), "float32"), jax.ShapeDtypeStruct((128, 64), "float32"))
    shard = {"ws": P(None, None, "data"), "x": P("data")}
    found = compile_for(
        lepton.optimize(step, "none", mesh="data=2,model=4", shard=shard), args, "cpu:8", "data=2,model=4"
    )
    assert found.collectives
    assert {(each.kind, each.axes) for each in found.collectives} <= {
        ("all-gather", ("data",)),
        ("all-reduce", ("data",)),
    }


def test_what_stands_behind_a_constraint_is_known() -> None:
    """A carry that lies over two axes, and weights that do: the product is made as it shall lie."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    shard = {"ws": P(None, ("data", "model")), "x": P(("data", "model"))}
    f = lepton.optimize(
        lambda ws, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0],
        "none",
        mesh=mesh,
        shard=shard,
    )
    text = f.lower(np.ones((2, 64, 64), "float32"), np.ones((64, 64), "float32")).as_text()
    assert '[{"model"}, {}]' not in text and '[{"data", "model"}, {}]' in text


def test_a_product_of_experts_is_told_where_its_transpose_lies_otherwise() -> None:
    """All that is split of it goes through it, but XLA would lay it as its reader."""
    found = dict(
        constrained(
            lambda x, masks: jnp.tanh(jnp.einsum("bte,btd->ebd", masks, x)),
            [(8, 16, 64), (8, 16, 8)],
            [P("data"), P("data")],
            {"dot_general": P("data"), "transpose": P("data")},
        )
    )
    assert found["dot_general"] == [P("data")]


def test_a_scattered_sum_is_kept_apart_from_slices() -> None:
    """XLA for TPUs would join the slices with the sum's, and add up all of it on every device."""

    def fun(x: jax.Array, w: jax.Array, *, sliced: bool) -> jax.Array:
        y = x @ w
        return jnp.tanh(y[:, :4] if sliced else y)

    args = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((32, 16), "float32")
    found = {}
    for chip in ("v5e", "cpu"):
        for sliced in (True, False):
            graph = inline_calls(trace(functools.partial(fun, sliced=sliced), *args))
            value = next(node for node in graph if node.op == "dot_general").result
            specs = P("data", "model"), P("model"), P(("data", "model"))
            values = (*graph.inputs, value)
            assignment = {v: Layout.from_spec(s, v.ndim) for v, s in zip(values, specs, strict=True)}
            mesh = MeshSpec.of("data=2,model=4", chip)
            found[chip, sliced] = is_kept_apart(value, assignment, mesh)
            assert way(value, assignment, mesh) == (Layout.from_spec(P("data"), 2),)
    assert found == {("v5e", True): True, ("v5e", False): False, ("cpu", True): False, ("cpu", False): False}


def test_parts_of_an_array_are_told() -> None:
    """Else XLA splits them as their readers want, and exchanges what lies across the cuts."""
    found = constrained(
        lambda x: [jnp.tanh(each) for each in jnp.split(x, 2, 1)],
        [(16, 32)],
        [P("model")],
        {"split": P("model")},
    )
    assert [spec for _, specs in found for spec in specs] == [P("model")] * 2


def test_what_is_joined_lies_alike_before() -> None:
    found = constrained(
        lambda x, y: jnp.concatenate([jnp.tanh(x), y], 1) * 2,
        [(16, 32), (16, 32)],
        [P("model", "data"), P("model")],
        {"tanh": P("model", "data"), "concatenate": P("model")},
    )
    assert dict(found) == {"tanh": [P("model")], "concatenate": [P("model")]}


def test_what_is_padded_between_elements_is_made_whole() -> None:
    """XLA fails, or computes something else, where it makes parts of uneven ones."""
    x, w = np.arange(128, dtype=np.float32).reshape(16, 8), np.ones((8, 8), np.float32)

    def sums(x: Any, w: Any) -> Any:
        return x @ w, jax.lax.associative_scan(jnp.add, x)

    fast = lepton.optimize(sums, "none", mesh="data=8", shard="auto")
    np.testing.assert_allclose(fast(x, w)[1], np.cumsum(x, 0), rtol=1e-5)
    for padding, specs in (((0, 1, 2), [P(), P("model")]), ((2, 3, 0), [P("model")])):

        def fun(x: Any, padding: Any = padding) -> Any:
            return jnp.tanh(jax.lax.pad(x, 0.0, [padding, (0, 0, 0)]))

        assert constrained(fun, [(3, 32)], [P()], {"pad": P("model")}) == [("pad", specs)]


def test_dimensions_of_size_one_come_and_go_untold() -> None:
    """XLA moves them through what is computed element by element; a constraint would stop it."""

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    found = constrained(norm, [(16, 32)], [P("model")], {})
    assert [name for name, _ in found] == ["reduce_sum"]
    # What a look-up reads is told.
    found = constrained(
        lambda table, ids: jnp.tanh(table.at[ids + 1].get(mode="clip")),
        [(64, 32), (16,)],
        [P(), P("model")],
        {},
    )
    assert dict(found)["broadcast_in_dim"] == [P("model")]


@pytest.mark.parametrize(("split", "words"), [(P("data"), []), (P(None, "model"), ["dot_general"])])
def test_products_and_broadcasts_whose_batch_alone_is_split_are_not_told(split: P, words: list[str]) -> None:
    def scores(q: jax.Array, k: jax.Array) -> jax.Array:
        products = jnp.einsum("bik,bjk->bij", q, k)
        return products - jax.lax.broadcast_in_dim(jnp.sin(q[..., 0]), products.shape, (0, 1))

    found = constrained(scores, [(8, 16, 4), (8, 16, 4)], [split, split], {"dot_general": split})
    assert [name for name, _ in found if name in ("dot_general", "broadcast_in_dim")] == words


@pytest.mark.parametrize("wide", [True, False])
def test_scores_that_are_widened_are_not_told_but_what_is_gathered_for_them(wide: bool) -> None:
    """With a constraint on them XLA keeps them widened for their gradient."""

    def scores(q: jax.Array, k: jax.Array) -> jax.Array:
        products = jnp.einsum("bik,bjk->bij", q.astype(jnp.bfloat16), jnp.sin(k.astype(jnp.bfloat16)))
        return products.astype(jnp.float32) if wide else products

    rows = P("data", "model")
    found = dict(constrained(scores, [(8, 16, 4), (8, 16, 4)], [rows, rows], {"dot_general": rows}))
    assert found == {"sin": [P("data")]} if wide else {"dot_general": [rows]}
