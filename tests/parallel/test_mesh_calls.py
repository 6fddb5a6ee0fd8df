"""Calls over a mesh: those like earlier ones go straight to their program; checked ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax._sharded import placing

MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
W = np.eye(4, dtype=np.float32)
X = np.arange(32, dtype=np.float32).reshape(8, 4)


def test_what_lies_right_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counted(leaves: Any, *rest: Any) -> Any:
        looks.append(len(leaves))
        return placing.place(leaves, *rest)

    monkeypatch.setattr("lepton_jax._sharded.program.place", counted)
    f = lepton.optimize(
        lambda state, x: ({"w": state["w"] + 1}, x @ state["w"]),
        mesh=MESH,
        shard={"x": P("data")},
        donate_argnums=0,
    )

    def times(state: Any, x: Any) -> tuple[Any, int]:
        before = len(looks)
        state, y = f(state, x)
        np.testing.assert_allclose(y, np.asarray(x) @ W_NOW[0], rtol=1e-6)
        assert y.sharding.spec == P("data")
        W_NOW[0] = W_NOW[0] + 1
        return state, len(looks) - before

    W_NOW = [W]
    state = {"w": jax.device_put(W, NamedSharding(MESH, P()))}
    placed = jax.device_put(X, NamedSharding(MESH, P("data")))
    seen = []
    for x in (X, X, X, placed, placed, X + 1, jnp.asarray(X), jnp.asarray(X), placed):
        old = state["w"]
        state, looked = times(state, x)
        seen.append(looked > 0)
        assert old.is_deleted()
    # host arrays, first with a state that is a result; one that lies right; one that may lie anywhere
    assert seen == [True, True, False, True, False, False, True, False, False]
    moved = jax.device_put(X, jax.devices()[3])  # of the same type as those that JAX may put anywhere
    state, looked = times(state, moved)
    assert looked
    state, looked = times(state, X[:, ::-1])
    assert not looked
    with pytest.raises(TypeError, match="dot_general"):
        f(state, np.ones((8, 5), np.float32))
    f.clear_cache()
    state, looked = times(state, placed)
    assert looked


def test_programs_that_were_only_planned_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process may plan what it likes: all forget what ran, and ask one another, at the same call."""
    monkeypatch.setattr("lepton_jax._sharded.run._MOST_PROGRAMS", 2)
    traced = []

    def double(x: Any) -> Any:
        traced.append(x.shape[0])
        return x * 2

    f = lepton.optimize(double, mesh=MESH, shard={"x": P("data")})
    f(np.ones((8, 4), "f"))
    f.plan(np.ones((16, 4), "f"))
    f.plan(np.ones((24, 4), "f"))
    assert f.plan(np.ones((8, 4), "f")).arrays[0].shape == (8, 4)
    assert f.plan(np.ones((24, 4), "f")).arrays[0].shape == (24, 4)
    assert traced == [8, 16, 24]
    f.plan(np.ones((16, 4), "f"))
    assert traced == [8, 16, 24, 16]


class Counted(nnx.Module):
    """A layer that counts its calls."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(4, 4, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: Any) -> Any:
        self.calls[...] += 1
        return jnp.sin(self.layer(x))


def test_a_checked_call_changes_a_module_once() -> None:
    f = lepton.optimize(lambda net, x: net(x), mesh=MESH, shard={"x": P("data")}, verify=True)
    net = Counted(nnx.Rngs(0))
    wanted = np.sin(net.layer(jnp.asarray(X)))
    for calls in (1, 2):
        np.testing.assert_allclose(f(net, X), wanted, rtol=1e-5, atol=1e-6)
        assert int(net.calls[...]) == calls
    assert "verify: against one device: equal" in " ".join(f.report.notes)


def test_arguments_beside_modules_stay_in_their_order() -> None:
    """The first one has the parameters, whatever the others are called; names in a call tell calls apart."""

    def evaluate(net: Any, metrics: Any, batch: Any, **more: Any) -> Any:
        y = net(batch) * more.get("scale", 1.0) + more.get("bias", 0.0)
        metrics.update(loss=y.mean())
        return y

    f = lepton.optimize(evaluate, mesh=MESH, shard="dp")
    metric: Any = nnx.MultiMetric
    net, metrics = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), metric(loss=nnx.metrics.Average("loss"))
    layouts = {each.name: (each.kind, str(each.layout)) for each in f.plan(net, metrics, X).arrays}
    assert layouts["net/kernel"] == ("param", "[-, -]") and layouts["batch"] == ("batch", "[data, -]")
    y = net(jnp.asarray(X))
    np.testing.assert_allclose(f(net, metrics, X, scale=np.float32(2)), y * 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(f(net, metrics, X, bias=np.float32(2)), y + 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics.compute()["loss"], 1.5 * y.mean() + 1, rtol=1e-5)
