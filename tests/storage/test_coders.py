"""Coders of blocks: what goes in comes out, as short as its entropy says."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lepton_jax.numerics.packing import pack
from lepton_jax.storage import LeptonFileError
from lepton_jax.storage.coders import (
    CODERS,
    LOSSES,
    MOST_BYTES,
    Kind,
    ans,
    decode_block,
    describe_block,
    encode_block,
)
from lepton_jax.storage.coders._table import entropy, frequencies, histogram, read_table, write_table
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
    code = memoryview(encode_block(data, Kind(array.dtype.itemsize, floats)))
    assert describe_block(code) == coder
    assert len(code) <= share * len(data) + 1
    np.testing.assert_array_equal(decode_block(code, len(data)), data)


@pytest.mark.parametrize("coding", list(LOSSES))
def test_large_blocks_stay_near_their_entropy(coding: str) -> None:
    """A faster coder makes blocks longer by no more than was allowed; repeats far off are seen."""
    weights = RNG.normal(0, 0.02, 1 << 18).astype(ml_dtypes.bfloat16)
    codes = np.clip(np.round(RNG.normal(size=(512, 1024)) * 2.5) + 8, 0, 15).astype(np.uint8)
    words = weights.view("<u2")
    turned = (words << 1 | words >> 15).view(np.uint8).reshape(-1, 2).T
    planes = [np.ascontiguousarray(plane) for plane in turned]
    allowed = max(1.01, 1.002 + LOSSES[coding])
    cases: tuple[tuple[Any, Kind, float | None], ...] = (
        (
            weights.view(np.uint8),
            Kind(2, True),
            sum(map(_entropy, planes)),
        ),
        (codes.reshape(-1)[::2] | codes.reshape(-1)[1::2] << 4, Kind(), None),
        (np.asarray(pack(jnp.asarray(codes), 5)).reshape(-1), Kind(1, False, (512, 640)), _entropy(codes)),
        (np.tile(RNG.integers(0, 256, 1 << 18).astype(np.uint8), 3), Kind(), 1 << 18),
    )
    for data, kind, least in cases:
        code = encode_block(data, kind, loss=LOSSES[coding])
        assert len(code) <= allowed * (_entropy(data) if least is None else least) + 500
        np.testing.assert_array_equal(decode_block(memoryview(code), len(data)), data)


@pytest.mark.parametrize("shape", [(784, 300), (300, 100), (100, 10)])
def test_sparse_palettes_take_what_their_entropy_says(shape: tuple[int, int]) -> None:
    """The layers of LeNet-300-100 with 8 % left, 32 levels: as codes or packed in 5 bits, and expanded."""
    codes = np.where(RNG.random(shape) < 0.08, RNG.binomial(30, 0.5, shape) + 1, 0).astype(np.uint8)
    used = len(np.unique(codes))
    table = min(1 + 2.5 * used, 33 + 1.5 * used) + 24
    packed = np.asarray(pack(jnp.asarray(codes), 5)) if shape[0] == 300 else codes
    for array, more in ((packed, 14), (RNG.normal(size=32).astype(np.float32)[codes], 3 + 4 * used)):
        kind = Kind(array.dtype.itemsize, array.dtype.kind == "f", array.shape)
        data = array.view(np.uint8).reshape(-1)
        code = encode_block(data, kind)
        assert len(code) <= 1.01 * _entropy(codes) + table + more
        np.testing.assert_array_equal(decode_block(memoryview(code), len(data)), data)


def _entropy(data: np.ndarray) -> float:
    return entropy(histogram(data.reshape(-1))) * data.size


def _packed(codes: np.ndarray) -> np.ndarray:
    """Codes of five bits as the passes keep them."""
    return np.asarray(pack(jnp.asarray(codes), 5)).reshape(-1)


def test_every_coder_says_what_is_damaged() -> None:
    """Codes that are cut off, of another size, or of no coder."""
    data = np.where(RNG.random(5000) < 0.2, RNG.integers(1, 9, 5000), 0).astype(np.uint8)
    data[-1] = 1
    for number, coder in CODERS.items():
        wide = np.zeros(100, np.uint8) if coder.name == "constant" else data
        width = 4 if coder.name in ("planes", "distinct") else 1
        if coder.name == "distinct":
            wide = np.repeat(data[:1000], 4)
        if coder.name == "codes":
            width, wide = 1, _packed(data)
        kind = Kind(width, False, (len(wide),))
        code = coder.encode(wide, kind, lambda part, _: bytes([0]) + part.tobytes())
        assert code is not None
        whole = bytes([number]) + code
        np.testing.assert_array_equal(decode_block(memoryview(whole), len(wide)), wide)
        cut, other = (whole[: len(whole) // 3], len(wide)), (whole, len(wide) - 4)
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
