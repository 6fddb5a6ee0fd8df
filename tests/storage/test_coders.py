"""Coders of blocks: what goes in comes out, as short as its entropy says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lepton_jax.storage import LeptonFileError
from lepton_jax.storage.coders import CODERS, MOST_BYTES, ans, decode_block, describe_block, encode_block
from lepton_jax.storage.coders._table import entropy, frequencies, read_table, write_table
from lepton_jax.storage.coders.bits import join, split

RNG = np.random.default_rng(0)
SIZE = 1 << 17
FEW = 12
BYTES = {
    "geometric": np.minimum(RNG.geometric(0.3, SIZE) - 1, 255).astype(np.uint8),
    "normal": np.clip(np.round(RNG.normal(size=SIZE) * 30), -127, 127).astype(np.int8).view(np.uint8),
    "uniform": RNG.integers(0, 256, SIZE).astype(np.uint8),
    "few": RNG.integers(0, FEW, SIZE).astype(np.uint8),
    "rare": (RNG.random(SIZE) < 0.01).astype(np.uint8) * 200,
}


@pytest.mark.parametrize("name", BYTES)
def test_range_codes_come_to_the_entropy(name: str) -> None:
    """The code is at most one percent longer than the order-0 entropy and its table, and gives all back."""
    data = BYTES[name]
    counts = np.bincount(data, minlength=256)
    code = ans.encode(data)
    table = len(write_table(frequencies(counts)))
    assert len(code) <= 1.01 * entropy(counts) * len(data) + table + 64
    np.testing.assert_array_equal(ans.decode(memoryview(code), len(data)), data)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 4097])
def test_range_codes_of_any_length(size: int) -> None:
    """Few bytes, and numbers of them that lanes do not divide."""
    for data in (BYTES["normal"][:size], np.full(size, 7, np.uint8)):
        np.testing.assert_array_equal(ans.decode(memoryview(ans.encode(data)), size), data)


def test_tables_survive() -> None:
    """Frequencies have the sum 4096 and none is lost, however skewed the counts are."""
    for counts in (np.eye(256, dtype=np.int64)[3], np.arange(256), 10 ** (np.arange(256) % 12)):
        found = frequencies(counts)
        assert found.sum() == 4096 and np.array_equal(found > 0, counts > 0)
        again, length = read_table(memoryview(write_table(found) + b"more"))
        assert length == len(write_table(found)) and np.array_equal(again, found)


@pytest.mark.parametrize("bits", range(1, 8))
def test_bits_without_gaps(bits: int) -> None:
    """Fields are joined to bytes and split again."""
    for count in (1, 7, 8, 1001):
        fields = RNG.integers(0, 1 << bits, count).astype(np.uint8)
        joined = join(fields, bits)
        assert len(joined) == -(-count * bits // 8)
        np.testing.assert_array_equal(split(joined, bits)[:count], fields)


def _arrays() -> dict[str, tuple[np.ndarray, str, float]]:
    """Arrays, the coder that should win, and the greatest share of their bytes."""
    weights = RNG.normal(0, 0.02, 1 << 18).astype(np.float32)
    pruned = np.where(RNG.random(len(weights)) < 0.05, weights, 0).astype(np.float32)
    return {
        "bfloat16": (weights.astype(ml_dtypes.bfloat16), "planes", 1 / 1.5),
        "float32": (weights, "planes", 1 / 1.19),
        "pruned": (pruned, "sparse", 0.065),
        "int8": (BYTES["normal"].view(np.int8), "range", 0.92),
        "codes of a few bits": (RNG.integers(0, 16, 3000).astype(np.uint8), "bits", 0.51),
        "repeats": (np.tile(RNG.integers(0, 256, 5000).astype(np.uint8), 9), "zstd", 0.12),
        "equal": (np.full(1000, 3, np.uint8), "constant", 0.01),
        "noise": (BYTES["uniform"], "raw", 1.01),
        "few": (np.minimum(RNG.geometric(0.5, 200), 9).astype(np.uint8), "huffman", 0.4),
    }


@pytest.mark.parametrize(("name", "case"), _arrays().items())
def test_the_shortest_code_is_kept(name: str, case: tuple[np.ndarray, str, float]) -> None:
    """Each kind of array has a coder that suits it."""
    array, coder, share = case
    floats = array.dtype.kind == "f" or name == "bfloat16"
    data = array.view(np.uint8)
    code = memoryview(encode_block(data, array.dtype.itemsize, floats))
    assert describe_block(code) == coder
    assert len(code) <= share * len(data) + 1
    np.testing.assert_array_equal(decode_block(code, len(data)), data)


def test_every_coder_says_what_is_damaged() -> None:
    """Codes that are cut off, of another size, or of no coder."""
    data = np.where(RNG.random(5000) < 0.2, RNG.integers(1, 9, 5000), 0).astype(np.uint8)
    for number, coder in CODERS.items():
        wide = np.zeros(100, np.uint8) if coder.name == "constant" else data
        width = 4 if coder.name == "planes" else 1
        code = coder.encode(wide, width, False, lambda part, _, __: bytes([0]) + part.tobytes())
        assert code is not None
        whole = bytes([number]) + code
        np.testing.assert_array_equal(decode_block(memoryview(whole), len(wide)), wide)
        cut, other = (whole[: len(whole) // 2], len(wide)), (whole, len(wide) - 4)
        for damaged, size in (cut,) if coder.name == "constant" else (cut, other):
            with pytest.raises(LeptonFileError):
                decode_block(memoryview(damaged), size)
    with pytest.raises(LeptonFileError, match="no coder"):
        decode_block(memoryview(b"\0" * 9), 8 * MOST_BYTES + 1)
    with pytest.raises(LeptonFileError, match="no coder"):
        decode_block(memoryview(b"\xff"), 4)


def test_a_code_within_a_code_without_end() -> None:
    """Parts of parts of parts end somewhere."""
    inner = bytes([0, 1, 2])
    for _ in range(6):
        inner = bytes([5, 2, 0]) + len(inner).to_bytes(4, "little") + inner + inner
    with pytest.raises(LeptonFileError):
        decode_block(memoryview(inner), 2 << 7)
