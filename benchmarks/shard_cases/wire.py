"""Bytes on the wire in training steps for pods: Lepton's choice beside shardings by hand.

Of every sharding the plan says what it sends; compiled are `auto` and of those by hand the one that is
predicted to send the fewest bytes and the one that is predicted to be the fastest. Nothing runs: these are
the bytes in the texts that XLA's compiler writes for the pods.

`auto` is the fastest, which need not send the fewest bytes: what hides behind arithmetic is cheap, and a step
that every device computes whole sends nothing at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from lepton_jax.parallel.plan import Plan

PODS: Final[Mapping[str, str]] = {"v5e:2x4": "data=2,model=4", "v5p:4x4x4": "data=16,model=4"}
"""Topologies and the meshes made of them."""

QUICK: Final[Mapping[str, str]] = {"cpu:8": "data=2,model=4"}


def measure(quick: bool) -> list[Row]:
    """Megabytes that one device sends in a step, its memory and its time, predicted and compiled."""
    rows = []
    for pod, axes in (QUICK if quick else PODS).items():
        try:
            get_topology(pod)
        except TopologyError as error:
            print(f"not measured: {error}")
            continue
        for program in (MLP,) if quick else PROGRAMS:
            rows += compared(pod, axes, program)
    return rows


def compared(pod: str, axes: str, program: Program) -> list[Row]:
    """The rows of a program on a pod; `auto` is the last.

    Args:
        pod: the topology.
        axes: of the mesh, in words.
        program: what to spread.
    """
    topology = get_topology(pod)
    mesh, spec = topology.mesh(axes), topology.spec(axes)
    rows: list[Row] = []
    for name, specs in program.by_hand.items():
        rows.append(_row(pod, program, f"by hand: {name}", _plan_by_hand(program, specs, mesh), spec))
    least = [min(rows, key=lambda row: float(row[column])) for column in ("predicted MB", "predicted ms")]
    for row, specs in zip(rows, program.by_hand.values(), strict=True):
        if row in least:
            _compile(row, by_hand(program, specs, mesh).compile)
        print(_line(row), flush=True)
    start = time.perf_counter()
    f = lepton.optimize(program.step(), "none", mesh=mesh, shard="auto", donate_argnums=(0, 1))
    plan = f.plan(*program.arguments)
    row = _row(pod, program, "auto", plan, spec)
    row["seconds to decide"] = time.perf_counter() - start
    _compile(row, f.lower(*program.arguments).compile)
    sent = min(float(each["compiled MB"]) for each in least)
    row["MB by the least by hand"] = row["compiled MB"] / sent if sent else float(row["compiled MB"] == 0)
    row["ms by the least by hand"] = row["predicted ms"] / min(float(each["predicted ms"]) for each in rows)
    print(_line(row), flush=True)
    return [*rows, row]


def by_hand(program: Program, specs: Specs, mesh: Mesh) -> Any:
    """A step with these shardings by JAX alone, lowered."""
    params, momentum, batch = program.arguments

    def placed(tree: Any, spec: Callable[[Any, Any], PartitionSpec]) -> Any:
        return jax.tree_util.tree_map_with_path(lambda way, x: NamedSharding(mesh, spec(way, x)), tree)

    of_params = placed(params, lambda way, x: _spec(specs, way, x))
    of_batch = placed(batch, lambda _, x: _batch_spec(specs, x))
    step = jax.jit(
        program.step(_placing(specs, mesh)),
        in_shardings=(of_params, of_params, of_batch),
        out_shardings=(of_params, of_params, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=(0, 1),
    )
    return step.lower(params, momentum, batch)


def _plan_by_hand(program: Program, specs: Specs, mesh: Mesh) -> Plan:
    """What Lepton predicts of a step with these shardings."""
    patterns: dict[str, PartitionSpec] = {}
    for argument, tree in zip(("params", "momentum", "batch"), program.arguments, strict=True):
        for way, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            path = "/".join(filter(None, (argument, jax.tree_util.keystr(way, simple=True, separator="/"))))
            is_batch = argument == "batch"
            patterns[path] = _batch_spec(specs, leaf) if is_batch else _spec(specs, way, leaf)
    step = program.step(_placing(specs, mesh))
    f = lepton.optimize(step, "none", mesh=mesh, shard=patterns, donate_argnums=(0, 1))
    return f.plan(*program.arguments)


def _placing(specs: Specs, mesh: Mesh) -> Callable[[Any], Any]:
    return lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, specs["activations"]))


def _spec(specs: Specs, way: Sequence[Any], leaf: Any) -> PartitionSpec:
    """What is said of a parameter by the last of its names that something is said of."""
    names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in way]
    found = next((specs[name] for name in reversed(names) if name in specs), PartitionSpec())
    return PartitionSpec(*found[: leaf.ndim])


def _batch_spec(specs: Specs, leaf: Any) -> PartitionSpec:
    return PartitionSpec(*specs["batch"][: leaf.ndim])


def _alone(each: CompiledCollective) -> tuple[Collective, MeshSpec]:
    """A collective over a mesh of the devices that exchange, which need not follow the program's mesh."""
    return Collective(each.kind, ("group",), each.bytes, each.times), MeshSpec.of({"group": each.size}, "cpu")


def _row(pod: str, program: Program, name: str, plan: Plan, spec: MeshSpec) -> Row:
    return {
        "pod": pod,
        "program": program.name,
        "sharding": name,
        "predicted MB": sum(each.sent(spec) * each.times for each in plan.collectives) / 1e6,
        "compiled MB": "–",
        "predicted GB of memory": plan.memory["peak"] / 1e9,
        "compiled GB of memory": "–",
        "predicted ms": 1e3 * plan.seconds["seconds"],
        "MB by the least by hand": "–",
        "ms by the least by hand": "–",
        "seconds to decide": "–",
    }


def _compile(row: Row, compile_: Callable[[], Any]) -> None:
    compiled = compile_()
    found = [_alone(each) for each in collectives(compiled.as_text())]
    row["compiled MB"] = sum(each.sent(group) * each.times for each, group in found) / 1e6
    row["compiled GB of memory"] = compiled.memory_analysis().peak_memory_in_bytes / 1e9


def _line(row: Row) -> str:
    """A row on the way to the table, to see that it goes on."""
    figures = {name: row[name] for name in ("predicted MB", "compiled MB", "predicted ms")}
    shown = (f"{name} {x:.4g}" for name, x in figures.items() if not isinstance(x, str))
    return f"{row['pod']}, {row['program']}, {row['sharding']}: {', '.join(shown)}"
