"""What XLA's compiler for NVIDIA GPUs must know of a GPU that is not there, as it describes them itself."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from lepton_jax.targets.chips import get_chip

_HOPPER: Final = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 1 patch: 1 }}
device_description_str: "{name}"
"""

GPU_TARGETS: Final = MappingProxyType(
    {
        "h100": _HOPPER.format(
            bandwidth=3352320000000, memory=get_chip("h100").memory, name="NVIDIA H100 80GB HBM3"
        ),
        "h200": _HOPPER.format(bandwidth=4800000000000, memory=get_chip("h200").memory, name="NVIDIA H200"),
    }
)
"""By the chip's name, in the text form of protocol buffers."""
