"""`lepton.trainable` of modules: what is trained of them, and what they convert to."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lepton_jax as lepton
from lepton_jax.rewrite import UsageError

PASSES = "default,quantize{weights=int4,activations=static,train=lsq}"
X: Any = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


class Nnx(nnx.Module):
    """A layer, a norm and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(6, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs, use_running_average=True)
        self.drop = nnx.Dropout(0.5, rngs=rngs, deterministic=True)

    def __call__(self, x: Any) -> Any:
        return self.drop(self.norm(self.dense(x)))


class Linen(nn.Module):
    """A layer and a norm."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))


class Eqx(eqx.Module):
    """A layer, and a number that is not trained."""

    dense: eqx.nn.Linear
    count: jax.Array

    def __init__(self) -> None:
        self.dense = eqx.nn.Linear(6, 4, key=jax.random.key(0))
        self.count = jnp.array(3)

    def __call__(self, x: Any) -> Any:
        return jax.vmap(self.dense)(x) + self.count


def trained_once(f: lepton.Trainable) -> tuple[Any, Any]:
    """The numbers after a step of SGD, and the outputs."""

    @jax.jit
    def step(params: Any) -> Any:
        slopes = jax.grad(lambda p: jnp.mean((f(p, X) - 1) ** 2))(params)
        tx = optax.sgd(0.1)
        updates, _ = tx.update(slopes, tx.init(params), params)
        params = optax.apply_updates(params, updates)
        return params, f(params, X)

    params, y = step(f.params)
    return params, y


def module(kind: str) -> tuple[Any, ...]:
    """A module, and its parameters where it does not hold them."""
    if kind == "nnx":
        return (Nnx(nnx.Rngs(0)),)
    if kind == "linen":
        return Linen(), Linen().init(jax.random.key(0), X)
    return (Eqx(),)


@pytest.mark.parametrize("kind", ["nnx", "linen", "equinox"])
def test_modules_are_trained_and_converted(kind: str) -> None:
    f = lepton.trainable(*module(kind), X, passes=PASSES, calibration=[X], strict=True)
    params, y = trained_once(f)
    ((site, numbers),) = params["learned"].items()
    assert ("kernel" in site or "weight" in site) and set(numbers) == {"input-step", "weight-step"}
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(params["params"]))
    assert sizes == ([4, 24] if kind == "equinox" else [4, 4, 4, 24])  # no statistics, counts, keys
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, f.params)
    assert min(jax.tree.leaves(moved)) >= 0 and max(jax.tree.leaves(moved["params"])) > 0
    model = f.compile(params)
    np.testing.assert_allclose(model(X), y, rtol=1e-4, atol=1e-5)
    assert [a.dtype for a in model.params.arrays if a.size == 24] == [jnp.int8]


def _two_convolutions(params: Any, x: Any) -> Any:
    for kernel in (params["a"], params["b"]):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean((1, 2))


def _kernels() -> Any:
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 1, 8), "b": (1, 1, 8, 16)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.filterwarnings("ignore:Lepton skipped")
@pytest.mark.parametrize(("group", "fits"), [("", True), (",group=2", False)])
def test_a_weight_may_have_another_form_at_another_size(group: str, fits: bool) -> None:
    """A 1x1 convolution is a product at some sizes: steps of channels serve both, those of groups say so."""
    x = jnp.ones((16, 8, 8, 1))
    f = lepton.trainable(
        _two_convolutions,
        _kernels(),
        x,
        passes=f"deploy,quantize{{weights=int2{group},train=lsq}}",
        strict=False,
    )
    learned = f.params["learned"]["params/b"]["weight-step"]
    rows = learned.shape[-2:]
    other = learned.reshape(rows if learned.ndim == 4 else (1, 1, *rows))
    numbers = {**f.params["learned"], "params/b": {"weight-step": other}}
    trained = {"params": f.params["params"], "learned": numbers}
    if fits:
        np.testing.assert_array_equal(f(trained, x), f(f.params, x))
        np.testing.assert_allclose(f.compile(trained)(x), f(f.params, x), rtol=1e-5, atol=1e-5)
        return
    for use in (f, f.compile):
        with pytest.raises(lepton.UsageError, match="put quantize before default"):
            use(trained, x)


@pytest.mark.parametrize(
    "static", [{"static_argnums": 2}, {"static_argnums": -1}, {"static_argnames": "mode"}]
)
def test_static_arguments_by_place_and_by_name(static: Any) -> None:
    """They are static however they are given, when the function is called and when its model is."""

    def fun(w: Any, x: Any, mode: str) -> Any:
        return jnp.tanh(x @ w) if mode == "tanh" else x @ w

    f = lepton.trainable(
        fun, jnp.ones((6, 4)), X, "tanh", passes="default,quantize{weights=int4,train=lsq}", **static
    )
    wanted = f(f.params, X, "tanh")
    np.testing.assert_array_equal(f(f.params, X, mode="tanh"), wanted)
    model = f.compile(f.params)
    np.testing.assert_allclose(model(X, "tanh"), wanted, rtol=1e-5)
    np.testing.assert_allclose(model(X, mode="tanh"), wanted, rtol=1e-5)


def test_other_parameters_say_so() -> None:
    """The function's own parameters are not what is trained."""
    w: Any = jnp.ones((6, 4))
    f = lepton.trainable(
        lambda w, x: x @ w, w, X, passes="default,quantize{weights=int4,activations=none,train=lsq}"
    )
    for call in (f, f.compile):
        with pytest.raises(UsageError, match="start from the attribute `params`"):
            call(w, X)
