"""The models as Flax NNX modules with the same weights, for Qwix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.quantise_cases.peers._problem import Array, Problem, layers, steps_cache

Params = dict[str, Array]


def dense(params: Params, kernel: str, bias: str | None = None) -> nnx.Linear:
    """A linear layer with a kernel [inputs, outputs] and perhaps a bias."""
    layer = nnx.Linear(*params[kernel].shape, use_bias=bias is not None, rngs=nnx.Rngs(0))
    layer.kernel = nnx.Param(jnp.asarray(params[kernel]))
    if bias is not None:
        layer.bias = nnx.Param(jnp.asarray(params[bias]))
    return layer


class Perceptron(nnx.Module):
    """Products with ReLU between them."""

    def __init__(self, problem: Problem) -> None:
        self.layers = nnx.List([dense(problem.params, name) for name in problem.params])

    def __call__(self, x: jax.Array) -> Any:
        """x [rows, width] to [rows, width]."""
        for layer in list(self.layers)[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class ConvNorm(nnx.Module):
    """A convolution and its batch norm, which is not updated."""

    def __init__(self, params: Params, name: str, norm: str, stride: int, padding: int) -> None:
        taps, _, inputs, outputs = params[name].shape
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (taps, taps),
            strides=stride,
            padding=[(padding, padding)] * 2,
            use_bias=False,
            rngs=nnx.Rngs(0),
        )
        self.conv.kernel = nnx.Param(jnp.asarray(params[name]))
        self.norm = nnx.BatchNorm(outputs, use_running_average=True, epsilon=1e-5, rngs=nnx.Rngs(0))
        self.norm.scale = nnx.Param(jnp.asarray(params[f"{norm}.scale"]))
        self.norm.bias = nnx.Param(jnp.asarray(params[f"{norm}.bias"]))
        self.norm.mean = nnx.BatchStat(jnp.asarray(params[f"{norm}.mean"]))
        self.norm.var = nnx.BatchStat(jnp.asarray(params[f"{norm}.variance"]))

    def __call__(self, x: jax.Array) -> Any:
        """Images [N, H, W, C]."""
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """A basic block of a residual network."""

    def __init__(self, params: Params, name: str, stride: int) -> None:
        self.first = ConvNorm(params, f"{name}.conv1", f"{name}.bn1", stride, 1)
        self.second = ConvNorm(params, f"{name}.conv2", f"{name}.bn2", 1, 1)
        has_down = f"{name}.down" in params
        self.down = ConvNorm(params, f"{name}.down", f"{name}.bn3", stride, 0) if has_down else None

    def __call__(self, x: jax.Array) -> Any:
        """Images [N, H, W, C]."""
        h = self.second(jax.nn.relu(self.first(x)))
        return jax.nn.relu((x if self.down is None else self.down(x)) + h)


class ResNet18(nnx.Module):
    """A stem, two basic blocks in each of four stages, and a linear layer."""

    def __init__(self, problem: Problem) -> None:
        params = problem.params
        self.stem = ConvNorm(params, "conv1", "bn1", 2, 3)
        self.blocks = nnx.List(
            [
                Block(params, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
                for stage in range(1, 5)
                for block in range(2)
            ]
        )
        self.head = dense(params, "fc.weight", "fc.bias")

    def __call__(self, x: jax.Array) -> Any:
        """Images [N, H, W, 3] to logits [N, 1000]."""
        pool: Any = nnx.max_pool
        x = pool(jax.nn.relu(self.stem(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))


def norm(params: Params, name: str) -> nnx.LayerNorm:
    """A layer norm."""
    layer = nnx.LayerNorm(params[f"{name}/gain"].shape[0], epsilon=1e-5, rngs=nnx.Rngs(0))
    layer.scale = nnx.Param(jnp.asarray(params[f"{name}/gain"]))
    layer.bias = nnx.Param(jnp.asarray(params[f"{name}/bias"]))
    return layer


class Layer(nnx.Module):
    """A layer of a transformer, over a sequence or for one token with keys and values of those before."""

    def __init__(self, params: Params, name: str, heads: int) -> None:
        self.heads = heads
        self.before, self.between = norm(params, f"{name}/before"), norm(params, f"{name}/between")

        def part(which: str) -> nnx.Linear:
            return dense(params, f"{name}/{which}", f"{name}/{which}_bias")

        self.query, self.key, self.value = part("query"), part("key"), part("value")
        self.out, self.up, self.down = part("out"), part("up"), part("down")

    def __call__(self, x: Any, keys: Any = None, values: Any = None) -> Any:
        """x [batch, tokens, width], or [batch, width] with a cache."""
        h = self.before(x)
        parts = (self.query(h), self.key(h), self.value(h))
        q, k, v = (each.reshape(*x.shape[:-1], self.heads, -1) for each in parts)
        mixed = self.over(q, k, v) if keys is None else self.step(q, k, v, keys, values)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.between(x))))

    def over(self, q: Any, k: Any, v: Any) -> Any:
        """Attention of a sequence to itself."""
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)

    def step(self, q: Any, k: Any, v: Any, keys: Any, values: Any) -> Any:
        """Attention of one token to itself and to the cache."""
        old, new = jnp.einsum("bhd,bhds->bhs", q, keys), jnp.sum(q * k, -1, keepdims=True)
        weights = jax.nn.softmax(jnp.concatenate([old, new], -1) / q.shape[-1] ** 0.5)
        return jnp.einsum("bhs,bhsd->bhd", weights[..., :-1], values) + weights[..., -1:] * v


class Encoder(nnx.Module):
    """Layers, and a norm at the end."""

    def __init__(self, problem: Problem) -> None:
        heads = problem.config["heads"]
        self.layers = nnx.List([Layer(problem.params, name, heads) for name in layers(problem)])
        self.norm = norm(problem.params, "norm")

    def __call__(self, x: Any) -> Any:
        """x [batch, tokens, width]."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Decoder(Encoder):
    """A step; the cache is only read. The table is kept twice, since Qwix quantises no tied one."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        table = problem.params["table"]
        self.table = nnx.Param(jnp.asarray(table))
        self.head = dense({"head": table.T}, "head")

    def __call__(self, token: Any, *caches: Any) -> Any:
        """Token [batch] to logits [batch, words]."""
        x = self.table[...][token]
        for layer, keys, values in zip(self.layers, caches[::2], caches[1::2], strict=True):
            x = layer(x, keys, values)
        return self.head(self.norm(x))


MODELS: Final[dict[str, Callable[[Problem], Any]]] = {
    "perceptron": Perceptron,
    "resnet18": ResNet18,
    "encoder": Encoder,
    "decoder": Decoder,
}


def inputs_of(problem: Problem) -> list[Array]:
    """What the module is called with."""
    if problem.model != "decoder":
        return problem.inputs
    token, caches = steps_cache(problem)
    return [token, *caches]
