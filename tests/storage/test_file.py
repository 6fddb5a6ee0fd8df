"""The `.lepton` file: arrays by name, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import zstandard

from lepton_jax.storage import LeptonFileError, Reader, Writer, decode, encode, inspect, unpack, writing
from lepton_jax.storage.coders import MOST_BYTES, decode_block
from lepton_jax.storage.fuzz import run
from lepton_jax.storage.layout import HEADER, write_header

RNG = np.random.default_rng(1)
ARRAYS: dict[str, Any] = {
    "float32": RNG.normal(size=(3, 4, 5)).astype(np.float32),
    "bfloat16": RNG.normal(size=1000).astype(ml_dtypes.bfloat16),
    "int4": RNG.integers(-8, 8, (6, 7)).astype(ml_dtypes.int4),
    "fp8": RNG.normal(size=99).astype(ml_dtypes.float8_e4m3fn),
    "complex": (RNG.normal(size=9) + 1j * RNG.normal(size=9)),
    "bool": RNG.random((20, 20)) < 0.5,
    "big-endian": np.arange(9, dtype=">i4"),
    "not contiguous": np.arange(24).reshape(4, 6).T[::2],
    "empty": np.zeros((0, 3), np.float16),
    "scalar": np.int64(-7),
    "negative zeros": np.array([0.0, -0.0, np.nan, np.inf] * 50, np.float32),
    "jax": jnp.arange(5, dtype=jnp.bfloat16),
    "rows": np.arange(7 << 20).reshape(7, 1 << 20).astype(np.uint8),
    "two blocks": np.arange(MOST_BYTES // 4 + 10, dtype=np.int32),
}


def check(found: Any, wanted: Any) -> None:
    """Equal shape, dtype and bytes."""
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype.newbyteorder("=")
    assert found.tobytes() == wanted.astype(wanted.dtype.newbyteorder("=")).tobytes()


@pytest.mark.parametrize("coding", ["small", "fast", "raw"])
def test_arrays_come_back(tmp_path: Path, coding: Any) -> None:
    """Every dtype and shape, one by one and all; parts of the file are mapped where they are raw."""
    path, seen = tmp_path / "a.lepton", list[int]()
    with writing(path, {"what": ["arrays", 1]}, coding=coding, workers=2) as file:
        for name, array in ARRAYS.items():
            file.add(name, array, seen.append)
    assert sum(seen) == sum(np.asarray(array).nbytes for array in ARRAYS.values())
    assert [each.name for each in tmp_path.iterdir()] == ["a.lepton"]
    with Reader(path) as file:
        assert list(file) == list(ARRAYS) and file.metadata == {"what": ["arrays", 1]}
        for name, array in ARRAYS.items():
            check(file[name], array)
        if coding == "raw":
            check(file.mapped("two blocks"), ARRAYS["two blocks"])
            check(file.mapped("empty"), ARRAYS["empty"])
            for kept, name in zip(file.read_all().values(), ARRAYS, strict=True):
                check(kept, ARRAYS[name])
            assert all(block.offset % 64 == 0 for entry in file.entries.values() for block in entry.blocks)
        else:
            with pytest.raises(LeptonFileError, match="coding='raw'"):
                file.mapped("float32")
        with pytest.raises(KeyError, match=r"'w' is not among the arrays of a\.lepton: float32,"):
            file["w"]


def test_files_of_the_first_version_are_read() -> None:
    """A file and a code that an earlier Lepton wrote."""
    folder = Path(__file__).parent
    floats = np.arange(300, dtype=np.float32) / 7
    with Reader(folder / "version1.lepton") as file:
        assert file.metadata == {"step": 3}
        found = file.read_all()
    check(found["floats"], floats.reshape(30, 10))
    check(found["codes"], (np.arange(2000) ** 2 % 11 % 7).astype(np.uint8))
    check(found["sparse"], np.where(np.arange(900) % 13 == 0, np.arange(900) % 5, 0).astype(np.int16))
    code = (folder / "version1.code").read_bytes()
    check(decode(code), floats)
    with pytest.raises(LeptonFileError, match="damaged"):
        decode(code[:-1])


def test_random_keys(tmp_path: Path) -> None:
    """Keys come back as keys, in files and in transfer; safetensors say what to do."""
    keys = jax.random.split(jax.random.key(7), 3)
    path = tmp_path / "a.lepton"
    with writing(path) as file:
        file.add("keys", keys)
    with Reader(path) as file:
        found = [file["keys"], file.read_all()["keys"], decode(encode(keys))]
    assert all(each.dtype == keys.dtype and bool(jnp.all(each == keys)) for each in found)
    (array,) = inspect(path).arrays
    assert (array.dtype, array.nbytes) == (f"key/{jax.random.key_impl(keys)}", 24)
    with pytest.raises(LeptonFileError, match=r"jax\.random\.key_data"):
        unpack(path)
    with writing(path) as file:
        file.add("keys", np.zeros((3, 5), np.uint32))
        file._arrays["keys"].dtype = "key/threefry2x32"
    with Reader(path) as file, pytest.raises(LeptonFileError, match="random keys of 'threefry2x32'"):
        file["keys"]


def test_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    """Control characters in names are written out in the table."""
    with writing(tmp_path / "a.lepton", {"\x1b[2J": 1}) as file:
        file.add("a\x1b[1Ab\n", np.ones(3))
    text = str(inspect(tmp_path / "a.lepton"))
    assert "\x1b" not in text and r"a\x1b[1Ab\n" in text


def test_an_index_does_not_grow_without_bound(tmp_path: Path) -> None:
    """A frame that says it holds a quarter of a GiB of spaces."""
    path = tmp_path / "a.lepton"
    index = zstandard.compress(b" " * (200 << 20))
    path.write_bytes(write_header(HEADER.size, index) + index)
    with pytest.raises(LeptonFileError, match="too long"):
        Reader(path)


def test_contents(tmp_path: Path) -> None:
    """The table says what each array takes, by which coder, and what its entropy is."""
    path = tmp_path / "a.lepton"
    with writing(path, {"kind": "test"}) as file:
        file.add("w", np.repeat(np.arange(4, dtype=np.uint8), 250))
    contents = inspect(path)
    (array,) = contents.arrays
    assert (array.dtype, array.shape, array.nbytes, array.entropy) == ("uint8", (1000,), 1000, 0.25)
    assert array.stored < 250 and contents.length == path.stat().st_size
    assert "metadata: kind" in str(contents) and "4.000×" in str(contents)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Whatever goes wrong while a file is written, what was there stays, and nothing is left beside it."""
    path = tmp_path / "a.lepton"
    with writing(path) as file:
        file.add("w", np.ones(3))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), writing(path) as file:
        file.add("w", np.zeros(3))
        raise KeyboardInterrupt
    with pytest.raises(LeptonFileError, match="already"), writing(path) as file:
        file.add("w", np.zeros(3))
        file.add("w", np.zeros(3))
    with pytest.raises(LeptonFileError, match="cannot be kept"), writing(path) as file:
        file.add("w", np.array(["words"]))
    with pytest.raises(LeptonFileError, match="JSON"), writing(path, {"f": print}) as file:
        file.add("w", np.zeros(3))
    with pytest.raises(ValueError, match="'small', 'fast' or 'raw'"), writing(path, coding="tiny"):  # type: ignore[arg-type]
        pass
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_damaged_files_say_so(tmp_path: Path) -> None:
    """Each part of a file that is damaged has its error."""
    path = tmp_path / "a.lepton"
    with writing(path) as file:
        file.add("w", RNG.normal(size=500))
    data = path.read_bytes()
    newer = bytearray(data)
    newer[8] = 3
    for changed, words in (
        (b"", "empty"),
        (b"PK\3\4" + data[4:], "begins with other bytes"),
        (data[:20], "cut off within its header"),
        (data[:-1], "cut off or was added to"),
        (data + b"\0", "cut off or was added to"),
        (bytes(newer), "header of the file is damaged"),
        (data[:-5] + b"xxxxx", "index of the file is damaged"),
        (data[:70] + b"\0\0\0\0" + data[74:], "'w' is damaged"),
    ):
        path.write_bytes(changed)
        with pytest.raises(LeptonFileError, match=words), Reader(path) as file:
            file.check()
    path.write_bytes(data)
    with pytest.raises(LeptonFileError, match="more than the 100 allowed"):
        Reader(path, most_bytes=100)


