"""Compiling ahead of time: for devices that need not be present, and the passes of MLIR."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def compile_lowered(
    lowered: Any, devices: Sequence[Any], compiler_options: Mapping[str, Any] | None = None
) -> Any:
    """Compile what was lowered on an abstract mesh for these devices, present or not.

    `lowered.compile(device_assignment=...)` takes the compiler of JAX's default backend whatever the devices
    are; this takes that of the devices. What was lowered for devices of its own is compiled for those.

    Raises:
        AttributeError: this JAX keeps what it lowered in another way.
    """
    inner = lowered._lowering
    options = None if compiler_options is None else dict(compiler_options)
    if inner._device_list is not None:
        return lowered.compile(options)
    known = inner.compile_args
    inner.compile_args = {**known, "backend": devices[0].client}
    try:
        return lowered.compile(options, device_assignment=tuple(devices))
    finally:
        inner.compile_args = known


def run_mlir_passes(lowered: Any, pipelines: Sequence[str]) -> Any:
    """The module of what was lowered, after passes of MLIR; the one in `lowered` stays as it is.

    Returns:
        A `builtin.module` operation of jaxlib's MLIR, with `regions`, `attributes` and so on.

    Raises:
        ImportError, AttributeError: this jaxlib has no MLIR passes in Python.
        ValueError: it does not know one of the passes.
        RuntimeError: a pass failed.
    """
    from jaxlib.mlir import passmanager

    module = lowered.compiler_ir("stablehlo")
    with module.context:
        copied = module.operation.clone()
        for pipeline in pipelines:
            try:
                passmanager.PassManager.parse(pipeline).run(getattr(copied, "operation", copied))
            except Exception as error:
                kind = ValueError if "MLIRError" not in type(error).__name__ else RuntimeError
                raise kind(f"{pipeline}: {str(error).splitlines()[0]}") from error
    return copied


def is_absent(device: Any) -> bool:
    """Whether a device is not there: programs are compiled for it, and cannot run."""
    return getattr(getattr(device, "client", None), "runtime_type", "") == "compile_only_runtime"


def known_device(avals: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
    """While it lasts, what is lowered knows for which device, if its arguments lie on one that is not there.

    Pallas asks JAX for the device, which names one that is there where no mesh is set.

    Args:
        avals: of the arguments of what is lowered.
    """
    meshes = (aval.sharding.mesh for aval in avals if aval.sharding is not None)
    mesh = next((each for each in meshes if not each.empty), None)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)
