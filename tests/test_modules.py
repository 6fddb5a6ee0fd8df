"""Modules of Flax NNX, Linen and Equinox in and around `lepton.optimize`."""

from __future__ import annotations

import functools
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lepton_jax as lepton


class Net(nnx.Module):
    """A small network with every kind of state."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: Any) -> Any:
        self.calls[...] = self.calls[...] + 1
        return self.drop(self.norm(self.dense(x))) * 1.0


class Decorated(nnx.Module):
    """A module whose method is optimised."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))

    @lepton.optimize
    def __call__(self, x: Any) -> Any:
        self.calls[...] = self.calls[...] + 1
        return self.dense(x) + 0.0


def forward(net: Net, x: Any) -> Any:
    return net(x)


def train_step(net: Net, optimizer: Any, x: Any) -> Any:
    loss, grads = nnx.value_and_grad(lambda n: jnp.mean((n(x) - 1.0) ** 2))(net)
    optimizer.update(net, grads)
    return loss


X: Any = np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(2, 3)


def states_equal(a: Any, b: Any) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        nnx.to_pure_dict(nnx.state(a, nnx.Not(nnx.RngState))),
        nnx.to_pure_dict(nnx.state(b, nnx.Not(nnx.RngState))),
    )


def test_state_is_written_back_as_by_nnx_jit() -> None:
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    f, g = lepton.optimize(forward), nnx.jit(forward)
    for _ in range(3):
        np.testing.assert_allclose(f(ours, X), g(theirs, X), rtol=1e-5, atol=1e-6)
    states_equal(ours, theirs)
    assert int(ours.calls[...]) == 3
    assert f.report.changed
    assert f.trace(ours, X).graph.num_nodes() > 0


def test_train_step() -> None:
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    ours_opt = nnx.Optimizer(ours, optax.adam(1e-2), wrt=nnx.Param)
    theirs_opt = nnx.Optimizer(theirs, optax.adam(1e-2), wrt=nnx.Param)
    f, g = lepton.optimize(train_step), nnx.jit(train_step)
    for _ in range(3):
        np.testing.assert_allclose(f(ours, ours_opt, X), g(theirs, theirs_opt, X), rtol=1e-4, atol=1e-6)
    states_equal(ours, theirs)
    states_equal(ours_opt, theirs_opt)


def test_under_nnx_transformations() -> None:
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    f = nnx.jit(lepton.optimize(forward))
    np.testing.assert_allclose(f(ours, X), nnx.jit(forward)(theirs, X), rtol=1e-5, atol=1e-6)
    states_equal(ours, theirs)


def test_modules_are_trees_under_transformations_of_jax() -> None:
    def loss(net: Decorated, x: Any) -> Any:
        return jnp.sum(net.dense(x) ** 2 * 1.0)

    net = Decorated(nnx.Rngs(0))
    f = lepton.optimize(loss)
    np.testing.assert_allclose(f(net, X), loss(net, X), rtol=1e-5)
    ours, theirs = jax.grad(f, allow_int=True)(net, X), jax.grad(jax.jit(loss), allow_int=True)(net, X)
    np.testing.assert_allclose(ours.dense.kernel[...], theirs.dense.kernel[...], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(f)(net, X), loss(net, X), rtol=1e-5)


def test_nnx_method() -> None:
    net = Decorated(nnx.Rngs(0))
    np.testing.assert_allclose(net(X), net.dense(X), rtol=1e-5, atol=1e-6)
    assert int(net.calls[...]) == 1
    gradient = nnx.grad(lambda n: jnp.sum(n(X)))(net)
    assert gradient["dense"]["kernel"].shape == (3, 3)


def test_split_and_merge() -> None:
    graphdef, state = nnx.split(Net(nnx.Rngs(0)))

    def pure(state: Any, x: Any) -> Any:
        net = nnx.merge(graphdef, state)
        return net(x), nnx.state(net)

    expected, result = jax.jit(pure)(state, X), lepton.optimize(pure)(state, X)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_structs(result, expected)


def test_checked_calls_refuse_modules() -> None:
    with pytest.raises(TypeError, match=r"nnx\.split"):
        lepton.optimize(forward, measure=True)(Net(nnx.Rngs(0)), X)


class LinenNet(nn.Module):
    """A Linen network with an optimised method."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.LayerNorm()(nn.relu(nn.Dense(4)(x))) * 1.0


def test_linen() -> None:
    model: Any = LinenNet()
    params = model.init(jax.random.key(0), X)
    f = lepton.optimize(model.apply)
    np.testing.assert_allclose(f(params, X), model.apply(params, X), rtol=1e-5, atol=1e-6)
    assert any("Dense_0" in node.scope for node in f.trace(params, X).graph.walk())
    loss = lepton.optimize(lambda p: jnp.sum(model.apply(p, X)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.grad(loss)(params),
        jax.grad(lambda p: jnp.sum(model.apply(p, X)))(params),
    )


class EquinoxNet(eqx.Module):
    """An Equinox network with an optimised method."""

    dense: eqx.nn.Linear
    scale: float = eqx.field(static=True)

    @lepton.optimize
    def forward(self, x: Any) -> Any:
        return jax.vmap(self.dense)(x) * self.scale


def test_equinox() -> None:
    net = EquinoxNet(eqx.nn.Linear(3, 2, key=jax.random.key(0)), 1.0)
    expected = jax.vmap(net.dense)(X)
    np.testing.assert_allclose(net.forward(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        eqx.filter_jit(lambda n, x: n.forward(x))(net, X), expected, rtol=1e-5, atol=1e-6
    )
    assert jax.grad(lambda n: jnp.sum(n.forward(X)))(net).dense.weight.shape == (2, 3)
    for fun in (eqx.filter_jit(lambda n, x: n.forward(x)), lambda n, x: eqx.filter_vmap(n.dense)(x)):
        model = lepton.compile(fun, net, X)
        np.testing.assert_allclose(model(X), fun(net, X), rtol=1e-5, atol=1e-6)
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    for hidden in (
        *(jax.vmap(net.dense), jax.vmap(net.dense.__call__)),
        *(jax.vmap(layer), nnx.jit(layer), jax.jit(layer.__call__), functools.partial(layer)),
    ):
        with pytest.raises(TypeError, match="cannot take parameters out of a transformed Linear"):
            lepton.compile(hidden, X)
