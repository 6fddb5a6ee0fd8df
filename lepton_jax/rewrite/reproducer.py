"""Files that show a pass failing: the program as Python, and the pipeline."""

from __future__ import annotations

import contextlib
import contextvars
import getpass
import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir.codegen import CodegenError, identifier, to_python, to_spec
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite.errors import PipelineError
from lepton_jax.rewrite.pipeline import Pipeline
from lepton_jax.rewrite.registry import get_pass, origin_of

_REPLAYED: Final[contextvars.ContextVar[Path | None]] = contextvars.ContextVar("replayed", default=None)


def write_reproducer(
    closed: Any, name: str, pipeline: str, level: str, error: Exception, folder: Path | None = None
) -> Path:
    """Write a file that shows a pass failing when it is run with Python.

    It holds the program as a function `program`, its `PIPELINE` and `LEVEL`, and `make_args()`, which
    makes random arguments; large constants lie beside it in an .npz file. A program that cannot be
    written as Python (it holds callbacks, or tracers) gives a text file with its graph instead.

    Args:
        closed: the jaxpr of the program.
        name: what the user called it.
        pipeline: the pipeline's text.
        level: the semantics level.
        error: what the pass raised.
        folder: where to write; default: the environment variable LEPTON_REPRO_DIR, else a folder of the
            user's own among the system's temporary files.

    Returns:
        The file, whose name is new.
    """
    again = _REPLAYED.get()
    if again is not None:
        return again
    folder = default_folder() if folder is None else Path(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    graph = from_jaxpr(closed, name)
    head = _comment(name, pipeline, level, error)
    arrays: dict[str, np.ndarray] = {}
    try:
        source = to_python(graph, arrays, "program")
        specs = [to_spec(value.aval) for value in graph.inputs]
    except CodegenError as reason:
        text = f"{head}\n# The program cannot be written as Python: {reason}\n\n{graph.to_text()}\n"
        return _write(folder, name, ".txt", text)
    file = _write(folder, name, ".py", _script(head, source, specs, pipeline, level, bool(arrays)))
    if arrays:
        np.savez(file.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    return file


@contextlib.contextmanager
def without_reproducers(instead: Path = Path("not written")) -> Iterator[None]:
    """Write no files while this lasts; `instead` is named in their place."""
    token = _REPLAYED.set(instead)
    try:
        yield
    finally:
        _REPLAYED.reset(token)


def default_folder() -> Path:
    """Where reproducers go if nobody says where."""
    told = os.environ.get("LEPTON_REPRO_DIR")
    if told:
        return Path(told)
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    return Path(tempfile.gettempdir()) / f"lepton-repro-{user}"


def _write(folder: Path, name: str, ending: str, text: str) -> Path:
    handle, path = tempfile.mkstemp(ending, f"{identifier(name)}_", folder, text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


def _comment(name: str, pipeline: str, level: str, error: Exception) -> str:
    lines = [f"A pass failed on the function {name!r}.", f"Pipeline: {pipeline}", f"Level: {level}"]
    lines += [f"JAX {jax.__version__}, NumPy {np.__version__}", ""]
    lines += "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _script(head: str, source: str, specs: list[str], pipeline: str, level: str, has_arrays: bool) -> str:
    parts = [head, "", "from pathlib import Path", "", "import jax", "import numpy as np", ""]
    parts += ["from lepton_jax.ir.codegen import spec"]
    parts += [
        "from lepton_jax.rewrite.replay import random_args, replay",
        "from lepton_jax.targets import get_target",
    ]
    parts += ["", f'jax.config.update("jax_enable_x64", {_jax.x64_enabled()})']
    parts += ['ARRAYS = dict(np.load(Path(__file__).with_suffix(".npz")))'] if has_arrays else []
    parts += ["", source.rstrip(), "", ""]
    parts += [f"PIPELINE = {pipeline!r}", f"LEVEL = {level!r}", f"SPECS = [{', '.join(specs)}]", "", ""]
    parts += ["def make_args():", "    return random_args(SPECS)", "", ""]
    parts += ['if __name__ == "__main__":', *("    " + line for line in _registrations(pipeline))]
    parts += ["    replay(program, SPECS, PIPELINE, LEVEL, get_target(None), __file__)", ""]
    return "\n".join(parts)


def _registrations(pipeline: str) -> list[str]:
    """Lines that make passes known which no installed package declares."""
    try:
        names = dict.fromkeys(step.name for step in Pipeline.parse(pipeline).passes())
    except PipelineError:  # a pipeline of passes that are not registered at all
        return ["# register the passes of PIPELINE here"]
    lines: list[str] = []
    for cls in (get_pass(name) for name in names if origin_of(name) == "registered"):
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            lines.append(f"# register the pass {cls.name} ({cls.__module__}.{cls.__qualname__}) here")
            continue
        lines += [
            "from lepton_jax.rewrite import register",
            f"from {cls.__module__} import {cls.__qualname__}",
            "",
        ]
        lines.append(f"register({cls.__qualname__})")
    return lines
