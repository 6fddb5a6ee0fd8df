"""A character transformer on tiny Shakespeare: perplexity on text that it has not seen, by format and method.

It is trained once and its weights are kept in the cache folder (LEPTON_CACHE).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp

import lepton_jax as lepton
from benchmarks._common import Row, nbytes
from benchmarks.quantise_cases._character_model import Tokens, shakespeare

KINDS: Final = {
    "W8A8, dynamic": "quantize{activations=dynamic}",
    "W8A8, static": "quantize{activations=static}",
    "W4 in groups of 64": "quantize{ops=gather},quantize{weights=int4,group=64,search=mse}",
    "W4 in groups of 64, GPTQ": "quantize{ops=gather},quantize{weights=int4,group=64,search=mse,method=gptq}",
    "W3, rounded": "quantize{ops=gather},quantize{weights=int3,search=mse}",
    "W3, bias correction": "quantize{ops=gather},quantize{weights=int3,search=mse,correct=bias}",
    "W3, AWQ": "quantize{ops=gather},quantize{weights=int3,search=mse,balance=awq}",
    "W3, GPTQ": "quantize{ops=gather},quantize{weights=int3,search=mse,method=gptq}",
    "W4A8": "quantize{ops=gather},quantize{weights=int4,search=mse,activations=dynamic}",
    "W4A8, rotated": "rotate,quantize{ops=gather},quantize{weights=int4,search=mse,activations=dynamic}",
    "W4A4": "quantize{ops=gather},"
    "quantize{weights=int4,search=mse,activations=dynamic,activation_format=int4}",
    "W4A4, rotated": "rotate,quantize{ops=gather},"
    "quantize{weights=int4,search=mse,activations=dynamic,activation_format=int4}",
    "W4A4, rotated, also in front of `down` and `out`": 'rotate{online="params/.../down params/.../out"},'
    "quantize{ops=gather},quantize{weights=int4,search=mse,activations=dynamic,activation_format=int4}",
}

QUICK_KINDS: Final = ("W8A8, dynamic", "W3, bias correction")

_WANT_DATA: Final = ("gptq", "awq", "static", "smoothquant", "correct")


def perplexity(model: Callable[[Any], Any], text: Tokens, batch: int = 32) -> float:
    """exp of the mean negative log likelihood of the characters after the first of each window."""
    total = count = 0.0
    for start in range(0, len(text), batch):
        part = text[start : start + batch]
        chances = jax.nn.log_softmax(model(jnp.asarray(part[:, :-1])))
        total -= float(jnp.sum(jnp.take_along_axis(chances, jnp.asarray(part[:, 1:, None]), -1)))
        count += part[:, 1:].size
    return math.exp(total / count)


def measure(quick: bool) -> list[Row]:
    """Perplexity on held-out text, what quantisation adds to it, and the bytes of the parameters."""
    if (known := shakespeare(quick)) is None:
        return []
    decoder, text, calibration = known.decoder, known.text, known.calibration
    plain: Any = lepton.compile(decoder, calibration[0], passes="none")
    exact = perplexity(plain, text)
    rows: list[Row] = [{"model": "float32", "perplexity": exact, "percent more": 0.0, "bytes": 1.0}]
    names = QUICK_KINDS if quick else tuple(KINDS)
    for name in names:
        passes = KINDS[name]
        wants = any(word in passes for word in _WANT_DATA)
        model = lepton.compile(
            decoder, calibration[0], passes=f"deploy,{passes}", calibration=calibration if wants else None
        )
        found = perplexity(model, text)
        more = 100 * (found / exact - 1)
        rows.append(
            {
                "model": name,
                "perplexity": found,
                "percent more": more,
                "bytes": model.nbytes / nbytes(plain.params),
            }
        )
    return rows
