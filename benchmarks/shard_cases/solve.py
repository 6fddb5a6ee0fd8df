"""How long the solver takes: over layers, loops and the number of chips.

Training steps of decoders with dense layers, four sequences for each chip, written out layer by layer or as a
scan. Nothing is compiled and no device is needed: the seconds are those of `solve` on this machine, the
milliseconds those that a step is predicted to take on the pod.
"""

from __future__ import annotations

import time
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape

from benchmarks._common import Row
from benchmarks.shard_cases._programs import (
    HEAD,
    HEADS,
    HIDDEN,
    LENGTH,
    WIDTH,
    Place,
    Program,
    attention,
    mean_square,
    norm,
    weight,
)
from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.roles import roles_of
from lepton_jax.parallel.solver import solve

CHIP: Final = "v5p"
PER_CHIP: Final = 4
"""Sequences."""
LAYERS: Final = 24
CASES: Final = (
    ("unrolled", "data=2,model=4"),
    ("unrolled", "data=32,model=16"),
    ("scanned", "data=2,model=4"),
    ("scanned", "data=32,model=16"),
)
"""Forms of a program, and meshes."""


def measure(quick: bool) -> list[Row]:
    """Seconds to solve, the gap to the bound, and predicted milliseconds beside the best preset's."""
    layers = 2 if quick else LAYERS
    rows = []
    for form, axes in CASES[1:3] if quick else CASES:
        rows.append(_solved(form, layers, MeshSpec.of(axes, chip=CHIP)))
        print(", ".join(f"{name} {_short(x)}" for name, x in rows[-1].items()), flush=True)
    return rows


def _solved(form: str, layers: int, mesh: MeshSpec) -> Row:
    program = decoder(form, layers, PER_CHIP * mesh.devices)
    start = time.perf_counter()
    graph = inline_calls(trace(program.step(), *program.arguments))
    roles = roles_of(graph, _paths(program))
    traced, worked = time.perf_counter(), time.process_time()
    donated = [i for i, path in enumerate(roles.paths) if not path.startswith("batch")]
    found = solve(graph, roles, mesh, donated=donated)
    seconds, worked = time.perf_counter() - traced, time.process_time() - worked
    best = min(found.rivals, key=lambda name: found.rivals[name])
    return {
        "layers": f"{layers} {form}",
        "chips": mesh.devices,
        "mesh": str(mesh),
        "operations": graph.num_nodes(),
        "seconds to trace": traced - start,
        "seconds to solve": seconds,
        "of the processor": worked,
        "status": found.status,
        "gap of the search, %": round(100 * found.gap, 3),
        "predicted ms": 1e3 * found.predicted,
        "predicted ms of the best preset": 1e3 * found.rivals[best],
        "best preset": best,
    }


def _paths(program: Program) -> list[str]:
    """What the arrays of a step are called."""
    return [
        f"{argument}/{jax.tree_util.keystr(way, simple=True, separator='/')}"
        for argument, tree in zip(("params", "momentum", "batch"), program.arguments, strict=True)
        for way, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def decoder(form: str, layers: int, batch: int) -> Program:
    """A decoder's training step.

    Args:
        form: `unrolled`, with parameters of each layer, or `scanned`, with parameters stacked over layers.
        layers: how many.
        batch: sequences.
    """
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys("qkv", (WIDTH, HEADS, HEAD)),
        "o": (HEADS, HEAD, WIDTH),
        "w1": (WIDTH, HIDDEN),
        "w2": (HIDDEN, WIDTH),
    }
    tokens = Shape((batch, LENGTH, WIDTH), jnp.bfloat16)
    if form == "unrolled":
        params = [{name: weight(*shape) for name, shape in shapes.items()} for _ in range(layers)]
        return Program(form, _unrolled, params, tokens, {})
    stacked = {name: weight(layers, *shape) for name, shape in shapes.items()}
    return Program(form, _scanned, stacked, tokens, {})


def _layer(p: Any, x: Any) -> Any:
    x = x + attention(p, norm(x))
    return x + jax.nn.gelu(norm(x) @ p["w1"]) @ p["w2"]


def _unrolled(params: Any, x: Any, place: Place) -> Any:
    for layer in params:
        x = place(_layer(layer, x))
    return mean_square(x)


def _scanned(params: Any, x: Any, place: Place) -> Any:
    x, _ = jax.lax.scan(lambda x, layer: (place(_layer(layer, x)), None), x, params)
    return mean_square(x)


def _short(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(x)
