"""Packed codes: every width, odd sizes, every axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import Scheme, nbytes, pack, packed_size, quantize, unpack

CASES: list[tuple[int, tuple[int, ...], int]] = [
    (bits, shape, axis) for bits in range(1, 9) for shape, axis in (((13, 3), 0), ((2, 7), -1))
]
CASES += [(bits, shape, 0) for bits in (3, 4) for shape in ((0,), (1,), (64,))] + [(5, (2, 9, 3), 1)]


def test_packing_round_trips_for_all_bits_sizes_and_axes() -> None:
    rng = np.random.default_rng(0)
    codes = {
        (bits, shape, axis): rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
        for bits, shape, axis in CASES
    }
    mask = {key: (2 ** key[0] - 1) for key in codes}

    @jax.jit
    def round_trip(codes: list[jax.Array]) -> Any:
        packed = [pack(x, key[0], key[2]) for key, x in zip(CASES, codes, strict=True)]
        sizes = [key[1][key[2]] for key in CASES]
        return packed, *(
            [
                unpack(x, key[0], size, key[2], signed=signed)
                for key, x, size in zip(CASES, packed, sizes, strict=True)
            ]
            for signed in (True, False)
        )

    found = round_trip([codes[key] for key in CASES])
    packed, signed, unsigned = (dict(zip(CASES, part, strict=True)) for part in found)
    for key, x in codes.items():
        bits, shape, axis = key
        assert packed[key].shape[axis] == packed_size(shape[axis], bits), key
        assert packed[key].dtype == jnp.uint8 and signed[key].dtype == jnp.int8
        np.testing.assert_array_equal(signed[key], x, err_msg=str(key))
        np.testing.assert_array_equal(unsigned[key], x.view(np.uint8) & mask[key], err_msg=str(key))


def test_bytes() -> None:
    """Nothing is wasted where 8 codes fill whole bytes, and less than 3 bytes otherwise."""
    for bits in range(1, 9):
        assert packed_size(64, bits) == 8 * bits
        assert all(0 <= packed_size(n, bits) - n * bits / 8 < 3 for n in range(70))
    group = Scheme("int4", shared=(0,), group=64)
    shape = (256, 96)
    q = quantize(jnp.ones(shape), group)
    assert nbytes(shape, group) == pack(q.codes, 4).nbytes + q.scale.nbytes == 128 * 96 + 4 * 96 * 4
    affine = Scheme("int4", symmetric=False, shared=(0,), group=64)
    assert nbytes(shape, affine) <= 0.15 * 4 * 256 * 96
    blocks = Scheme("mxfp4", group_axis=0)
    assert nbytes(shape, blocks) == 128 * 96 + 8 * 96
    assert nbytes((), Scheme()) == 5


def test_halves_of_int4_are_contiguous() -> None:
    """What a kernel may count on: byte i holds codes i and i + m."""
    codes = jnp.arange(-8, 8, dtype=jnp.int8)
    packed = np.asarray(pack(codes, 4))
    np.testing.assert_array_equal(packed & 15, np.asarray(codes[:8]) & 15)
    np.testing.assert_array_equal(packed >> 4, np.asarray(codes[8:]) & 15)


def test_under_transformations() -> None:
    codes = jnp.arange(-4, 4, dtype=jnp.int8).repeat(6).reshape(3, 16)
    round_trip = jax.jit(jax.vmap(lambda x: unpack(pack(x, 3), 3, 16)))
    np.testing.assert_array_equal(round_trip(codes), codes)
    floats = jnp.array([1.5, -448, 0.0]).astype(jnp.float8_e4m3fn)
    bits = unpack(pack(floats, 8), 8, 3, signed=False)
    np.testing.assert_array_equal(jax.lax.bitcast_convert_type(bits, jnp.float8_e4m3fn), floats)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="1 to 8 bits, not 9"):
        pack(jnp.zeros(3, jnp.int8), 9)
    with pytest.raises(ValueError, match="int8 or uint8, not int32"):
        pack(jnp.zeros(3, jnp.int32), 4)
    with pytest.raises(ValueError, match=r"5 codes of 4 bits take 3 bytes \(uint8\), not 2 elements"):
        unpack(jnp.zeros(2, jnp.uint8), 4, 5)
