"""What was measured on this machine, kept on disk.

One JSON file for each thing measured, under `LEPTON_CACHE`, or `lepton` in the user's cache folder.
Figures are kept apart by device, processor, number of cores and version of JAX, so that another machine never
reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from lepton_jax.ir import _jax
from lepton_jax.targets import processor


def folder() -> Path:
    """Where the files are."""
    if chosen := os.environ.get("LEPTON_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepton"


def machine() -> str:
    """JAX's default device, the processor, the number of cores, and the version of JAX, in words."""
    device = f"{_jax.backend_platform()} {jax.devices()[0].device_kind}"
    return f"{device}, {processor.model()}, {os.cpu_count()} cores, jax {jax.__version__}"


def path_of(kind: str, key: str) -> Path:
    """The file of one thing measured on this machine."""
    name = hashlib.sha256(f"{machine()}\n{key}".encode()).hexdigest()[:32]
    return folder() / kind / f"{name}.json"


def read(kind: str, key: str) -> Any:
    """What was written for this machine, or None; a file that cannot be read counts as none."""
    try:
        return json.loads(path_of(kind, key).read_text("utf-8"))["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(kind: str, key: str, value: Any) -> Path | None:
    """Keep something measured on this machine; returns its file, or None where none can be written.

    Several processes may write at once: a file is whole or absent.
    """
    path = path_of(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump({"machine": machine(), "value": value}, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return None
    return path
