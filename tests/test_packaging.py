"""What is installed is what is in the tree: the wheel holds every module, and passes of others are found."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lepton_jax.rewrite import Pipeline, PipelineError

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "tests" / "plugin"
# Imports the modules named on the command line, loads every pass, and says where each came from.
IMPORT_ALL = """
import importlib, json, sys
from importlib.metadata import entry_points, version

modules = {name: importlib.import_module(name) for name in sys.argv[1:]}
passes = {found.name: found.load() for found in entry_points(group="lepton_jax.passes")}
print(json.dumps({
    "files": {name: module.__file__ for name, module in modules.items()},
    "passes": {name: [loaded.name, loaded.__module__] for name, loaded in passes.items()},
    "version": version("lepton-jax"),
}))
"""
# Runs the sample plugin's pass in a pipeline and says what it did.
USE_PLUGIN = """
import json
import jax.numpy as jnp
import lepton_jax as lepton

f = lepton.optimize(lambda x: jnp.sin(-(-x)) - (-(-x)), "involutions{most=1},dce", strict=True)
traced = f.trace(1.5)
print(json.dumps({
    "value": float(f(1.5)),
    "before": traced.graph_before.to_text().count("neg"),
    "after": traced.graph.to_text().count("neg"),
    "rules": traced.report.rules,
}))
"""


def copy_sources(target: Path) -> Path:
    """The parts of the repository that a wheel is made of, in a folder that a build may write to."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in ("lepton_jax", "passes"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def pip(*arguments: str | Path) -> None:
    """Runs pip without the network; a failure shows what it printed."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-build-isolation"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_python(code: str, *arguments: str, options: tuple[str, ...] = (), paths: list[str], cwd: Path) -> str:
    """What a fresh interpreter prints when it runs this code with these folders first on its path."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_of_the_tree() -> dict[str, str]:
    """Every module of the source tree: its name when installed, and its file's place in a wheel."""
    found = {}
    for folder, place in (("lepton_jax", "lepton_jax"), ("passes", "lepton_jax/passes")):
        for path in (ROOT / folder).rglob("*.py"):
            file = f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
            found[file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = file
    return found


def pass_modules(modules: dict[str, str]) -> set[str]:
    """The modules that hold a pass: those of the library that are neither packages nor private."""
    library = {
        name for name, file in modules.items() if name.startswith("lepton_jax.passes.") and "__" not in file
    }
    return {name for name in library if "._" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel, built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    pip("wheel", "-q", "-w", folder, copy_sources(folder / "source"))
    (built,) = folder.glob("lepton_jax-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_the_modules_of_the_tree_and_no_others(wheel: Path) -> None:
    held = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*.py")}
    assert held == set(modules_of_the_tree().values())


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for folder in ("lepton_jax", "passes") for path in (ROOT / folder).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_wheel_holds_types_data_and_licence(wheel: Path) -> None:
    assert (wheel / "lepton_jax" / "py.typed").exists()
    texts = {path.name for path in (ROOT / "lepton_jax" / "data").glob("*.txt")}
    assert texts
    assert {path.name for path in (wheel / "lepton_jax" / "data").glob("*.txt")} == texts
    (info,) = wheel.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    metadata = (info / "METADATA").read_text()
    assert "\nName: lepton-jax\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_every_module_and_every_pass_of_the_wheel_can_be_imported(wheel: Path, tmp_path: Path) -> None:
    modules = modules_of_the_tree()
    # Without `site` no editable install is active, so whatever the wheel lacks cannot come from the tree.
    paths = [str(wheel), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    seen = json.loads(run_python(IMPORT_ALL, *modules, options=("-S",), paths=paths, cwd=tmp_path))
    assert seen["files"] == {name: str(wheel / file) for name, file in modules.items()}
    assert {name: own for name, (own, _) in seen["passes"].items()} == {name: name for name in seen["passes"]}
    assert {module for _, module in seen["passes"].values()} == pass_modules(modules), (
        "a pass has no entry point"
    )


def test_a_pass_of_another_package_is_found_listed_and_run(tmp_path: Path) -> None:
    shutil.copytree(PLUGIN, tmp_path / "plugin", ignore=shutil.ignore_patterns("__pycache__"))
    pip("install", "-q", "--target", tmp_path / "site", tmp_path / "plugin")
    paths = [str(tmp_path / "site")]

    listed = run_python("from lepton_jax.cli import main; main()", "passes", paths=paths, cwd=tmp_path)
    (line,) = [line for line in listed.splitlines() if "involutions" in line]
    assert "most" in line
    assert "sample-lepton-passes" in line

    seen = json.loads(run_python(USE_PLUGIN, paths=paths, cwd=tmp_path))
    assert (seen["before"], seen["after"]) == (4, 2)
    assert seen["rules"]["neg-twice"] == 1
    assert seen["value"] == pytest.approx(math.sin(1.5) - 1.5)


def test_without_the_plugin_its_pass_is_unknown() -> None:
    with pytest.raises(PipelineError, match="involutions"):
        Pipeline.parse("involutions")
