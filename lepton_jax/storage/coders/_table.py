"""How often each byte occurs, in 4096ths: the table of the range coder, and its few bytes in the file."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lepton_jax.storage.errors import LeptonFileError

BITS: Final = 12
TOTAL: Final = 1 << BITS

_LONG: Final = 1 << 18

Counts = NDArray[np.int64]


def histogram(data: NDArray[np.uint8]) -> Counts:
    """How often each byte occurs, [256]: pairs are counted, which takes a third of the time."""
    even = len(data) // 2 * 2
    if even < _LONG:
        return np.bincount(data, minlength=256)
    pairs = np.bincount(data[:even].view("<u2"), minlength=1 << 16).reshape(256, 256)
    counts: Counts = pairs.sum(0) + pairs.sum(1) + np.bincount(data[even:], minlength=256)
    return counts


def entropy(counts: Counts) -> float:
    """The order-0 entropy of bytes that occur so often: bytes of code for each byte, 0 to 1."""
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(shares * np.log2(shares)).sum()) / 8


def frequencies(counts: Counts) -> Counts:
    """Whole frequencies with the sum 4096, none 0 where a byte occurs, that make the code shortest.

    Args:
        counts: of each byte, [256], with a sum above 0.

    Returns:
        The frequencies, [256]. What is missing or too much after rounding is given to, or taken from, the
        bytes where that gains most, or costs least.
    """
    used = counts > 0
    found = np.where(used, np.maximum(1, np.floor(counts * (TOTAL / counts.sum()))), 0).astype(np.int64)
    while (missing := TOTAL - int(found.sum())) > 0:
        gain = np.where(used, counts * np.log1p(1 / np.maximum(found, 1)), -1.0)
        best = np.argsort(-gain, kind="stable")[: min(missing, int(used.sum()))]
        found[best] += 1
    while (excess := int(found.sum()) - TOTAL) > 0:
        cost = np.where(found > 1, -counts * np.log1p(-1 / np.maximum(found, 2)), np.inf)
        best = np.argsort(cost, kind="stable")[: min(excess, int((found > 1).sum()))]
        found[best] -= 1
    return found


def write_table(found: Counts) -> bytes:
    """Which bytes occur, as a list if they are few and else as 256 bits, and their frequencies of 12 bits."""
    used = np.flatnonzero(found)
    few = len(used) < 32
    which = used.astype(np.uint8) if few else np.packbits(found > 0)
    bits = (found[used, None] - 1 >> np.arange(BITS - 1, -1, -1)) & 1
    return bytes([len(used) if few else 0]) + which.tobytes() + np.packbits(bits.astype(np.uint8)).tobytes()


def read_table(data: memoryview) -> tuple[Counts, int]:
    """The frequencies, [256], and how many bytes they took.

    Raises:
        LeptonFileError: this is not such a table.
    """
    few = data[0] if len(data) else 0
    size = few or 32
    which = np.frombuffer(data[1 : 1 + size], np.uint8)
    if few >= 32 or len(which) != size:
        raise LeptonFileError("the table of a range coder is damaged")
    used = which.astype(np.int64) if few else np.flatnonzero(np.unpackbits(which))
    end = 1 + size + -(-len(used) * BITS // 8)
    packed = np.frombuffer(data[1 + size : end], np.uint8)
    if len(packed) != end - 1 - size or np.any(np.diff(used) <= 0):
        raise LeptonFileError("the table of a range coder is damaged")
    bits = np.unpackbits(packed)[: len(used) * BITS].reshape(-1, BITS)
    found = np.zeros(256, np.int64)
    found[used] = bits.astype(np.int64) @ (1 << np.arange(BITS - 1, -1, -1)) + 1
    if found.sum() != TOTAL:
        raise LeptonFileError("the table of a range coder is damaged")
    return found, end
