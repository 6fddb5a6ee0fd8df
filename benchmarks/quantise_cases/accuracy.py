"""A ResNet-20 on CIFAR-10 images, quantised without training and calibrated on training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from benchmarks._common import Row, data, nbytes

KINDS: Final = {
    "int8, activations dynamic": "quantize{activations=dynamic}",
    "int8, activations static": "quantize{activations=static,observer=percentile}",
    "int4": "quantize{weights=int4}",
    "int4, scales by least squares": "quantize{weights=int4,search=mse}",
    "int4, HQQ": "quantize{weights=int4,method=hqq}",
    "int4, GPTQ": "quantize{weights=int4,search=mse,method=gptq}",
    "int3, scales by least squares": "quantize{weights=int3,search=mse}",
    "int3, GPTQ": "quantize{weights=int3,search=mse,method=gptq}",
}

FILES: Final = ("resnet20_cifar10.npz", "cifar10_small.npz")

Params = dict[str, Any]


def resnet20(params: Params, x: jax.Array, norm: Callable[[Params, str, Any], Any] | None = None) -> Any:
    """A CIFAR ResNet-20 with option A shortcuts: images [N, 32, 32, 3] to logits [N, 10].

    Args:
        norm: takes the place of the batch norm with running statistics, (params, its name, x) → x.
    """
    norm = norm or _norm
    x = jax.nn.relu(norm(params, "bn1", _conv(x, params["conv1.weight"])))
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            stride, name = (2 if stage > 1 and block == 0 else 1), f"layer{stage}.{block}"
            h = norm(params, f"{name}.bn1", _conv(x, params[f"{name}.conv1.weight"], stride))
            h = jax.nn.relu(h)
            h = norm(params, f"{name}.bn2", _conv(h, params[f"{name}.conv2.weight"]))
            if stride == 2:
                x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (width // 4, width // 4)))
            x = jax.nn.relu(x + h)
    return jnp.mean(x, (1, 2)) @ params["linear.weight"].T + params["linear.bias"]


def _conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    axes = ("NHWC", "OIHW", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=axes)


def _norm(params: Params, name: str, x: Any) -> Any:
    scale = params[f"{name}.weight"] * lax.rsqrt(params[f"{name}.running_var"] + 1e-5)
    return (x - params[f"{name}.running_mean"]) * scale + params[f"{name}.bias"]


def read() -> tuple[Params, Any, Any, Any, Any] | None:
    """The trained weights, test images and labels, training images and labels; None without the files.

    Images are float32 [N, 32, 32, 3], normalised; labels are integers [N].
    """
    if (files := data(*FILES)) is None:
        return None
    with np.load(files[0]) as weights, np.load(files[1]) as images:
        params = {name: weights[name] for name in weights.files if "num_batches" not in name}
        test, training = _scaled(images["x_test"]), _scaled(images["x_train"])
        return params, test, images["y_test"], training, images["y_train"]


def measure(quick: bool) -> list[Row]:
    """The model in floats and quantised: percent of the test images that are classified right."""
    if (found := read()) is None:
        return []
    params, x, labels, training, _ = found
    count = 200 if quick else len(x)
    calibration = [training[i : i + 100] for i in range(0, 200 if quick else 1000, 100)]
    plain: Any = jax.jit(resnet20)
    right = percent(lambda images: plain(params, images), x[:count], labels)
    rows: list[Row] = [{"model": "float32", "percent right": right, "bytes": 1.0}]
    for name, passes in list(KINDS.items())[: 2 if quick else None]:
        wants = any(word in passes for word in ("static", "gptq"))
        model = lepton.compile(
            resnet20, params, x[:200], passes=f"deploy,{passes}", calibration=calibration if wants else None
        )
        right = percent(model, x[:count], labels)
        rows.append({"model": name, "percent right": right, "bytes": model.nbytes / nbytes(params)})
    return rows


def _scaled(images: Any) -> Any:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((images / 255 - mean) / deviation).astype(np.float32)


def percent(model: Callable[[Any], Any], images: Any, labels: Any) -> float:
    """Percent of the images, 200 at a time, whose largest logit is that of their label."""
    starts = range(0, len(images), 200)
    hits = [np.argmax(model(images[i : i + 200]), -1) == labels[i : i + 200] for i in starts]
    return 100 * float(np.mean(np.concatenate(hits)))
