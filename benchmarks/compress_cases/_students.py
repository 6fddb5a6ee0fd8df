"""The student of the case `distillation` on images: a residual network, a quarter as large as a ResNet-20."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

WIDTHS: Final = (16, 32, 56)

Params = dict[str, Any]

KEPT: Final = 0.9
"""What running means keep at each step."""


def make(key: Any) -> tuple[Params, Params]:
    """Random weights, and the running means and variances."""
    keys = iter(jax.random.split(key, 2 * len(WIDTHS) + 2))
    params: Params = {}
    state: Params = {}

    def add(conv: str, norm: str, inputs: int, outputs: int) -> None:
        kernel = jax.random.normal(next(keys), (outputs, inputs, 3, 3)) * (2 / (9 * inputs)) ** 0.5
        params[f"{conv}.weight"] = kernel
        params[f"{norm}.weight"], params[f"{norm}.bias"] = jnp.ones(outputs), jnp.zeros(outputs)
        state[norm] = (jnp.zeros(outputs), jnp.ones(outputs))

    add("conv1", "bn1", 3, WIDTHS[0])
    for stage, (width, wider) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False), 1):
        add(f"layer{stage}.conv1", f"layer{stage}.bn1", width, wider)
        add(f"layer{stage}.conv2", f"layer{stage}.bn2", wider, wider)
    params["linear.weight"] = jax.random.normal(next(keys), (10, WIDTHS[-1])) * WIDTHS[-1] ** -0.5
    params["linear.bias"] = jnp.zeros(10)
    return params, state


def training(params: Params, state: Params, x: Any) -> tuple[Any, Params]:
    """Images [N, 32, 32, 3] to logits [N, 10], normalised by the batch; and the new running means."""
    new: Params = {}

    def norm(name: str, x: Any) -> Any:
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        pairs = zip(state[name], (mean, var), strict=True)
        new[name] = tuple(KEPT * old + (1 - KEPT) * lax.stop_gradient(now) for old, now in pairs)
        return _normed(params, name, x, mean, var)

    return _network(params, x, norm), new


def evaluated(params: Params, state: Params, x: Any) -> Any:
    """Logits, normalised by the running means."""
    return _network(params, x, lambda name, x: _normed(params, name, x, *state[name]))


def _normed(params: Params, name: str, x: Any, mean: Any, var: Any) -> Any:
    return (x - mean) * (lax.rsqrt(var + 1e-5) * params[f"{name}.weight"]) + params[f"{name}.bias"]


def _conv(x: Any, kernel: Any, stride: int = 1) -> Any:
    axes = ("NHWC", "OIHW", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=axes)


def _network(params: Params, x: Any, norm: Callable[[str, Any], Any]) -> Any:
    """Three stages of one block each, with option A shortcuts; the first convolution halves the image."""
    x = jax.nn.relu(norm("bn1", _conv(x, params["conv1.weight"], 2)))
    for stage, width in enumerate(WIDTHS, 1):
        stride, name = 2 if stage > 1 else 1, f"layer{stage}"
        h = jax.nn.relu(norm(f"{name}.bn1", _conv(x, params[f"{name}.conv1.weight"], stride)))
        h = norm(f"{name}.bn2", _conv(h, params[f"{name}.conv2.weight"]))
        if stride == 2:
            more = (width - x.shape[-1]) // 2
            x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (more, more)))
        x = jax.nn.relu(x + h)
    return jnp.mean(x, (1, 2)) @ params["linear.weight"].T + params["linear.bias"]
