"""What spreading a program over a mesh costs: bytes on the wire, memory, and the time to decide.

    python benchmarks/shard.py [--quick] [--only NAME] [--json FILE] [--markdown FILE]

- wire: bytes that devices send in training steps, by Lepton's choice and by shardings written by hand, as
  predicted and as compiled ahead of time for pods (needs the extra `tpu`) and nodes of GPUs (`cuda-aot`).
- memory: bytes on a device when most is there, predicted and compiled, of loops, masks and others beside the
  programs of wire (needs the extra `tpu`).
- large: the same of programs of the sizes that people train and serve (needs the extra `tpu`, and twenty
  minutes).
- solve: how long the solver takes, over layers, loops and the number of chips.
- training: a transformer trained on one device and on many, every preset, and on two processes.
- pipelines: schedules, their bubbles and what they keep.
- compressed: training with gradients that are sent in fewer bytes.
- pods: compiling for up to 4096 chips and for two slices (needs the extra `tpu`).

Texts are in the folder that LEPTON_DATA names; a case whose data are missing says so and measures nothing.
It runs on eight virtual devices of the processor. `--quick` runs small sizes, for tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

if "jax" not in sys.modules:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import shard_cases
from benchmarks._suite import Suite

SUITE: Final = Suite(
    "Over the mesh, measured",
    "python benchmarks/shard.py",
    __doc__ or "",
    shard_cases,
    ("wire", "memory", "large", "solve", "training", "pipelines", "compressed", "pods"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables."""
    SUITE.run(SUITE.parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
