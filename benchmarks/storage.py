"""What the coders of `.lepton` files bring, beside the entropy of each array and beside other codecs.

    python benchmarks/storage.py [--quick] [--all] [--json FILE]

Arrays: weights drawn from a normal distribution as bfloat16, float32, int8 and int4; a palette of 16 levels
of which 60 % are zero; float32 of which 90 % are zero; and, where LEPTON_DATA names the folder with
`resnet20_cifar10.npz`, that net's weights. Each codec encodes and decodes each array in turn, several times;
the medians count. `entropy` is the bytes over the order-0 entropy of the bytes (of floats: of each byte of an
element on its own, after the turn that puts the exponent into one). zipnn is measured where it is
installed; deflate without matches only with --all, since it is slow. `--quick` runs small sizes, for tests.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard

from lepton_jax.storage import decode, encode
from lepton_jax.storage.coders._table import entropy

Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]


def arrays(quick: bool) -> dict[str, Any]:
    """What is coded."""
    rng, size = np.random.default_rng(0), 1 << (16 if quick else 24)
    normal = rng.standard_normal(size, np.float32)
    codes = np.clip(np.round(normal * 2.5) + 8, 0, 15).astype(np.uint8)
    zeros = np.where(rng.random(size) < 0.6, 8, codes).astype(np.uint8)
    found = {
        "bfloat16": (normal * 0.02).astype(ml_dtypes.bfloat16),
        "float32": normal[: size // 2] * np.float32(0.02),
        "int8": np.clip(np.round(normal * 30), -127, 127).astype(np.int8),
        "int4": codes[::2] | codes[1::2] << 4,
        "palette of 16, 60 % zeros": zeros[::2] | zeros[1::2] << 4,
        "float32, 90 % zeros": np.where(rng.random(size // 2) < 0.9, 0, normal[: size // 2]).astype(
            np.float32
        ),
    }
    file = Path(os.environ.get("LEPTON_DATA", "")) / "resnet20_cifar10.npz"
    if not file.is_file():
        print(f"there is no {file}: set LEPTON_DATA to the folder with the weights of the ResNet-20\n")
        return found
    with np.load(file) as weights:
        whole = np.concatenate(
            [weights[name].reshape(-1) for name in weights.files if weights[name].ndim > 1]
        )
    return found | {
        "ResNet-20": whole.astype(np.float32),
        "ResNet-20, bfloat16": whole.astype(ml_dtypes.bfloat16),
    }


def codecs(slow: bool) -> dict[str, Codec]:
    """By name: to bytes, and back."""
    found: dict[str, Codec] = {
        "lepton": (encode, decode),
        "lepton, fast": (functools.partial(encode, coding="fast"), decode),
        "zstd -3": (
            lambda array: zstandard.ZstdCompressor(3, threads=os.cpu_count() or 1).compress(array.tobytes()),
            lambda code: zstandard.ZstdDecompressor().decompress(code),
        ),
    }
    if slow:
        found["zlib, Huffman only"] = _deflate, lambda code: zlib.decompress(code)
    try:
        import zipnn  # type: ignore[import-not-found]
    except ImportError:
        print("zipnn is not installed and is left out: pip install zipnn\n")
        return found

    def zipped(array: Any) -> bytes:
        name = {"bfloat16": "bfloat16", "float32": "float32"}.get(array.dtype.name, "float8_e4m3fn")
        return bytes(zipnn.ZipNN(bytearray_dtype=name, threads=os.cpu_count()).compress(array.tobytes()))

    return found | {"zipnn": (zipped, lambda code: zipnn.ZipNN(threads=os.cpu_count()).decompress(code))}


def _deflate(array: Any) -> bytes:
    run = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return run.compress(array.tobytes()) + run.flush()


def limit(array: Any) -> float:
    """How many times shorter the order-0 entropy is."""
    width = array.dtype.itemsize
    words = array.view(f"<u{width}")
    if array.dtype.name in ("bfloat16", "float32"):
        words = words << 1 | words >> (8 * width - 1)
    planes = np.ascontiguousarray(words).view(np.uint8).reshape(-1, width).T
    return float(width / sum(entropy(np.bincount(plane, minlength=256)) for plane in planes))


def measure(quick: bool, slow: bool) -> list[dict[str, Any]]:
    """Ratios and rates of each codec on each array."""
    rounds, found, known = (1 if quick else 5), [], codecs(slow)
    for name, array in arrays(quick).items():
        times: dict[str, list[tuple[float, float]]] = {codec: [] for codec in known}
        sizes = {}
        for turn in range(rounds + 1):
            for codec, (run, back) in known.items():
                start = time.perf_counter()
                code = run(array)
                middle = time.perf_counter()
                data = back(code)
                end = time.perf_counter()
                sizes[codec] = len(code)
                if turn:
                    times[codec].append((middle - start, end - middle))
                elif (data if isinstance(data, bytes) else np.asarray(data).tobytes()) != array.tobytes():
                    raise AssertionError(f"{codec} gave another array than {name}")
        for codec in known:
            there, back_again = (statistics.median(t) for t in zip(*times[codec], strict=True))
            found.append(
                {
                    "array": name,
                    "codec": codec,
                    "times smaller": array.nbytes / sizes[codec],
                    "entropy": limit(array),
                    "encode, MB/s": array.nbytes / there / 1e6,
                    "decode, MB/s": array.nbytes / back_again / 1e6,
                }
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--all", action="store_true", help="slow codecs too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = measure(options.quick, options.all)
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
