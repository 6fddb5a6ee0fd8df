"""Compiling for pods that are not there: a scanned transformer, up to 4096 chips and two slices.

Parameters are split as FSDP and Megatron do together, the batch along the other axis; one sequence of 1024
tokens for each group of chips that holds a model. Each layer is computed again for the gradient.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks._common import Row
from benchmarks.shard_cases._programs import HEAD, attention, mean_square, norm
from benchmarks.shard_cases._topology import reached
from lepton_jax.parallel.aot.compile import compile_for
from lepton_jax.parallel.aot.hlo import KINDS, totals
from lepton_jax.parallel.aot.result import Compiled
from lepton_jax.parallel.aot.topologies import Topology

PODS: Final = (
    ("v5e:2x4", "data=2,model=4"),
    ("v5p:4x4x4", "data=16,model=4"),
    ("v5p:8x8x8", "data=64,model=8"),
    ("v5p:16x16x16", "data=256,model=16"),
    ("v5e:4x4x2slices", "slice=2,data=4,model=4"),
)
"""Topologies and the meshes made of them."""

SMALL: Final = (("cpu:8", "data=2,model=4"), ("v5e:2x4", "data=2,model=4"))

SPECS: Final = {
    "q": P(None, "data", "model"),
    "k": P(None, "data", "model"),
    "v": P(None, "data", "model"),
    "o": P(None, "model", None, "data"),
    "w1": P(None, "data", "model"),
    "w2": P(None, "model", "data"),
}


def measure(quick: bool) -> list[Row]:
    """Seconds to compile, memory of one device, and what it exchanges in a step, by topology."""
    layers, width, length = (2, 256, 32) if quick else (32, 2048, 1024)
    rows = []
    for name, axes in SMALL if quick else PODS:
        topology = reached(name)
        if topology is None:
            continue
        rows.append(_row(compiled(topology, axes, layers, width, length)))
        print(rows[-1], flush=True)
    return rows


def compiled(topology: Topology, axes: str, layers: int, width: int, length: int) -> Compiled:
    """The gradient of a transformer, compiled for a topology."""
    mesh = topology.mesh(axes)
    params, tokens = arguments(mesh, layers, width, length)
    placed = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    return compile_for(jax.jit(jax.grad(loss), out_shardings=placed), (params, tokens), topology, axes)


def arguments(mesh: Mesh, layers: int, width: int, length: int) -> tuple[dict[str, Shape], Shape]:
    """The parameters, stacked over layers, and the activations that go in: one sequence for each group."""
    heads = (layers, width, width // HEAD, HEAD)
    sizes = {
        **dict.fromkeys(("q", "k", "v"), heads),
        "o": (layers, width // HEAD, HEAD, width),
        "w1": (layers, width, 4 * width),
        "w2": (layers, 4 * width, width),
    }
    outer = tuple(name for name in mesh.axis_names if name != "model")
    count = mesh.size // mesh.shape["model"]
    batch = Shape((count, length, width), jnp.bfloat16, sharding=NamedSharding(mesh, P(outer)))
    return {
        name: Shape(size, jnp.bfloat16, sharding=NamedSharding(mesh, SPECS[name]))
        for name, size in sizes.items()
    }, batch


def loss(params: Any, x: Any) -> Any:
    """Of layers one after the other."""

    def layer(x: Any, p: Any) -> tuple[Any, None]:
        x = x + attention(p, norm(x))
        return x + jax.nn.gelu(norm(x) @ p["w1"]) @ p["w2"], None

    return mean_square(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, params)[0])


def _row(found: Compiled) -> Row:
    sums = totals(found.collectives)
    memory = found.memory
    return {
        "topology": found.topology.name,
        "mesh": str(found.mesh),
        "devices": found.mesh.devices,
        "compiled in, s": found.compile_seconds,
        "fits": "yes" if found.fits else "no",
        "peak, GiB": (memory.peak if memory else found.shortage.needed if found.shortage else 0) / 2**30,
        "arguments, GiB": memory.arguments / 2**30 if memory else 0.0,
        **{f"{kind}, GiB": sums.get(kind, (0, 0))[1] / 2**30 for kind in KINDS},
        "compute, ms": (found.compute_seconds or 0.0) * 1e3,
        "sending, ms": found.communication_seconds * 1e3,
    }
