"""Mutated files: each gives a clear error or the right arrays.

    python -m lepton_jax.storage.fuzz [--count 10000] [--seed 0]

Bytes are changed, swapped, cut off, put in and taken out; in half of the cases the hashes are made right
again afterwards, as a mischievous writer would, so that the checks behind them are reached too.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import zstandard

from lepton_jax.numerics.packing import pack
from lepton_jax.storage._keys import key_data
from lepton_jax.storage.errors import LeptonFileError
from lepton_jax.storage.layout import HEADER, digest, read_header, write_header
from lepton_jax.storage.reader import Reader
from lepton_jax.storage.transfer import decode, encode
from lepton_jax.storage.writer import writing

_MOST_BYTES: Final = 1 << 24


def samples() -> dict[str, Any]:
    """Small arrays that make use of every coder."""
    rng = np.random.default_rng(0)
    normal = rng.normal(0, 0.02, 600).astype(np.float32)
    return {
        "floats": normal.reshape(20, 30),
        "sparse": np.where(rng.random(900) < 0.1, rng.integers(-3, 4, 900), 0).astype(np.int16),
        "codes": rng.integers(0, 11, 700).astype(np.uint8),
        "levels": rng.choice(normal[:9], 800),
        "packed": np.asarray(pack(jnp.asarray(rng.binomial(31, 0.4, 1600).astype(np.uint8)), 5)),
        "keys": jax.random.key_data(jax.random.key(1)),
        "skewed": np.minimum(rng.geometric(0.3, 3000), 99).astype(np.uint8),
        "repeated": np.tile(rng.integers(0, 256, 50, np.uint8), 20),
        "zeros": np.zeros((4, 5), np.int8),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float64(2.5),
    }


def mutate(data: bytes, random_: random.Random) -> bytes:
    """The bytes with a few changes."""
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 5))):
        at = random_.randrange(len(changed)) if changed else 0
        kind = random_.randrange(6)
        if kind == 0 and changed:
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1 and changed:
            changed[at] = random_.choice((0, 1, 127, 128, 255, random_.randrange(256)))
        elif kind == 2:
            changed[at:at] = random_.randbytes(random_.randrange(1, 20))
        elif kind == 3:
            del changed[at : at + random_.randrange(1, 20)]
        elif kind == 4:
            del changed[at:]
        else:
            start = random_.randrange(len(changed) + 1)
            changed[at : at + 16] = changed[start : start + 16]
    return bytes(changed)


def mutate_inside(data: bytes, random_: random.Random) -> bytes:
    """A file with changes in its index or its blocks, and with hashes that fit them again."""
    offset, size, _, _ = read_header(data[: HEADER.size], len(data))
    tree = json.loads(zstandard.decompress(data[offset : offset + size]))
    blocks = bytearray(data[:offset])
    if random_.random() < 0.5:
        _change_tree(tree, random_)
    else:
        block = random_.choice([block for entry in tree["entries"] for block in entry["blocks"]])
        start, length = block[0], block[1]
        changed = mutate(bytes(blocks[start : start + length]), random_)[:length].ljust(length, b"\0")
        blocks[start : start + length] = changed
        block[3] = digest(changed)
    index = zstandard.compress(json.dumps(tree).encode())
    return write_header(offset, index) + bytes(blocks[HEADER.size :]) + index


def _change_tree(tree: Any, random_: random.Random) -> None:
    """Change one number, word or list of the index."""
    at: Any = tree
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            return
        key = random_.choice(keys)
        if not isinstance(at[key], dict | list) or random_.random() < 0.1:
            break
        at = at[key]
    at[key] = random_.choice(
        (
            0,
            -1,
            1,
            64,
            65,
            2**31,
            2**63,
            2.5,
            None,
            True,
            "",
            "float32",
            "object",
            "key/threefry2x32",
            [],
            {},
            [1 << 40],
            at[key],
        )
    )


def survives(data: bytes, path: Path, arrays: Mapping[str, Any], trusted: bool) -> bool:
    """Whether a file gives the right arrays; False where it gives a clear error.

    Args:
        data: of the file.
        path: where to put it.
        arrays: what was written.
        trusted: whether hashes fit what was changed, so that arrays may differ: then only errors of another
            kind are wrong.

    Raises:
        AssertionError: an array is another than the one that was written.
    """
    path.write_bytes(data)
    try:
        with Reader(path, most_bytes=_MOST_BYTES, workers=1) as file:
            found = file.read_all()
    except LeptonFileError:
        return False
    assert trusted or found.keys() == arrays.keys(), "arrays are missing"
    for name, array in found.items():
        assert trusted or _same(array, arrays[name]), f"{name} is another array"
    return True


def _same(found: Any, array: Any) -> bool:
    keys = key_data(found)
    return np.asarray(found if keys is None else keys[0]).tobytes() == np.asarray(array).tobytes()


def run(count: int, seed: int) -> tuple[int, int]:
    """Try mutated files and codes; how many gave the right arrays, and how many an error."""
    arrays, random_ = samples(), random.Random(seed)
    right = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.lepton"
        with writing(path, {"fuzz": seed}) as file:
            for name, array in arrays.items():
                file.add(name, jax.random.wrap_key_data(array) if name == "keys" else array)
        data = path.read_bytes()
        codes = [encode(array) for array in arrays.values()]
        for number in range(count):
            if number % 8 == 7:
                right += _code_survives(random_.choice(codes), random_)
            else:
                inside = number % 2 == 0
                changed = mutate_inside(data, random_) if inside else mutate(data, random_)
                right += survives(changed, path, arrays, trusted=inside)
    return right, count - right


def _code_survives(code: bytes, random_: random.Random) -> bool:
    changed = mutate(code, random_)
    try:
        found = decode(changed, most_bytes=_MOST_BYTES, workers=1)
    except LeptonFileError:
        return False
    assert _same(found, decode(code)), "the code gave another array"
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    right, errors = run(options.count, options.seed)
    print(f"{options.count:,} mutated files: {right:,} gave the right arrays, {errors:,} a clear error")
    return 0


if __name__ == "__main__":
    sys.exit(main())
