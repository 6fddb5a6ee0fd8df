"""Peak memory on a device, predicted and compiled, of programs of the sizes that people train and serve.

None of them was looked at while the rules of the prediction were made before it was first measured. Each is
spread by a preset. Nothing runs; compiled is for the pod.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from jax.sharding import Mesh

import lepton_jax as lepton
from benchmarks._common import Row
from benchmarks.shard_cases._large import Made, Sizes, decoding, prefill, recurrent, training
from benchmarks.shard_cases._topology import reached
from benchmarks.shard_cases._vision import residual, vision
from benchmarks.shard_cases.memory import measured

POD: Final = "v5e:4x4"
ONE: Final = "data=16"
TWO: Final = "data=4,model=4"

BILLION: Final = Sizes(24, 2048, 5632, 16, 16)
"""1.4 billion parameters."""
THREE: Final = Sizes(28, 3072, 8192, 24, 8)
"""3 billion, grouped queries."""
THIRD: Final = Sizes(24, 1024, 2816, 16, 16)
"""0.4 billion."""
ENCODER: Final = Sizes(8, 1024, 4096, 16, 16)
EXPERTS: Final = Sizes(12, 1024, 2816, 16, 8, experts=8)
"""1 billion parameters."""

_BILLION: Final[Callable[[], Made]] = partial(training, BILLION, 32, 2048)
_ENCODER: Final[Callable[[], Made]] = partial(training, ENCODER, 128, 512, False, False, False)
CASES: Final[tuple[tuple[str, Callable[[], Made], str, str], ...]] = (
    ("1.4 B decoder", _BILLION, "tp", TWO),
    ("1.4 B decoder", _BILLION, "fsdp", ONE),
    ("1.4 B decoder", _BILLION, "fsdp+tp", TWO),
    ("1.4 B decoder", _BILLION, "auto", TWO),
    ("3 B decoder", partial(training, THREE, 32, 2048), "fsdp+tp", TWO),
    ("0.4 B decoder", partial(training, THIRD, 64, 1024), "dp", ONE),
    ("encoder, 8 layers written out", _ENCODER, "fsdp", ONE),
    ("encoder, 8 layers written out", _ENCODER, "tp", TWO),
    ("0.4 B decoder, 4 micro-batches", partial(training, THIRD, 128, 1024, microbatches=4), "fsdp+tp", TWO),
    ("1 B mixture of experts", partial(training, EXPERTS, 64, 1024), "ep", TWO),
    ("LSTM, 4 layers", partial(recurrent, 256, 512, 4, 2048, 32000), "dp", ONE),
    ("residual net, 50 layers", partial(residual, 1024), "dp", ONE),
    ("vision transformer, 24 layers", partial(vision, 128, 24, 1024, 14), "fsdp", ONE),
    ("3 B decoder, prompts", partial(prefill, THREE, 32, 2048), "tp", TWO),
    ("3 B decoder, next word", partial(decoding, THREE, 128, 4096), "tp", TWO),
)
"""Programs, presets and meshes."""


def measure(quick: bool) -> list[Row]:
    """Megabytes on a device when most is there."""
    pod = "cpu:8" if quick else POD
    topology = reached(pod)
    if topology is None:
        return []
    quickly: Callable[[], Made] = partial(training, Sizes(2, 64, 128, 4, 4, 256), 16, 32)
    return [
        measured(name, preset, partial(spread, made, preset, topology.mesh(axes)), pod)
        for name, made, preset, axes in ((("small", quickly, "tp", "data=2,model=4"),) if quick else CASES)
    ]


def spread(made: Callable[[], Made], preset: str, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """A program spread by a preset, and the shapes of its arguments."""
    step, arguments, donated = made()
    return lepton.optimize(step, "none", mesh=mesh, shard=preset, donate_argnums=donated), arguments
