"""Other people's checkpoints: packed and given back bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as orbax  # type: ignore[import-untyped]
import pytest

from lepton_jax import storage
from lepton_jax.cli import main
from lepton_jax.storage import LeptonFileError, Reader, pack, read_safetensors, unpack, write_safetensors

RNG = np.random.default_rng(2)
TENSORS: dict[str, Any] = {
    "b": RNG.normal(size=(30, 40)).astype(np.float32),
    "a": RNG.normal(size=2000).astype(ml_dtypes.bfloat16),
    "fp8": RNG.normal(size=(2, 3)).astype(ml_dtypes.float8_e4m3fn),
    "none": np.zeros((0, 2), np.int64),
    "scalar": np.array(True),
}


def _with_oddities(path: Path) -> bytes:
    """A file as others write them: metadata, spaces, tensors out of order, a dtype that NumPy has not."""
    order = ["second", "first"]
    about: dict[str, Any] = {
        "__metadata__": {"format": "pt", "who": "é"},
        "first": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]},
        "second": {"dtype": "I16", "shape": [3], "data_offsets": [4, 10]},
    }
    about = {key: about[key] for key in ("__metadata__", *order)}
    header = json.dumps(about, ensure_ascii=False, indent=1).encode() + b"   "
    data = len(header).to_bytes(8, "little") + header + RNG.bytes(10)
    path.write_bytes(data)
    return data


def test_safetensors_come_back_bit_by_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed, inspected and unpacked by the command, with whatever header they had."""
    plain, odd = tmp_path / "plain.safetensors", tmp_path / "odd.safetensors"
    write_safetensors(plain, TENSORS)
    found = read_safetensors(plain).tensors
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    _with_oddities(odd)
    for path in (plain, odd):
        data = path.read_bytes()
        assert main(["pack", str(path)]) == 0
        path.unlink()
        assert main(["inspect", str(path.with_suffix(".lepton"))]) == 0
        assert main(["unpack", str(path.with_suffix(".lepton"))]) == 0
        assert path.read_bytes() == data
    said = capsys.readouterr().out
    assert "bfloat16" in said and "all hashes are right" in said and "bytes before" not in said
    with Reader(odd.with_suffix(".lepton")) as file:
        assert list(file) == ["first", "second"] and file["first"].dtype == np.uint8


def test_orbax_checkpoints_become_files(tmp_path: Path) -> None:
    """Arrays have their paths as names; they leave as safetensors."""
    tree = {"params": {"dense": {"kernel": TENSORS["b"]}, "scales": [TENSORS["a"], np.int32(3)]}}
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", tree)
    seen: list[tuple[int, int]] = []
    packed = pack(tmp_path / "step", progress=lambda done, total: seen.append((done, total)))
    assert packed == tmp_path / "step.lepton" and seen[-1][0] == seen[-1][1]
    found = read_safetensors(unpack(packed)).tensors
    assert set(found) == {"params/dense/kernel", "params/scales/0", "params/scales/1"}
    assert found["params/dense/kernel"].tobytes() == TENSORS["b"].tobytes()
    with pytest.raises(LeptonFileError, match="no checkpoint of Orbax"):
        pack(tmp_path)


def test_wrong_files_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damaged headers, tensors that lie over one another, bytes that belong to none."""
    path = tmp_path / "x.safetensors"
    for header, data, words in (
        (None, b"", "no file of safetensors"),
        (None, b"\xff" * 20, "no file of safetensors"),
        ("{", b"", "its header"),
        ('{"a":1}', b"", "its header"),
        ('{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', b"\0", "the shape or place of 'a'"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"\0\0", "'a' is not where it should be"),
        ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}', b"\0", "has not the bytes of its shape"),
        ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0\0", "belong to no tensor"),
    ):
        whole = data if header is None else len(header).to_bytes(8, "little") + header.encode() + data
        path.write_bytes(whole)
        with pytest.raises(LeptonFileError, match=words):
            pack(path)
    assert list(tmp_path.iterdir()) == [path]
    assert main(["unpack", str(path)]) == 1
    assert "lepton unpack: this is not a .lepton file" in capsys.readouterr().err
    with pytest.raises(LeptonFileError, match="complex128, which safetensors have not"):
        write_safetensors(path, {"c": np.zeros(2, complex)})
    assert storage.LeptonFileError is LeptonFileError
