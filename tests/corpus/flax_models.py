"""Models of Flax Linen, Flax NNX and Equinox, as their users call them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from ._program import Program, floats, integers


class Block(linen.Module):
    """A pre-norm transformer block of Linen, causal, with dropout."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> Any:
        mask = linen.make_causal_mask(x[..., 0])
        x = x + linen.MultiHeadDotProductAttention(num_heads=2)(linen.LayerNorm()(x), mask=mask)
        hidden = linen.Dropout(0.2, deterministic=not train)(linen.gelu(linen.Dense(8)(linen.LayerNorm()(x))))
        return x + linen.Dense(x.shape[-1])(hidden)


class ConvNet(linen.Module):
    """A small convolutional network of Linen with batch norm."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> Any:
        x = linen.Conv(4, (3, 3), use_bias=False)(x)  # batch norm takes away what a bias adds
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
        return linen.Dense(3)(x.mean((1, 2)))


class Perceptron(nnx.Module):
    """Two linear layers of NNX with batch norm, dropout, and a count of its calls."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.int32(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        return self.head(self.drop(nnx.relu(self.norm(self.body(x)))))


class Scaled(eqx.Module):
    """An Equinox module with a static field and a submodule."""

    linear: eqx.nn.Linear
    scale: jax.Array
    power: int = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return (self.linear(x) * self.scale) ** self.power


def filled(tree: Any) -> Any:
    """The tree with small positive numbers in its floating leaves: initialisation without compiling."""

    def leaf(like: Any) -> Any:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.key(5)
        if not jnp.issubdtype(like.dtype, np.floating):
            return np.zeros(like.shape, like.dtype)
        return np.abs(floats(*like.shape, seed=sum(like.shape), scale=0.5)) + 0.1

    return jax.tree.map(leaf, tree)


def linen_variables(module: linen.Module, *shape: int) -> Any:
    key = jax.random.key(0)
    return filled(jax.eval_shape(lambda x: module.init(key, x, train=False), jnp.zeros(shape)))


def linen_block(variables: Any, key: jax.Array, x: jax.Array) -> Any:
    return Block().apply(variables, x, train=True, rngs={"dropout": key})


def linen_conv_net(variables: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, Any, Any]:
    """Loss, gradient and new batch statistics of one training step."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        rest = {"batch_stats": variables["batch_stats"]}
        logits, new = ConvNet().apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

    (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, gradient, new


@lru_cache
def perceptron() -> tuple[Any, Any]:
    """Definition of the NNX model and the shapes of its state."""
    return nnx.split(nnx.eval_shape(lambda: Perceptron(nnx.Rngs(0))))


def nnx_functional(state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """A model merged in the function; logits and the state that the call has changed."""
    model = nnx.merge(perceptron()[0], state)
    logits = model(x)
    return logits, nnx.state(model)


def nnx_train_step(definition: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
    """A step of descent whose static half is an argument too."""
    model = nnx.merge(definition, state)
    model.eval()

    def loss(model: Any) -> jax.Array:
        return jnp.mean((model(x) - y) ** 2)

    value, gradient = nnx.value_and_grad(loss)(model)
    params, rest = nnx.state(model, nnx.Param), nnx.state(model, nnx.Not(nnx.Param))
    return value, nnx.merge_state(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), rest)


def nnx_module(model: nnx.Linear, x: jax.Array) -> jax.Array:
    """A module that is itself an argument."""
    return jax.nn.softmax(model(x), axis=-1)


def equinox_module(model: Scaled, xs: jax.Array) -> tuple[jax.Array, Any]:
    """Predictions of a batch, and a module of gradients."""
    return jax.vmap(model)(xs), eqx.filter_grad(lambda m: jnp.sum(jax.vmap(m)(xs)))(model)


def equinox_partition(arrays: Any, xs: jax.Array) -> Any:
    """A module in two halves, of which the static one holds an activation function."""
    key = jax.random.key(0)
    whole = eqx.filter_eval_shape(lambda: eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=key))
    static = eqx.filter(whole, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))
    return jax.vmap(eqx.combine(arrays, static))(xs)


def equinox_arrays() -> Any:
    key = jax.random.key(0)
    whole = eqx.filter_eval_shape(lambda: eqx.nn.MLP(3, 2, 4, 1, key=key))
    return filled(eqx.filter(whole, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)))


def nnx_linear() -> Any:
    definition, state = nnx.split(nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
    return nnx.merge(definition, filled(state))


def scaled() -> Scaled:
    key = jax.random.key(0)
    linear = filled(jax.eval_shape(lambda: eqx.nn.Linear(3, 2, key=key)))
    return Scaled(linear, jnp.float32(1.5), 2)


PROGRAMS = [
    Program(
        "linen_block",
        linen_block,
        lambda: (linen_variables(Block(), 2, 4, 4), jax.random.key(1, impl="unsafe_rbg"), floats(2, 4, 4)),
    ),
    Program(
        "linen_conv_net",
        linen_conv_net,
        lambda: (linen_variables(ConvNet(), 2, 4, 4, 1), floats(2, 4, 4, 1), integers(2, high=3)),
    ),
    Program("nnx_functional", nnx_functional, lambda: (filled(perceptron()[1]), floats(5, 4))),
    Program(
        "nnx_train_step",
        nnx_train_step,
        lambda: (perceptron()[0], filled(perceptron()[1]), floats(5, 4), floats(5, 3, seed=1)),
    ),
    Program("nnx_module_argument", nnx_module, lambda: (nnx_linear(), floats(2, 3)), (1,)),
    Program("equinox_module", equinox_module, lambda: (scaled(), floats(4, 3)), (1,), vmappable=True),
    Program("equinox_partition", equinox_partition, lambda: (equinox_arrays(), floats(4, 3)), (0, 1)),
]
