"""Bytes on the wire in training steps for pods: shardings by hand, presets and Lepton's own choice."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lepton_jax as lepton
from benchmarks._common import Row
from benchmarks.shard_cases._programs import MLP, PROGRAMS, Program, Specs
from lepton_jax.parallel.aot.hlo import CompiledCollective, collectives
from lepton_jax.parallel.aot.topologies import TopologyError, get_topology
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec

PODS: Final[Mapping[str, str]] = {"v5e:2x4": "data=2,model=4", "v5p:4x4x4": "data=16,model=4"}
"""Topologies and the meshes made of them."""


def measure(quick: bool) -> list[Row]:
    """Megabytes that one device sends in a step, as predicted and as compiled, and its memory."""
    rows = []
    for name, axes in {"cpu:8": "data=2,model=4"}.items() if quick else PODS.items():
        try:
            topology = get_topology(name)
        except TopologyError as error:
            print(f"not measured: {error}")
            continue
        mesh, spec = topology.mesh(axes), topology.spec(axes)
        for program in (MLP,) if quick else PROGRAMS:
            rows += _rows(name, program, mesh, spec)
    return rows


def _rows(pod: str, program: Program, mesh: Mesh, spec: MeshSpec) -> list[Row]:
    rows = []
    for name, specs in program.by_hand.items():
        compiled = by_hand(program, specs, mesh).compile()
        rows.append(_row(pod, program, f"by hand: {name}", compiled))
        print(rows[-1], flush=True)
    start = time.perf_counter()
    f = lepton.optimize(program.step(), "none", mesh=mesh, shard="auto", donate_argnums=(0, 1))
    plan = f.plan(*program.arguments)
    seconds = time.perf_counter() - start
    compiled = f.lower(*program.arguments).compile()
    row = _row(pod, program, f"auto: {plan.way}", compiled)
    least = min(each["sent, MB"] for each in rows)
    row["predicted, MB"] = sum(each.sent(spec) * each.times for each in plan.collectives) / 1e6
    row["predicted memory, GB"] = plan.peak / 1e9
    row["of the least by hand"] = row["sent, MB"] / least if least else float(row["sent, MB"] == 0)
    row["seconds to decide"] = seconds
    print(row, flush=True)
    return [*rows, row]


def by_hand(program: Program, specs: Specs, mesh: Mesh) -> Any:
    """A step with these shardings, lowered."""

    def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        found = next((specs[name] for name in reversed(names) if name in specs), PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*found[: leaf.ndim]))

    def place(x: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, specs["activations"]))

    params, momentum, batch = program.arguments
    of_params = jax.tree_util.tree_map_with_path(sharding, params)
    of_batch = jax.tree.map(
        lambda leaf: NamedSharding(mesh, PartitionSpec(*specs["batch"][: leaf.ndim])), batch
    )
    step = jax.jit(
        program.step(place),
        in_shardings=(of_params, of_params, of_batch),
        out_shardings=(of_params, of_params, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=(0, 1),
    )
    return step.lower(params, momentum, batch)


def _alone(each: CompiledCollective) -> tuple[Collective, MeshSpec]:
    """A collective over a mesh of the devices that exchange, which need not follow the program's mesh."""
    return Collective(each.kind, ("group",), each.bytes, each.times), MeshSpec.of({"group": each.size}, "cpu")


def _row(pod: str, program: Program, name: str, compiled: Any) -> Row:
    found = [_alone(each) for each in collectives(compiled.as_text())]
    memory = compiled.memory_analysis()
    return {
        "pod": pod,
        "program": program.name,
        "sharding": name,
        "sent, MB": sum(each.sent(group) * each.times for each, group in found) / 1e6,
        "collectives": sum(each.times for each, _ in found),
        "memory, GB": memory.peak_memory_in_bytes / 1e9,
        "predicted, MB": "–",
        "predicted memory, GB": "–",
        "of the least by hand": "–",
        "seconds to decide": "–",
    }
