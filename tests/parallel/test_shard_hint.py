"""`lepton.shard_hint`: nothing without a mesh, kept with one, through every transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax.ir import trace

MESH = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
X = np.arange(128, dtype=np.float32).reshape(8, 16) / 100
W = np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)


def hinted(x: Any, w: Any) -> Any:
    return jnp.sin(lepton.shard_hint(x @ w, P("data", "model")))


def test_nothing_happens_without_a_mesh() -> None:
    x = jnp.asarray(X)
    assert lepton.shard_hint(x, P("data")) is x and lepton.shard_hint(X, None) is X
    plain = jax.jit(lambda x, w: jnp.sin(x @ w)).lower(X, W).as_text()
    assert jax.jit(hinted).lower(X, W).as_text().replace("hinted", "_lambda") == plain
    np.testing.assert_allclose(jax.jit(hinted)(X, W), jnp.sin(X @ W), rtol=1e-4)
    found = lepton.optimize(hinted).trace(X, W).graph  # passes look through it
    wanted = lepton.optimize(lambda x, w: jnp.sin(x @ w)).trace(X, W).graph
    assert [node.op for node in found] == [node.op for node in wanted]


def test_mistakes() -> None:
    with pytest.raises(TypeError, match=r"takes an array, not list; use jax\.tree\.map"):
        lepton.shard_hint([1.0], P("data"))
    with pytest.raises(TypeError, match="the spec of a hint is 3"):
        lepton.shard_hint(X, 3)
    with pytest.raises(ValueError, match="has 3 entries, the array 2 dimensions"):
        lepton.shard_hint(X, P(None, None, "data"))
    for spec, message in (
        (P("rows"), r"'rows' in the spec of the shard hint at .*test_shard_hint\.py"),
        (P(("data", "model", "extra")), "'extra' in the spec"),
        (P(None, "data"), "size 15 in dimension 1, .* 14 or 16 would do"),
    ):
        f = lepton.optimize(lambda x, s=spec: lepton.shard_hint(x * 2, s), mesh=MESH, shard={"x": None})
        with pytest.raises(ValueError, match=message):
            f.plan(X[:, :15])


def test_derivatives_and_batches_keep_it() -> None:
    forward = trace(jax.grad(lambda x: jnp.sum(lepton.shard_hint(x, ("data",)) ** 3)), X)
    specs = [node.params["spec"] for node in forward.walk() if node.op == "shard_hint"]
    assert specs == [(("data",),)] * 2  # the array's and the gradient's
    for axis, wanted in ((0, (None, ("data",), ())), (1, (("data",), None, ())), (2, (("data",), (), None))):
        batched = jax.vmap(lambda x: lepton.shard_hint(x, "data"), in_axes=axis, out_axes=axis)
        (node,) = trace(batched, jax.ShapeDtypeStruct((4, 4, 4), "float32"))
        assert node.params["spec"] == wanted


def everywhere(x: Any, w: Any) -> Any:
    @jax.checkpoint
    def block(x: Any) -> Any:
        return jnp.tanh(lepton.shard_hint(x @ w, ("rows", "columns")))

    def body(x: Any, _: Any) -> Any:
        return jax.lax.cond(
            jnp.sum(x) > 0, block, lambda x: lepton.shard_hint(x * 2, P(None, "model")), x
        ), None

    x, _ = jax.lax.scan(body, x, None, length=2)
    per_row = jax.vmap(lambda row: lepton.shard_hint(row * 3, P("model")))(x)
    return jnp.sum(per_row**2)


def test_it_holds_in_loops_branches_and_under_derivatives() -> None:
    shard = lepton.Sharding({"x": P("data")}, rules={"rows": "data", "columns": "model"})
    f = lepton.optimize(jax.value_and_grad(everywhere), mesh=MESH, shard=shard)
    got, wanted = f(X, W), jax.value_and_grad(everywhere)(X, W)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4, atol=1e-5)
    graph = f.trace(X, W).graph
    assert not any(node.op == "shard_hint" for node in graph.walk())
    placed = [node for node in graph.walk() if node.op == "sharding_constraint"]
    inside = [str(node.params["sharding"].spec) for node in placed if node.graph is not graph]
    assert any("'data', 'model'" in each for each in inside) and any(
        "None, 'model'" in each for each in inside
    )
    # the rows that vmap adds lie as x does, since nothing says otherwise
    tripled = next(node for node in graph if node.op == "mul" and node.result.shape == X.shape)
    (told,) = (node for node in tripled.result.users() if node.op == "sharding_constraint")
    assert told.params["sharding"].spec == P("data", "model")


def test_it_outranks_patterns_and_presets() -> None:
    def fun(x: Any) -> Any:
        a = lepton.shard_hint(x, P("model")) * 2
        b = jax.lax.with_sharding_constraint(x, NamedSharding(MESH, P(None, "data"))) * 2
        return a.astype("bfloat16"), b.astype("bfloat16")  # not what x becomes: that would lie as x

    f = lepton.optimize(fun, mesh=MESH, shard={"x": P("data")})
    assert {each.name: str(each.layout) for each in f.plan(X).arrays}["x"] == "[data, -]"
    assert [each.sharding.spec for each in f.eval_shape(X)] == [P("model"), P(None, "data")]
    got = f(X)
    np.testing.assert_allclose(np.asarray(got, "float32"), (X * 2, X * 2), rtol=1e-2)
    assert got[0].sharding.spec == P("model")
    placed = lepton.optimize(fun, mesh=MESH, shard="dp").trace(X).graph
    assert {node.params["sharding"].spec for node in placed.inputs[0].users()} == {
        P("model"),
        P(None, "data"),
    }


def test_the_dimension_that_vmap_adds_is_the_solvers() -> None:
    def hidden(x: Any, w: Any, v: Any) -> Any:
        return lepton.shard_hint(jnp.tanh(x @ w), P("model")) @ v

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((4, 512), (512, 2048), (2048, 512))]
    f = lepton.optimize(jax.vmap(hidden, (0, None, None)), mesh=MESH, shard="auto", params="w")
    graph = f.trace(*shapes).graph
    (tanh,) = (node for node in graph if node.op == "tanh")
    users = [node for node in tanh.result.users() if node.op == "sharding_constraint"]
    placed = {node.params["sharding"].spec for node in users}
    assert placed == {P("data", "model")}  # without the hint the batch of four has the axis of four
    layouts = {each.name: str(each.layout) for each in f.plan(*shapes).arrays}
    assert layouts["w"] == "[-, model]"
