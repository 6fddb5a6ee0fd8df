"""Whether the processor at hand multiplies numbers of a low dtype faster than float32."""

from __future__ import annotations

from typing import Final

import jax

from lepton_jax.ir.cost import Rates
from lepton_jax.targets import CPU, TARGETS, processor

_LEAST_GAIN: Final = 1.2


def why_not(dtype: str, rates: Rates) -> str | None:
    """Why products of a dtype (`bf16`, `f16`, `fp8`) do not pay on a target at any size, or None."""
    platform = rates.platform
    if platform not in TARGETS:
        return f"nothing is known of what a {platform} is fast at"
    if dtype == "f16" and platform in ("cpu", "tpu"):
        return f"a {platform} has no float16 products, it emulates them"
    if dtype == "fp8" and platform in ("cpu", "tpu"):
        return f"no float8 products are known to be fast on a {platform}"
    if platform != "cpu":
        return None
    if rates.flops.get("bfloat16", 0.0) < _LEAST_GAIN * rates.flops["float32"]:
        return "bfloat16 products were measured to be no faster than float32 ones on this machine"
    is_this = rates.flops == CPU.flops and jax.default_backend() == "cpu"
    if is_this and not processor.multiplies_bfloat16():
        return "this processor has no instructions for products of bfloat16 (amx_bf16, avx512_bf16)"
    return None
