"""What pruning, low rank, palettes and distillation cost in accuracy and give in time and bytes.

    python benchmarks/compress.py [--quick] [--only NAME] [--json FILE] [--markdown FILE]

- deep_compression: LeNet-300-100 and LeNet-5 on MNIST, pruned, with palettes, entropy-coded in a file.
- structured: channels, heads and widths cut out of LeptonNet and a transformer, and what remains timed.
- resnet20: weights of a ResNet-20 on CIFAR-10 images pruned at once, and with training.
- zeros: products with weights of which rows or columns are zero.
- low_rank: weights as products of thin ones.
- distillation: a student a quarter of the size, alone and taught.

Images and texts are in the folder that LEPTON_DATA names; a case whose data are missing says so and measures
nothing. `--quick` runs small sizes, for tests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import compress_cases
from benchmarks._suite import Suite

SUITE: Final = Suite(
    "Compression, measured",
    "python benchmarks/compress.py",
    __doc__ or "",
    compress_cases,
    ("deep_compression", "structured", "resnet20", "zeros", "low_rank", "distillation"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables."""
    SUITE.run(SUITE.parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
