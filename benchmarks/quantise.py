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

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax

from benchmarks import quantise_cases
from benchmarks.quantise_cases._common import Row, table
from benchmarks.quantise_cases.peers import compare
from lepton_jax.targets import processor

ORDER: Final = ("layers", "transformer", "resnet18", "accuracy", "shakespeare", "training", "gpu")


def cases() -> list[str]:
    """The names of the cases that are there, in the order in which they run."""
    there = {module.name for module in pkgutil.iter_modules(quantise_cases.__path__)}
    return [name for name in ORDER if name in there]


def measure(quick: bool, name: str) -> list[Row]:
    """The rows of a case."""
    case: Any = importlib.import_module(f"{quantise_cases.__name__}.{name}")
    rows: list[Row] = case.measure(quick)
    return rows


def setting() -> str:
    """Versions and machine, in a line."""
    return f"jax {jax.__version__}, {jax.default_backend()}, {processor.model()}, {os.cpu_count()} cores"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for tests")
    parser.add_argument("--only", choices=cases(), help="the case to run; all, if it is left out")
    parser.add_argument("--peers", action="store_true", help="time Lepton against other tools")
    parser.add_argument("--peers-python", default=sys.executable, help="the interpreter that has them")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--markdown", type=Path, help="write the tables to this page too")
    options = parser.parse_args(arguments)
    if options.peers and options.only and not compare.has(options.only):
        parser.error(f"the other tools have no models of {options.only}")
    print(f"{setting()}\n")
    found: dict[str, list[Row]] = {}
    chosen = [options.only] if options.only else cases()
    with contextlib.ExitStack() as stack:
        run: Callable[[bool, str], list[Row]] = measure
        if options.peers:
            run = stack.enter_context(compare.comparison(options.peers_python))
            chosen = [name for name in chosen if compare.has(name)]
        for name in chosen:
            print(f"## {name}\n", flush=True)
            found[name] = run(options.quick, name)
            print(f"{table(found[name])}\n", flush=True)
            jax.clear_caches()
    if options.markdown is not None:
        command = f"python benchmarks/quantise.py{' --peers' if options.peers else ''}"
        options.markdown.write_text(page(found, command), encoding="utf-8")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def page(found: dict[str, list[Row]], command: str) -> str:
    """The tables as a page of the documentation."""
    lines = ["# Quantisation, measured", "", f"Written by `{command}`, {setting()}.", ""]
    for name, rows in found.items():
        if rows:
            lines += [f"## {name}", "", table(rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
