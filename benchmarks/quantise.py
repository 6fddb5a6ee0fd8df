"""What quantisation costs in accuracy and gives in time and bytes.

    python benchmarks/quantise.py [--quick] [--only NAME] [--json FILE] [--markdown FILE]
    python benchmarks/quantise.py --peers [--peers-python PATH] [--only NAME] [...]

- layers: a multilayer perceptron of four 4096-wide layers at 1, 16 and 256 rows: `jax.jit` in float32, and
  the compiled models, run in turn in one process; the median of the ratios, and the bytes of the parameters.
- transformer: an encoder, and a decoder's step with its key/value cache.
- resnet18: a ResNet-18 at 3×224×224.
- accuracy: a ResNet-20 on CIFAR-10 images, quantised without training; calibrated on training images. It
  needs `resnet20_cifar10.npz` and `cifar10_small.npz` in the folder that LEPTON_DATA names, and says so
  otherwise.
- shakespeare: a character transformer; the perplexity by format and method.
- training: training with quantisation.
- gpu: products on a GPU, where there is one.

`--quick` runs small sizes, for tests.

`--peers` times Lepton against other tools instead: Qwix, ONNX Runtime, OpenVINO with NNCF, and PyTorch with
torchao, with the same weights and inputs and as many threads. Each is in a process of its own, and they run
in turn. They come with `pip install 'lepton-jax[peers]'`, perhaps in an environment of their own, whose
interpreter `--peers-python` names; those that are not installed are left out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import quantise_cases
from benchmarks._suite import Suite
from benchmarks.quantise_cases.peers import compare

SUITE: Final = Suite(
    "Quantisation, measured",
    "python benchmarks/quantise.py",
    __doc__ or "",
    quantise_cases,
    ("layers", "transformer", "resnet18", "accuracy", "shakespeare", "training", "gpu"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables."""
    parser = SUITE.parser()
    parser.add_argument("--peers", action="store_true", help="time Lepton against other tools")
    parser.add_argument("--peers-python", default=sys.executable, help="the interpreter that has them")
    options = parser.parse_args(arguments)
    if not options.peers:
        SUITE.run(options)
        return 0
    chosen = [name for name in ([options.only] if options.only else SUITE.cases()) if compare.has(name)]
    if not chosen:
        parser.error(f"the other tools have no models of {options.only}")
    SUITE.run(options, chosen, functools.partial(compare.measure, options.peers_python), " --peers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
