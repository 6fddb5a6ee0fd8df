"""Models in files: saved, loaded, and run as before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.storage import Reader, writing

RNG = np.random.default_rng(0)
PARAMS = {
    "up": jnp.asarray(RNG.normal(size=(32, 64)), jnp.float32),
    "down": jnp.asarray(RNG.normal(size=(64, 32)), jnp.float32),
}


def layer(params: Any, x: jax.Array, *, scale: float | jax.Array = 1.0) -> Any:
    """A block with a dict as result."""
    return {"y": jax.nn.relu(x @ params["up"]) @ params["down"] * scale}


def test_a_model_is_the_same_in_a_new_process(tmp_path: Path) -> None:
    """Quantised and saved here, loaded and run there: the same numbers, without the function."""
    x = jnp.asarray(RNG.normal(size=(3, 32)), jnp.float32)
    model = lepton.compile(layer, PARAMS, x, passes="deploy,quantize{weights=int4,group=16}")
    path = tmp_path / "m.lepton"
    model.save(path)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, lepton_jax as lepton\n"
        "model = lepton.load(sys.argv[1] + '/m.lepton')\n"
        "np.save(sys.argv[1] + '/y.npy', model(np.load(sys.argv[1] + '/x.npy'))['y'])\n"
        "print(model, model.report().splitlines()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model(x)["y"])
    assert f"<SavedModel of layer, {model.nbytes:,} bytes>" in done.stdout and "parameters:" in done.stdout


def test_shapes_platforms_and_gradients(tmp_path: Path) -> None:
    """For several platforms and any batch, with derivatives, with inputs by name."""
    path = tmp_path / "m.lepton"
    model = lepton.compile(layer, PARAMS, jnp.ones((2, 32)))
    (batch,) = jax.export.symbolic_shape("batch")
    sample = jax.ShapeDtypeStruct((batch, 32), jnp.float32)
    model.save(path, sample, scale=jnp.float32(2), platforms=("cpu", "tpu", "cuda"), gradients=True)
    loaded = lepton.load(path)
    assert loaded.metadata["platforms"] == ["cpu", "tpu", "cuda"] and set(loaded.params) == set(model.params)
    assert "dot_general" in loaded.graph and loaded.nbytes == model.nbytes
    x = jnp.asarray(RNG.normal(size=(5, 32)), jnp.float32)

    def total(f: Any, x: jax.Array) -> Any:
        return jnp.sum(f(x, scale=jnp.float32(3))["y"] ** 2)

    for mine, theirs in zip(
        jax.value_and_grad(lambda x: total(loaded, x))(x),
        jax.value_and_grad(lambda x: total(model, x))(x),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)
    with pytest.raises(ValueError, match="shape"):
        loaded(jnp.ones((2, 31)), scale=jnp.float32(1))


def test_random_keys_are_kept(tmp_path: Path) -> None:
    """A key among the parameters comes back as one."""

    def noisy(params: Any, x: jax.Array) -> Any:
        return x @ params["w"] + jax.random.normal(params["key"], x.shape)

    params = {"w": jnp.eye(8), "key": jax.random.key(3)}
    model = lepton.compile(noisy, params, jnp.ones((2, 8)), passes="none")
    model.save(tmp_path / "m.lepton")
    x = jnp.arange(16.0).reshape(2, 8)
    np.testing.assert_array_equal(lepton.load(tmp_path / "m.lepton")(x), model(x))


def test_files_that_are_no_models_say_so(tmp_path: Path) -> None:
    """Arrays without a program, and programs that are none."""
    path, x = tmp_path / "m.lepton", jnp.ones((2, 32))
    with writing(path) as file:
        file.add("w", np.ones(3))
    moded = lepton.compile(lambda p, x, mode: layer(p, x), PARAMS, x, "fast", static_argnums=2)
    with pytest.raises(lepton.LeptonFileError, match="static arguments cannot be saved"):
        moded.save(path)
    with pytest.raises(lepton.LeptonFileError, match="has arrays and no program"):
        lepton.load(path)
    lepton.compile(layer, PARAMS, x).save(path)
    with Reader(path) as file:
        arrays, metadata = dict(file), dict(file.metadata)
    for change, words in (
        ({"program/exported": np.arange(99, dtype=np.uint8)}, "cannot read the program"),
        ({"more": np.ones(3)}, "its arrays are not a model's"),
        ({"program/exported": np.ones(3)}, "program and graph are not bytes"),
        ({"program/graph": np.full(3, 255, np.uint8)}, "graph is no text"),
    ):
        with writing(path, metadata) as file:
            for name, array in (arrays | change).items():
                file.add(name, array)
        with pytest.raises(lepton.LeptonFileError, match=words):
            lepton.load(path)
    for wrong in ({"params": None}, {"params": [["w"]]}, {"versions": {"jax": 3}}, {"platforms": "cpu"}):
        with writing(path, metadata | wrong) as file:
            file.add("w", np.ones(3))
        with pytest.raises(lepton.LeptonFileError, match="metadata are not a model's"):
            lepton.load(path)


def test_small_models_take_few_bytes(tmp_path: Path) -> None:
    """Program, text, report and index of two layers take less than 3 KB, and say no path of this machine."""
    path = tmp_path / "m.lepton"
    model = lepton.compile(layer, PARAMS, jnp.ones((2, 32)))
    model.save(path, coding="fast")
    with Reader(path) as file:
        stored = sum(e.stored for name, e in file.entries.items() if name.startswith("params/"))
        program = file["program/exported"].tobytes()
    assert path.stat().st_size - stored < 3000
    assert b".py" not in program
    with pytest.raises(lepton.LeptonFileError, match="more than the 99 allowed"):
        lepton.load(path, most_bytes=99)
