"""Compile a program for a topology, and read what it needs there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax.ir import _jax
from lepton_jax.parallel.aot.advice import OutOfMemory, advice, out_of_memory
from lepton_jax.parallel.aot.cycles import estimated_cycles, seconds
from lepton_jax.parallel.aot.hlo import CompiledCollective, collectives
from lepton_jax.parallel.aot.result import Compiled, Memory
from lepton_jax.parallel.aot.shardy import Buffer, Propagated, ShardyUnavailable, propagated
from lepton_jax.parallel.aot.text import parse
from lepton_jax.parallel.aot.topologies import Topology, get_topology
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.targets.chips import Chip

_PLATFORMS: Final = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}

_SHARE: Final = 0.75
"""What JAX takes of a GPU's memory where nothing else is said."""


def compile_for(
    fun: Any,
    args: Any = (),
    topology: str | Topology = "cpu:8",
    axes: Mapping[str, int] | str | None = None,
    *,
    in_specs: Any = None,
    donate_argnums: Any = (),
    trips: Mapping[str, int] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile for devices that need not be there, and read what the program needs on them.

    Args:
        fun: a function of arrays; one that `jax.jit` or `lepton.optimize` made; or what was lowered
            already, on an `AbstractMesh` with these axes (`.trace(...).lower(lowering_platforms=...)`): one
            lowering serves many topologies.
        args: its arguments: arrays or `jax.ShapeDtypeStruct`s. Shardings on them count by their axes' names;
            their devices are replaced by the topology's.
        topology: its name, as `v5p:8x8x8`.
        axes: the mesh, as `"data=64,model=8"`; see `Topology.spec`.
        in_specs: `PartitionSpec`s for the arguments, a tree like a beginning of `args`.
        donate_argnums: arguments whose memory results may take; for a plain function.
        trips: how often loops go round that the compiled text does not show; see `collectives`.
        compiler_options: XLA's, by name.

    Returns:
        A `Compiled`. A program that is too large for its devices gives one with `fits=False` and advice;
        other errors of the compiler are raised as they are.

    Raises:
        TopologyError: there is no such topology, or its compiler is not installed.
        ValueError: the mesh does not have the topology's devices.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
        >>> compile_for(lambda x: x.sum(0), (x,), "cpu:1").fits
        True
    """
    target = get_topology(topology) if isinstance(topology, str) else topology
    spec = target.spec(axes)
    mesh = target.mesh(axes)
    start = time.perf_counter()
    lowered = fun if _is_lowered(fun) else _lower(fun, args, mesh, target, in_specs, donate_argnums)
    lowered_at = time.perf_counter()
    read = read_compiled(lowered, list(mesh.devices.flat), spec, target.chip, trips, compiler_options)
    made, shortage, memory, found, cycles = (
        read.made,
        read.shortage,
        read.memory,
        read.collectives,
        read.cycles,
    )
    done = time.perf_counter()
    fits = memory is not None and memory.peak <= memory.available
    tips, largest = (_share(memory, target), ()) if fits else _advice(lowered, memory, shortage, spec)
    return Compiled(
        name=_name(fun),
        topology=target,
        mesh=spec,
        fits=fits,
        memory=memory,
        shortage=shortage,
        collectives=found,
        cycles=cycles,
        flops=_flops(made),
        lower_seconds=lowered_at - start,
        compile_seconds=done - lowered_at,
        advice=tips,
        largest=largest,
        executable=made,
    )


@dataclass(frozen=True)
class Read:
    """What a compiler makes of a program.

    Attributes:
        made: JAX's executable; None where it ran out of memory.
        memory: what it needs; None where it ran out.
        shortage: what the compiler said then.
        collectives: what devices send one another.
        cycles: the compiler's estimate, for TPUs.
        compute_seconds: the time of these.
    """

    made: Any
    memory: Memory | None
    shortage: OutOfMemory | None
    collectives: tuple[CompiledCollective, ...]
    cycles: int | None
    compute_seconds: float | None

    @property
    def needed(self) -> int:
        """Bytes that each device needs."""
        if self.memory is not None:
            return self.memory.peak
        return 0 if self.shortage is None else self.shortage.needed


def read_compiled(
    lowered: Any,
    devices: Sequence[Any],
    spec: MeshSpec,
    chip: Chip | None = None,
    trips: Mapping[str, int] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Read:
    """Compile what was lowered for devices, present or not, and read what it needs there.

    Args:
        lowered: for these devices, or on an `AbstractMesh`.
        devices: in the order of the mesh.
        spec: the mesh.
        chip: what it is made of, where that is not what the mesh says.
        trips: as in `compile_for`.
        compiler_options: as in `compile_for`.

    Raises:
        JaxRuntimeError: the compiler failed, not for want of memory.
    """
    made, shortage = None, None
    try:
        made = _jax.compile_lowered(lowered, devices, compiler_options)
    except jax.errors.JaxRuntimeError as error:
        shortage = out_of_memory(str(error))
        if shortage is None:
            raise
    memory = None if made is None else _memory(made, chip or spec.chip)
    found, cycles = _read(made, spec, trips)
    time_ = None if cycles is None else seconds(cycles, chip or spec.chip)
    return Read(made, memory, shortage, found, cycles, time_)


def _read(
    made: Any, spec: MeshSpec, trips: Mapping[str, int] | None
) -> tuple[tuple[CompiledCollective, ...], int | None]:
    text = "" if made is None else made.as_text() or ""
    if not text:
        return (), None
    return tuple(collectives(text, spec, trips=trips)), estimated_cycles(parse(text), trips)


def _name(fun: Any) -> str:
    return getattr(fun, "__qualname__", None) or getattr(fun, "__name__", None) or "program"


def _is_lowered(fun: Any) -> bool:
    return hasattr(fun, "compile") and hasattr(fun, "compiler_ir")  # JAX's, or Lepton's over a mesh


def _lower(fun: Any, args: Any, mesh: Mesh, target: Topology, in_specs: Any, donate: Any) -> Any:
    """Trace and lower on the mesh of the topology's devices."""
    placed = place(args, mesh, in_specs)
    jitted: Callable[..., Any] = fun if hasattr(fun, "lower") else jax.jit(fun, donate_argnums=donate)
    with jax.set_mesh(mesh):
        traced = jitted.trace(*placed)  # type: ignore[attr-defined]
        return traced.lower(lowering_platforms=(_PLATFORMS[target.platform],))


def place(args: Any, mesh: Mesh, in_specs: Any = None) -> Any:
    """Shapes of arguments, laid on a mesh.

    Args:
        args: a tree of arrays or `jax.ShapeDtypeStruct`s.
        mesh: where they go.
        in_specs: `PartitionSpec`s, a tree like a beginning of `args`; default: the arguments' own shardings,
            by the names of their axes; arguments without any are left to the compiler.
    """
    if in_specs is not None:
        each = (in_specs,) * len(args) if _is_spec(in_specs) else tuple(in_specs)

        def lay(spec: PartitionSpec | None, part: Any) -> Any:
            return jax.tree.map(lambda leaf: _shape(leaf, mesh, spec), part)

        return jax.tree.map(lay, each, tuple(args), is_leaf=_is_spec)
    return jax.tree.map(lambda leaf: _shape(leaf, mesh, _own_spec(leaf)), tuple(args))


def _is_spec(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, PartitionSpec)


def _own_spec(leaf: Any) -> PartitionSpec | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else None


def _shape(leaf: Any, mesh: Mesh, spec: PartitionSpec | None) -> Any:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    if spec is None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def _memory(made: Any, chip: Chip) -> Memory:
    stats = made.memory_analysis()
    arguments, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    aliased, temporaries = stats.alias_size_in_bytes, stats.temp_size_in_bytes
    code = stats.generated_code_size_in_bytes
    peak = int(getattr(stats, "peak_memory_in_bytes", 0) or 0)
    if chip.rates.platform == "cpu" or not peak:  # the CPU's figure is not one of a device
        peak = arguments + outputs - aliased + temporaries + code
    host = stats.host_temp_size_in_bytes + stats.host_argument_size_in_bytes + stats.host_output_size_in_bytes
    return Memory(arguments, outputs, aliased, temporaries, code, host, peak, chip.memory)


def _flops(made: Any) -> float | None:
    costs = None if made is None else made.cost_analysis()
    found = None if not costs else costs.get("flops")
    return None if found is None or found < 0 else float(found)


def _share(memory: Memory | None, target: Topology) -> tuple[str, ...]:
    """That a program needs more of a GPU's memory than JAX takes by itself."""
    if memory is None or target.platform != "gpu" or memory.peak <= _SHARE * memory.available:
        return ()
    share = math.ceil(100 * memory.peak / memory.available) / 100
    return (
        f"JAX takes {_SHARE:.0%} of a GPU's memory: set XLA_CLIENT_MEM_FRACTION={share:.2f} or more, which "
        "leaves less to libraries",
    )


def _advice(
    lowered: Any, memory: Memory | None, shortage: OutOfMemory | None, spec: MeshSpec
) -> tuple[tuple[str, ...], tuple[Buffer, ...]]:
    missing = memory.peak - memory.available if memory is not None else 0
    if shortage is not None:
        missing = shortage.needed - shortage.available if shortage.available else shortage.needed
    try:
        spread: Propagated | None = propagated(lowered)
    except (ShardyUnavailable, RuntimeError):
        spread = None
    buffers = spread.buffers if spread is not None else shortage.largest if shortage is not None else ()
    donated = max(0, memory.outputs - memory.aliased) if memory is not None else 0
    return advice(missing, buffers, spec, donated), buffers[:10]
