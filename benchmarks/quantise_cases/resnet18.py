"""A ResNet-18 on images of 224×224 pixels, with batch norms, in static int8: 1 and 8 images at a time."""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from benchmarks._common import Row, batches, nbytes, relative, turns

KINDS: Final = {
    "float32, batch norms folded": "deploy",
    "int8, static": "deploy,quantize{activations=static}",
    "int8, static, residuals too": "deploy,quantize{activations=static,residuals=codes}",
}

Params = dict[str, np.ndarray[Any, Any]]

_WIDTHS: Final = (64, 128, 256, 512)


def resnet18(params: Params, x: jax.Array) -> Any:
    """Two basic blocks in each of four stages: images [N, 224, 224, 3] to logits [N, 1000]."""
    x = jax.nn.relu(_norm(params, "bn1", _conv(x, params["conv1"], 2, 3)))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            h = jax.nn.relu(_norm(params, f"{name}.bn1", _conv(x, params[f"{name}.conv1"], stride, 1)))
            h = _norm(params, f"{name}.bn2", _conv(h, params[f"{name}.conv2"], 1, 1))
            if f"{name}.down" in params:
                x = _norm(params, f"{name}.bn3", _conv(x, params[f"{name}.down"], stride, 0))
            x = jax.nn.relu(x + h)
    return jnp.mean(x, (1, 2)) @ params["fc.weight"] + params["fc.bias"]


def _conv(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _norm(params: Params, name: str, x: Any) -> Any:
    scale = params[f"{name}.scale"] * lax.rsqrt(params[f"{name}.variance"] + 1e-5)
    return (x - params[f"{name}.mean"]) * scale + params[f"{name}.bias"]


def parameters(quick: bool) -> Params:
    """Random weights of the right size, with batch norms that keep activations about as large as they are."""
    rng = np.random.default_rng(0)
    params: Params = {}

    def add(conv: str, norm: str, taps: int, inputs: int, outputs: int) -> None:
        deviation = (2 / (taps * taps * inputs)) ** 0.5
        params[conv] = rng.normal(0, deviation, (taps, taps, inputs, outputs)).astype(np.float32)
        params[f"{norm}.scale"] = rng.uniform(0.5, 1.0, outputs).astype(np.float32)
        params[f"{norm}.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
        params[f"{norm}.mean"] = rng.normal(0, 0.1, outputs).astype(np.float32)
        params[f"{norm}.variance"] = rng.uniform(0.5, 1.5, outputs).astype(np.float32)

    widths = tuple(width // 4 for width in _WIDTHS) if quick else _WIDTHS
    add("conv1", "bn1", 7, 3, widths[0])
    inputs = widths[0]
    for stage, width in enumerate(widths, 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            add(f"{name}.conv1", f"{name}.bn1", 3, inputs, width)
            add(f"{name}.conv2", f"{name}.bn2", 3, width, width)
            if inputs != width:
                add(f"{name}.down", f"{name}.bn3", 1, inputs, width)
            inputs = width
    params["fc.weight"] = rng.normal(0, inputs**-0.5, (inputs, 1000)).astype(np.float32)
    params["fc.bias"] = np.zeros(1000, np.float32)
    return params


def build(quick: bool, images: int = 1) -> tuple[Any, Params, tuple[Any]]:
    """The function, its parameters and a sample of images."""
    size = 64 if quick else 224
    x = np.random.default_rng(1).normal(size=(images, size, size, 3)).astype(np.float32)
    return resnet18, parameters(quick), (x,)


def measure(quick: bool) -> list[Row]:
    """`jax.jit` in float32 and the compiled models, in turn; the bytes as a part of float32's."""
    return [row for images in ((1, 2) if quick else (1, 8)) for row in measured(quick, images)]


def measured(quick: bool, images: int) -> list[Row]:
    """The models on so many images at a time."""
    fun, params, (sample,) = build(quick, images)
    x, weights = jnp.asarray(sample), jax.tree.map(jnp.asarray, params)
    plain: Any = functools.partial(jax.jit(fun), weights, x)
    models = {
        name: lepton.compile(fun, weights, x, passes=passes, calibration=batches(passes, x))
        for name, passes in KINDS.items()
    }
    times = turns([plain, *(functools.partial(model, x) for model in models.values())], 2 if quick else 9)
    expected = plain()
    return [
        {
            "images": images,
            "model": name,
            "milliseconds": float(np.median([row[place] for row in times])) * 1e3,
            "times as fast as jit": float(np.median([row[0] / row[place] for row in times])),
            "bytes": model.nbytes / nbytes(weights),
            "error": relative(expected, model(x)),
        }
        for place, (name, model) in enumerate(models.items(), 1)
    ]