def test_newer_versions_say_so(tmp_path: Path) -> None:
    """A file of a later version is no damaged file."""
    from lepton_jax.storage import layout

    path, beside = tmp_path / "a.lepton", io.BytesIO()
    Writer(beside, "small", None).finish({})
    header = bytearray(beside.getvalue()[: HEADER.size])
    struct.pack_into("<I", header, 8, 3)
    header[-8:] = layout._short(bytes(header[:-8]) + bytes(8))
    path.write_bytes(bytes(header) + beside.getvalue()[HEADER.size :])
    with pytest.raises(LeptonFileError, match=r"version 3\.0, this Lepton reads versions 1\.0 to 2\.0"):
        Reader(path)


def test_mutated_files_give_errors_or_the_right_arrays() -> None:
    """A short run of `python -m lepton_jax.storage.fuzz`."""
    right, errors = run(500, seed=3)
    assert right + errors == 500 and errors > 200


def test_transfer() -> None:
    """Arrays as bytes and back; damaged ones say so."""
    for array in ARRAYS.values():
        check(decode(encode(array, workers=2)), array)
    code = encode(ARRAYS["float32"])
    for changed, words in ((b"what" + code[4:], "other bytes"), (code[:-1], "damaged"), (b"", "other bytes")):
        with pytest.raises(LeptonFileError, match=words):
            decode(changed)
    with pytest.raises(LeptonFileError, match="more than the 10 allowed"):
        decode(code, most_bytes=10)
    with pytest.raises(LeptonFileError, match="object"):
        encode(np.array([{}]))
    with pytest.raises(ValueError, match="'small' or 'fast'"):
        encode(ARRAYS["float32"], coding="raw")  # type: ignore[arg-type]
    body = struct.pack("<BB4s65QI", 4, 65, b"int8", *[1] * 65, 0)
    with pytest.raises(LeptonFileError, match="65 dimensions"):
        decode(b"LPA2" + hashlib.sha256(body).digest()[:16] + body)


def test_shapes_that_no_array_can_have_say_so(tmp_path: Path) -> None:
    """A size of 0 beside one that is beyond bounds; names that are no text are refused."""
    body = struct.pack("<BB7s2Q", 7, 2, b"float32", 0, 1 << 62)
    with pytest.raises(LeptonFileError, match="cannot be made"):
        decode(b"LPA1" + hashlib.blake2b(body, digest_size=16).digest() + body)
    with pytest.raises(LeptonFileError, match="is text"), writing(tmp_path / "a.lepton") as file:
        file.add(3, np.ones(2))  # type: ignore[arg-type]


def test_a_zstd_code_does_not_grow_beyond_its_size() -> None:
    """Blocks of 128 KiB of one byte, more of them than the frame says: 4 MiB of these would take 128 GiB."""
    block = (((128 << 10) << 3) | 2).to_bytes(3, "little") + b"a"
    frame = b"\x28\xb5\x2f\xfd" + bytes([2 << 6, 7 << 3]) + (1 << 20).to_bytes(4, "little") + block * 100
    with pytest.raises(LeptonFileError, match="zstd"):
        decode_block(memoryview(bytes([4]) + frame), 1 << 20)
