"""The targets and their rates.

Only ratios matter: they choose between two forms of the same computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeAlias

from lepton_jax.ir import _jax
from lepton_jax.ir.cost import Rates
from lepton_jax.targets.calibrate import kept

Target: TypeAlias = Rates


def _per_dtype(**rates: float) -> Mapping[str, float]:
    return MappingProxyType(rates)


# Two cores with AVX-512, VNNI and AMX: 4096×4096 products at 256 rows take 55 ms in float32,
# 16 in bfloat16 and 6 in int8; weights stream in at 30 to 42 GB/s. Kernels of XLA's, compiled loops, caches
# and fresh memory are those of two cores with AVX-512, as `lepton calibrate` finds them.
CPU: Final = Rates(
    name="cpu",
    platform="cpu",
    flops=_per_dtype(
        float32=156e9, float64=78e9, bfloat16=540e9, float16=156e9, int8=1400e9, uint8=1400e9, complex64=156e9
    ),
    vector_flops=40e9,
    bytes_per_second=40e9,
    seconds_per_node=0.5e-6,
    seconds_per_iteration=1e-6,
    seconds_per_fusion=0.3e-6,
    seconds_per_compiled_iteration=10e-9,
    caches=((2.0**20, 160e9), (2.0**24, 80e9)),
    fresh_bytes_per_second=5e9,
)

# An H200: 8192×8192 products at 4096 rows reach 731 TFLOP/s in bfloat16, 1010 TOP/s in int8 and
# 1085 TFLOP/s in float8; float32 runs as tensor float 32 at about half of bfloat16.
GPU: Final = Rates(
    name="gpu",
    platform="gpu",
    flops=_per_dtype(
        float32=350e12,
        float64=50e12,
        bfloat16=731e12,
        float16=731e12,
        int8=1010e12,
        uint8=1010e12,
        float8_e4m3fn=1085e12,
        float8_e5m2=1085e12,
        complex64=50e12,
    ),
    vector_flops=40e12,
    bytes_per_second=4.2e12,
    seconds_per_node=4e-6,
    seconds_per_iteration=10e-6,
)

# A chip of about 200 TFLOP/s in bfloat16 from data sheets; not measured here.
TPU: Final = Rates(
    name="tpu",
    platform="tpu",
    flops=_per_dtype(
        float32=66e12,
        float64=1e12,
        bfloat16=197e12,
        float16=66e12,
        int8=394e12,
        uint8=394e12,
        complex64=16e12,
    ),
    vector_flops=4e12,
    bytes_per_second=0.82e12,
    seconds_per_node=1e-6,
    seconds_per_iteration=2e-6,
)

TARGETS: Final[Mapping[str, Target]] = MappingProxyType({t.name: t for t in (CPU, GPU, TPU)})


def get_target(name: str | None = None) -> Target:
    """The target called `name`; without a name that of JAX's default backend.

    Without a name the figures are those that `lepton calibrate` measured on this machine, if it was run;
    a backend that is none of the targets counts as a GPU on which only rules for every backend apply.

    Raises:
        ValueError: there is no target of this name.

    Example:
        >>> get_target("gpu").platform
        'gpu'
    """
    if name is None:
        platform = _jax.backend_platform()
        return kept() or TARGETS.get(platform) or replace(GPU, name=platform, platform=platform)
    if name not in TARGETS:
        raise ValueError(f"no target is called {name!r}; there are {', '.join(sorted(TARGETS))}")
    return TARGETS[name]
