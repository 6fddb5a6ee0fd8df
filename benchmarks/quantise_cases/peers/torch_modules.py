"""The models as PyTorch modules with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.quantise_cases.peers._problem import Array, Problem, layers, steps_cache

Params = dict[str, Array]


def parameter(array: Array) -> Any:
    """An array as a parameter that is not trained."""
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)), requires_grad=False)


def dense(params: Params, kernel: str, bias: str | None = None) -> Any:
    """A linear layer of a kernel [inputs, outputs]."""
    layer = nn.Linear(*params[kernel].shape, bias=bias is not None)
    layer.weight = parameter(params[kernel].T)
    if bias is not None:
        layer.bias = parameter(params[bias])
    return layer


def perceptron(problem: Problem) -> tuple[Any, list[Array]]:
    """Products with ReLU between them."""
    layers = [dense(problem.params, name) for name in problem.params]
    parts = [part for layer in layers for part in (layer, nn.ReLU())]
    return nn.Sequential(*parts[:-1]), problem.inputs


class ConvNorm(nn.Module):  # type: ignore[misc]
    """A convolution and its batch norm."""

    def __init__(self, params: Params, name: str, norm: str, stride: int, padding: int) -> None:
        super().__init__()
        taps, _, inputs, outputs = params[name].shape
        self.conv = nn.Conv2d(inputs, outputs, taps, stride, padding, bias=False)
        self.conv.weight = parameter(np.transpose(params[name], (3, 2, 0, 1)))
        self.norm = nn.BatchNorm2d(outputs, eps=1e-5)
        self.norm.weight = parameter(params[f"{norm}.scale"])
        self.norm.bias = parameter(params[f"{norm}.bias"])
        self.norm.running_mean.copy_(torch.from_numpy(params[f"{norm}.mean"]))
        self.norm.running_var.copy_(torch.from_numpy(params[f"{norm}.variance"]))

    def forward(self, x: Any) -> Any:
        """Images [N, C, H, W]."""
        return self.norm(self.conv(x))


class Block(nn.Module):  # type: ignore[misc]
    """A basic block of a residual network."""

    def __init__(self, params: Params, name: str, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(params, f"{name}.conv1", f"{name}.bn1", stride, 1)
        self.second = ConvNorm(params, f"{name}.conv2", f"{name}.bn2", 1, 1)
        has_down = f"{name}.down" in params
        self.down = ConvNorm(params, f"{name}.down", f"{name}.bn3", stride, 0) if has_down else nn.Identity()

    def forward(self, x: Any) -> Any:
        """Images [N, C, H, W]."""
        return functional.relu(self.down(x) + self.second(functional.relu(self.first(x))))


def resnet18(problem: Problem) -> tuple[Any, list[Array]]:
    """Images come as NCHW, in memory with the channels last, as PyTorch advises."""
    params = problem.params
    blocks = [
        Block(params, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
        for stage in range(1, 5)
        for block in range(2)
    ]
    stem = [ConvNorm(params, "conv1", "bn1", 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(params, "fc.weight", "fc.bias")]
    model = nn.Sequential(*stem, *blocks, *head).to(memory_format=torch.channels_last)
    return model, [np.transpose(problem.inputs[0], (0, 3, 1, 2))]


class Norm(nn.Module):  # type: ignore[misc]
    """A layer norm."""

    def __init__(self, params: Params, name: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(params[f"{name}/gain"].shape[0], eps=1e-5)
        self.norm.weight = parameter(params[f"{name}/gain"])
        self.norm.bias = parameter(params[f"{name}/bias"])

    def forward(self, x: Any) -> Any:
        """x [..., width]."""
        return self.norm(x)


class Layer(nn.Module):  # type: ignore[misc]
    """A layer of a transformer, over a sequence or for one token with keys and values of those before."""

    def __init__(self, params: Params, name: str, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = Norm(params, f"{name}/before"), Norm(params, f"{name}/between")
        for which in ("query", "key", "value", "out", "up", "down"):
            setattr(self, which, dense(params, f"{name}/{which}", f"{name}/{which}_bias"))

    def forward(self, x: Any, keys: Any = None, values: Any = None) -> Any:
        """x [batch, tokens, width], or [batch, width] with a cache."""
        h = self.before(x)
        q, k, v = self.query(h), self.key(h), self.value(h)
        mixed = self.over(q, k, v) if keys is None else self.step(q, k, v, keys, values)
        x = x + self.out(mixed)
        return x + self.down(functional.gelu(self.up(self.between(x)), approximate="tanh"))

    def over(self, *parts: Any) -> Any:
        """Attention of a sequence to itself."""
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in parts)
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def step(self, q: Any, k: Any, v: Any, keys: Any, values: Any) -> Any:
        """Attention of one token to itself and to the cache."""
        q, k, v = (each.unflatten(-1, (self.heads, 1, -1)) for each in (q, k, v))
        scores = torch.cat([q @ keys, q @ k.transpose(2, 3)], -1) * q.shape[-1] ** -0.5
        weights = functional.softmax(scores, -1)
        return (weights[..., :-1] @ values + weights[..., -1:] * v).flatten(1)


class Encoder(nn.Module):  # type: ignore[misc]
    """Layers, and a norm at the end."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        heads = problem.config["heads"]
        self.layers = nn.ModuleList([Layer(problem.params, name, heads) for name in layers(problem)])
        self.norm = Norm(problem.params, "norm")

    def forward(self, x: Any) -> Any:
        """x [batch, tokens, width]."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Decoder(Encoder):
    """A step; the cache is only read."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.table = parameter(problem.params["table"])
        self.head = nn.Linear(*problem.params["table"].shape[::-1], bias=False)
        self.head.weight = self.table

    def forward(self, token: Any, *caches: Any) -> Any:
        """Token [batch] to logits [batch, words]."""
        x = self.table[token.long()]
        for layer, keys, values in zip(self.layers, caches[::2], caches[1::2], strict=True):
            x = layer(x, keys, values)
        return self.head(self.norm(x))


def encoder(problem: Problem) -> tuple[Any, list[Array]]:
    """The encoder and its input."""
    return Encoder(problem), problem.inputs


def decoder(problem: Problem) -> tuple[Any, list[Array]]:
    """The decoder's step and its inputs."""
    token, caches = steps_cache(problem)
    return Decoder(problem), [token, *caches]


MODELS: Final[dict[str, Callable[[Problem], tuple[Any, list[Array]]]]] = {
    "perceptron": perceptron,
    "resnet18": resnet18,
    "encoder": encoder,
    "decoder": decoder,
}
