from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import (
    Pass,
    PassContext,
    PassError,
    PassManager,
    PassWarning,
    Pipeline,
    register,
    unregister,
)
from lepton_jax.rewrite.replay import random_args
from lepton_jax.rewrite.reproducer import default_folder, write_reproducer
from lepton_jax.targets import get_target

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from lepton_jax.rewrite import Pass

@dataclass(frozen=True)
class AfraidOfSines(Pass):
    name: ClassVar[str] = "afraid-of-sines"

    def run(self, graph, ctx):
        for node in graph.walk():
            if node.op == "sin":
                raise ArithmeticError("there is a sine")
"""
BIG = np.arange(100, dtype=np.float32)


@dataclass(frozen=True)
class Fails(Pass):
    name: ClassVar[str] = "fails-in-tests"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        raise ZeroDivisionError("as it should")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPTON_REPRO_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def fails() -> Iterator[type[Pass]]:
    yield register(Fails)
    unregister(Fails.name)


def wave(x: Any, k: Any) -> Any:
    return jnp.sin(x) * BIG + jax.random.normal(k, (100,))


def closed_wave() -> Any:
    return jax.make_jaxpr(wave)(np.ones(100, np.float32), jax.random.key(0))


def run_file(file: Path, path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [env.get("PYTHONPATH")]), *sys.path])
    return subprocess.run([sys.executable, str(file)], env=env, capture_output=True, text=True, timeout=300)


def test_the_file_shows_the_failure_when_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "plugin_of_a_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)
    module = __import__("plugin_of_a_test")
    register(module.AfraidOfSines)
    try:
        manager = PassManager(Pipeline.parse("cleanup,afraid-of-sines"), get_target(None), strict=True)
        with pytest.raises(PassError, match=r"afraid-of-sines failed: .*Reproducer: .*wave_.*\.py"):
            manager.run(closed_wave(), "wave")
    finally:
        unregister("afraid-of-sines")
    (file,) = folder.glob("wave_*.py")
    assert len(list(folder.glob("wave_*.npz"))) == 1
    done = run_file(file, folder)
    assert done.returncode == 1
    assert "ArithmeticError: there is a sine" in done.stderr
    assert f"Reproducer: {file}" in done.stderr
    assert len(list(folder.glob("wave_*.py"))) == 1, "replaying wrote another one"


def test_what_is_in_the_file(folder: Path, fails: type[Pass]) -> None:
    file = write_reproducer(closed_wave(), "wave", "cse,fails-in-tests", "exact", ValueError("two\nlines"))
    text = file.read_text()
    assert "# A pass failed on the function 'wave'." in text
    assert "# ValueError: two\n# lines" in text
    assert "register the pass fails-in-tests" in text or "import Fails" in text
    scope: dict[str, Any] = {"__file__": str(file), "__name__": "reproducer"}
    exec(compile(text, str(file), "exec"), scope)
    assert (scope["PIPELINE"], scope["LEVEL"]) == ("cse,fails-in-tests", "exact")
    args = scope["make_args"]()
    assert [(a.shape, str(a.dtype)) for a in args] == [((100,), "float32"), ((), "key<fry>")]
    np.testing.assert_allclose(scope["program"](*args)[0], wave(*args), rtol=1e-6)


def test_a_program_that_cannot_be_written_is_shown_as_text(folder: Path) -> None:
    closed = jax.make_jaxpr(lambda x: jax.pure_callback(np.sin, x, x))(np.float32(1))
    file = write_reproducer(closed, "calls out", "cse", "exact", ValueError("no"))
    assert file.suffix == ".txt"
    text = file.read_text()
    assert "# The program cannot be written as Python: pure_callback" in text
    assert "graph calls out(%0: f32[])" in text
    assert "# ValueError: no" in text


def test_every_file_has_a_new_name(tmp_path: Path) -> None:
    closed = jax.make_jaxpr(jnp.sin)(np.float32(1))
    files = {
        write_reproducer(closed, "<lambda>", "cse", "exact", ValueError(), tmp_path / "new") for _ in range(3)
    }
    assert len(files) == 3
    assert all(file.name.startswith("f_lambda_") for file in files)


def test_the_default_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEPTON_REPRO_DIR", raising=False)
    assert default_folder().name.startswith("lepton-repro-")
    monkeypatch.setenv("LEPTON_REPRO_DIR", "elsewhere")
    assert default_folder() == Path("elsewhere")


def test_a_failing_pass_is_skipped_with_a_warning_that_names_the_file(
    folder: Path, fails: type[Pass]
) -> None:
    manager = PassManager(Pipeline.parse("fails-in-tests,cse"), get_target(None), strict=False)
    with pytest.warns(PassWarning, match=r"skipped pass fails-in-tests failed: ZeroDivisionError"):
        _, report = manager.run(closed_wave(), "wave")
    (file,) = folder.glob("wave_*.py")
    assert str(file) in report.skipped[0]


def test_under_x64_the_file_says_so(folder: Path) -> None:
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(lambda x: x + 0.1)(np.float64(1))
        text = write_reproducer(closed, "wide", "cse", "exact", ValueError()).read_text()
    assert 'jax.config.update("jax_enable_x64", True)' in text
    assert 'SPECS = [spec("float64")]' in text


def test_random_args_have_the_types_asked_for() -> None:
    dtypes = ["float32", "bfloat16", "int32", "uint8", "bool", "complex64", "int4"]
    specs = [jax.ShapeDtypeStruct((2, 3), jnp.dtype(name)) for name in dtypes]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="rbg"), 2))
    args = random_args([*specs, keys])
    assert [(a.shape, a.dtype.name) for a in args[:-1]] == [((2, 3), name) for name in dtypes]
    assert (args[-1].shape, args[-1].dtype) == (keys.shape, keys.dtype)
    assert (
        jax.random.key_data(args[-1]).tolist()
        == jax.random.key_data(random_args([*specs, keys])[-1]).tolist()
    )
