"""What quantisation costs in accuracy and gives in time and bytes.

    python benchmarks/quantise.py [--quick] [--only layers|accuracy] [--json FILE]

- layers: a multilayer perceptron of four 4096-wide layers at 1, 16 and 256 rows: `jax.jit` in float32, and
  the compiled models, run in turn in one process; the median of the ratios, and the bytes of the parameters.
- accuracy: a ResNet-20 on CIFAR-10 images, quantised without training; calibrated on training images. It
  needs `resnet20_cifar10.npz` and `cifar10_small.npz` in the folder that LEPTON_DATA names, and says so
  otherwise.

`--quick` runs small sizes, for tests.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from lepton_jax.targets import processor

LAYERS: Final = {
    "int8, dynamic": "deploy,quantize{activations=dynamic}",
    "int8, static": "deploy,quantize{activations=static}",
    "int8, weights alone": "deploy,quantize",
    "int4 in groups of 64": "deploy,quantize{weights=int4,group=64}",
}

ACCURACY: Final = {
    "int8, activations dynamic": "quantize{activations=dynamic}",
    "int8, activations static": "quantize{activations=static,observer=percentile}",
    "int4": "quantize{weights=int4}",
    "int4, scales by least squares": "quantize{weights=int4,search=mse}",
    "int4, HQQ": "quantize{weights=int4,method=hqq}",
    "int4, GPTQ": "quantize{weights=int4,search=mse,method=gptq}",
    "int3, scales by least squares": "quantize{weights=int3,search=mse}",
    "int3, GPTQ": "quantize{weights=int3,search=mse,method=gptq}",
}

Params = dict[str, Any]

_AS_WRITTEN: Final = argparse.RawDescriptionHelpFormatter


# Time


def perceptron(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Layers with ReLU between them."""
    for weight in weights[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ weights[-1]


def layers(quick: bool) -> list[dict[str, Any]]:
    """The perceptron in floats and quantised, at several numbers of rows."""
    width, rows, rounds = (64, (1, 4), 2) if quick else (4096, (1, 16, 256), 11)
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(0, width**-0.5, (width, width)), jnp.float32) for _ in range(4)]
    found = []
    for count in rows:
        x = jnp.asarray(rng.normal(size=(count, width)), jnp.float32)
        plain: Any = functools.partial(jax.jit(perceptron), weights, x)
        expected = plain()
        for name, passes in LAYERS.items():
            model = lepton.compile(perceptron, weights, x, passes=passes, calibration=_batches(passes, x))
            ratio, ours = in_turn(plain, functools.partial(model, x), rounds)
            found.append(
                {
                    "rows": count,
                    "model": name,
                    "milliseconds": ours * 1e3,
                    "times as fast as jit": ratio,
                    "bytes": model.nbytes / sum(weight.nbytes for weight in weights),
                    "error": relative(expected, model(x)),
                }
            )
    return found


def _batches(passes: str, *batch: Any) -> list[tuple[Any, ...]] | None:
    """One batch to calibrate with, where the passes want one."""
    return [batch] if "static" in passes or "gptq" in passes else None


def in_turn(plain: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """The median of plain/ours over pairs of runs, and the median seconds of ours."""
    for run in (plain, ours):
        jax.block_until_ready(run())
    ratios, times = [], []
    for turn in range(rounds):
        pair = {run: _seconds(run) for run in ((plain, ours) if turn % 2 else (ours, plain))}
        ratios.append(pair[plain] / pair[ours])
        times.append(pair[ours])
    return statistics.median(ratios), statistics.median(times)


def _seconds(run: Callable[[], Any]) -> float:
    """Seconds of one run, over as many as take 20 ms, after one untimed."""
    jax.block_until_ready(run())
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.02:
        jax.block_until_ready(run())
        count += 1
    return (time.perf_counter() - start) / count


def relative(expected: jax.Array, result: jax.Array) -> float:
    """The error's norm as a part of the result's."""
    return float(jnp.linalg.norm(result - expected) / jnp.linalg.norm(expected))


# Accuracy


def resnet20(params: Params, x: jax.Array) -> Any:
    """A CIFAR ResNet-20 with option A shortcuts: images [N, 32, 32, 3] to logits [N, 10]."""
    x = jax.nn.relu(_norm(params, "bn1", _conv(x, params["conv1.weight"])))
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            stride, name = (2 if stage > 1 and block == 0 else 1), f"layer{stage}.{block}"
            h = _norm(params, f"{name}.bn1", _conv(x, params[f"{name}.conv1.weight"], stride))
            h = jax.nn.relu(h)
            h = _norm(params, f"{name}.bn2", _conv(h, params[f"{name}.conv2.weight"]))
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


def accuracy(quick: bool) -> list[dict[str, Any]]:
    """The ResNet-20 in floats and quantised: percent of the test images that are classified right."""
    folder = Path(os.environ.get("LEPTON_DATA", ""))
    files = [folder / name for name in ("resnet20_cifar10.npz", "cifar10_small.npz")]
    if missing := [str(file) for file in files if not file.is_file()]:
        print(
            f"accuracy: not measured, there is no {' and no '.join(missing)} (LEPTON_DATA names the folder)"
        )
        return []
    with np.load(files[0]) as weights, np.load(files[1]) as images:
        params = {name: weights[name] for name in weights.files if "num_batches" not in name}
        x, labels, training = _scaled(images["x_test"]), images["y_test"], _scaled(images["x_train"])
    count = 200 if quick else len(x)
    batches = [training[i : i + 100] for i in range(0, 200 if quick else 1000, 100)]
    kinds = dict(list(ACCURACY.items())[:2]) if quick else ACCURACY
    before = sum(array.nbytes for array in params.values())
    plain: Any = jax.jit(resnet20)
    right = _right(lambda images: plain(params, images), x[:count], labels)
    found: list[dict[str, Any]] = [{"model": "float32", "percent right": right, "bytes": 1.0}]
    for name, passes in kinds.items():
        wants = any(word in passes for word in ("static", "gptq"))
        model = lepton.compile(
            resnet20, params, x[:200], passes=f"deploy,{passes}", calibration=batches if wants else None
        )
        right = _right(model, x[:count], labels)
        found.append({"model": name, "percent right": right, "bytes": model.nbytes / before})
    return found


def _scaled(images: Any) -> Any:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((images / 255 - mean) / deviation).astype(np.float32)


def _right(model: Callable[[Any], Any], images: Any, labels: Any) -> float:
    """Percent of the images, 200 at a time, whose largest logit is that of their label."""
    starts = range(0, len(images), 200)
    hits = [np.argmax(model(images[i : i + 200]), -1) == labels[i : i + 200] for i in starts]
    return 100 * float(np.mean(np.concatenate(hits)))


# Tables


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table in Markdown."""
    if rows:
        print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("layers", "accuracy"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {processor.model()}, {os.cpu_count()} cores\n")
    found = {}
    for name, measure in (("layers", layers), ("accuracy", accuracy)):
        if options.only in (None, name):
            found[name] = measure(options.quick)
            show(found[name])
            print()
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
