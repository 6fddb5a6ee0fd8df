"""Range coding of bytes by how often each occurs (rANS), many lanes at once.

The coder of Duda, "Asymmetric numeral systems" (arXiv:1311.2540), in the form with a range (rANS): states of
32 bits, renormalised by words of 16. Byte i belongs to lane i mod L; all lanes take a step at once, which XLA
compiles to loops over vectors. Each lane has a stream of its own, so no lane waits for another.

The bytes of a code: log2 L; the table (`_table`); of each lane the number of words, u16, and the last state,
u32; the words, u16, lane after lane. All little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from lepton_jax.storage.coders._table import (
    BITS,
    TOTAL,
    entropy,
    frequencies,
    histogram,
    read_table,
    write_table,
)
from lepton_jax.storage.errors import LeptonFileError

Bytes = NDArray[np.uint8]

_LOW: Final = 1 << 16
_MOST_LANES: Final = 10
_WRITTEN_LANES: Final = 9
_ROWS: Final = 64
_BYTES_A_LANE: Final = 2400
_LONGEST: Final = 65535
LARGEST: Final = _LONGEST << _WRITTEN_LANES
"""So many bytes can be coded at once."""


def encode(data: Bytes) -> bytes:
    """The code of some bytes, one at least.

    Args:
        data: [n], n between 1 and `LARGEST`.
    """
    counts = histogram(data)
    lanes, found = _lanes(counts), frequencies(counts)
    steps = -(-len(data) // lanes)
    padded = np.full((_bucket(steps), lanes), np.argmax(found), np.uint8)
    padded.reshape(-1)[: len(data)] = data
    table = np.maximum(found, 1) << 16 | (np.cumsum(found) - found)
    with _on_cpu():
        states, flags, words, counted = _encode(padded, table.astype(np.uint32), np.int32(steps))
    stream = np.compress(np.asarray(flags).reshape(-1), np.asarray(words).reshape(-1))
    parts = (np.asarray(counted).astype("<u2"), np.asarray(states).astype("<u4"), stream.astype("<u2"))
    return bytes([lanes.bit_length() - 1]) + write_table(found) + b"".join(part.tobytes() for part in parts)


def size_of(counts: NDArray[np.int64]) -> float:
    """About how many bytes the code of bytes takes that occur so often."""
    table = 2.5 * np.count_nonzero(counts)
    return float(entropy(counts) * counts.sum() * (1 + 6 / _BYTES_A_LANE) + min(table, 32 + 0.6 * table) + 8)


def decode(code: memoryview, size: int) -> Bytes:
    """The bytes of a code.

    Args:
        code: what `encode` made.
        size: the number of bytes that were encoded, between 1 and `LARGEST`.

    Returns:
        The bytes, [size].

    Raises:
        LeptonFileError: the code is damaged.
    """
    if not code or code[0] > _MOST_LANES or not 0 < size <= _LONGEST << code[0]:
        raise LeptonFileError("a range code is damaged: its lanes do not fit its size")
    lanes = 1 << code[0]
    steps = -(-size // lanes)
    found, length = read_table(code[1:])
    rest = code[1 + length :]
    if len(rest) < 6 * lanes or len(rest) % 2:
        raise LeptonFileError("a range code is damaged: it ends before its states")
    counts = np.frombuffer(rest[: 2 * lanes], "<u2").astype(np.int64)
    states = np.frombuffer(rest[2 * lanes : 6 * lanes], "<u4")
    stream = np.frombuffer(rest[6 * lanes :], "<u2")
    if counts.sum() != len(stream) or counts.max() > steps:
        raise LeptonFileError("a range code is damaged: its words do not fit its lanes")
    offsets = np.cumsum(counts) - counts
    words = np.zeros(_bucket(len(stream) + steps), np.uint16)  # no lane can read beyond this
    words[: len(stream)] = stream
    with _on_cpu():
        last, ends, result = _decode(
            states.astype(np.uint32),
            offsets.astype(np.int32),
            words,
            _slots(found),
            np.int32(steps),
            _bucket(steps),
        )
    if not (np.array_equal(ends, offsets + counts) and np.all(np.asarray(last) == _LOW)):
        raise LeptonFileError("a range code is damaged: its streams do not end where they should")
    return np.asarray(result).reshape(-1)[:size]


def _lanes(counts: NDArray[np.int64]) -> int:
    """How many lanes: a lane costs six bytes, a quarter of a percent of the code at most."""
    size = int(counts.sum())
    if not 0 < size <= LARGEST:
        raise LeptonFileError(f"a range coder takes 1 to {LARGEST} bytes at once, not {size}")
    least = max(-(-size // _LONGEST) - 1, 0).bit_length()
    wanted = max(int(entropy(counts) * size) // _BYTES_A_LANE, 1).bit_length() - 1
    return int(1 << max(least, min(wanted, _WRITTEN_LANES)))


def _bucket(size: int) -> int:
    """The next of few sizes, so that few programs are compiled."""
    return 1 << max(size - 1, 4095).bit_length()


def _slots(found: NDArray[np.int64]) -> NDArray[np.uint32]:
    """For each of the 4096 parts of the range: the byte, the place in its part, its frequency less one."""
    byte = np.repeat(np.arange(256), found)
    place = np.arange(TOTAL) - (np.cumsum(found) - found)[byte]
    packed: NDArray[np.uint32] = (byte << 24 | place << BITS | found[byte] - 1).astype(np.uint32)
    return packed


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Run on the processor where JAX has one: the bytes come from there and go there."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        yield
        return
    with jax.default_device(device):
        yield


@jax.jit
def _encode(data: Any, table: Any, steps: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The code of [most, L] bytes, of which so many steps count; most is a multiple of `_ROWS`.

    Args:
        data: uint8, [most, L].
        table: uint32, [256]: the frequency of each byte in the high half, where its part begins in the low.
        steps: the last comes first.

    Returns:
        The last states, [L]; whether a word was given out at each step, [L, most]; the words; and how many
        there are, [L]. Blocks of steps are turned while they are in the cache.
    """
    most, lanes = data.shape
    blocks = (steps + _ROWS - 1) // _ROWS

    def step(turn: Any, carry: Any, first: Any, part: Any) -> Any:
        state, flags, words = carry
        row = _ROWS - 1 - turn
        active = first + row < steps
        entry = table[lax.dynamic_index_in_dim(part, row, keepdims=False).astype(jnp.int32)]
        frequency = entry >> jnp.uint32(16)
        full = ((state >> jnp.uint32(32 - BITS)) >= frequency) & active
        low = jnp.where(full, state >> jnp.uint32(16), state)
        whole = lax.div(low, frequency)
        high = (whole << jnp.uint32(BITS)) + (low - whole * frequency) + (entry & jnp.uint32(0xFFFF))
        flags = lax.dynamic_update_index_in_dim(flags, full, row, 0)
        words = lax.dynamic_update_index_in_dim(words, state.astype(jnp.uint16), row, 0)
        return jnp.where(active, high, state), flags, words

    def block(turn: Any, carry: Any) -> Any:
        state, flags, words, counted = carry
        first = (blocks - 1 - turn) * _ROWS
        part = lax.dynamic_slice_in_dim(data, first, _ROWS)
        empty = jnp.zeros((_ROWS, lanes), bool), jnp.zeros((_ROWS, lanes), jnp.uint16)
        state, some, more = lax.fori_loop(
            0, _ROWS, lambda turn, carry: step(turn, carry, first, part), (state, *empty)
        )
        flags = lax.dynamic_update_slice_in_dim(flags, some.T, first, 1)
        words = lax.dynamic_update_slice_in_dim(words, more.T, first, 1)
        return state, flags, words, counted + jnp.sum(some, 0, dtype=jnp.int32)

    start = jnp.full(lanes, _LOW, jnp.uint32)
    empty = jnp.zeros((lanes, most), bool), jnp.zeros((lanes, most), jnp.uint16), jnp.zeros(lanes, jnp.int32)
    return lax.fori_loop(0, blocks, block, (start, *empty))  # type: ignore[no-any-return]


def _decode_steps(
    states: Any, offsets: Any, words: Any, slots: Any, steps: Any, most: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first states, where each stream ended, and the bytes, [most, L]."""

    def step(at: Any, carry: Any) -> Any:
        state, offset, found = carry
        slot = slots[(state & jnp.uint32(TOTAL - 1)).astype(jnp.int32)]
        frequency = (slot & jnp.uint32(TOTAL - 1)) + jnp.uint32(1)
        state = frequency * (state >> jnp.uint32(BITS)) + ((slot >> jnp.uint32(BITS)) & jnp.uint32(TOTAL - 1))
        empty = state < _LOW
        word = words.at[offset].get(mode="promise_in_bounds").astype(jnp.uint32)
        state = jnp.where(empty, (state << jnp.uint32(16)) | word, state)
        byte = (slot >> jnp.uint32(24)).astype(jnp.uint8)
        return state, offset + empty.astype(jnp.int32), lax.dynamic_update_index_in_dim(found, byte, at, 0)

    found = jnp.zeros((most, states.shape[0]), jnp.uint8)
    return lax.fori_loop(0, steps, step, (states, offsets, found))  # type: ignore[no-any-return]


_decode: Final = jax.jit(_decode_steps, static_argnums=5)
