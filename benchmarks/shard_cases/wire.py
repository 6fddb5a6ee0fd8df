"""Bytes on the wire in training steps for pods: Lepton's choice beside shardings by hand.

Of every sharding the plan says what it sends; compiled are `auto` and of those by hand the one that is
predicted to send the fewest bytes, the one of those that split weights, as Megatron and FSDP do, and the one
that is predicted to be the fastest. Nothing runs: these are
the bytes in the texts that XLA's compiler writes for the pods. Shardings by hand are compiled by JAX alone;
where XLA's propagation then does something else than what is predicted, through Lepton as well.

`auto` is the fastest, which need not send the fewest bytes: what hides behind arithmetic is cheap. Where
`objective="bytes"` finds other layouts than it, they have a row of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lepton_jax as lepton
from benchmarks._common import Row
from benchmarks.shard_cases._programs import LAYERS, MLP, PROGRAMS, TRANSFORMER, Program, Specs
from benchmarks.shard_cases._topology import reached
from lepton_jax.parallel.aot.hlo import CompiledCollective, collectives
from lepton_jax.parallel.aot.topologies import get_topology
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.plan import Plan

PODS: Final[Mapping[str, str]] = {
    "v5e:2x4": "data=2,model=4",
    "v5p:4x4x4": "data=16,model=4",
    "h100:1x8": "data=2,model=4",
    "h100:2x8": "data=2,model=8",
}
"""Topologies and the meshes made of them; of two nodes, `data` goes from one to the other."""

COUNTED: Final = "v5e:2x4"
"""Where all-reduces are counted: eight devices divide the heads."""

SAME: Final = 1e-3
"""Bytes that differ by no more than this part are as predicted."""

WHOLE: Final = "data parallel"
"""The sharding by hand that splits no weights."""

NOT: Final = "–"
"""What was not measured."""

FIGURES: Final = ("predicted MB", "compiled MB", "compiled MB by Lepton", "predicted ms")

OBJECTIVES: Final[Mapping[str, str]] = {"time": "auto", "bytes": "auto, fewest bytes"}
"""What `auto` looks for, and what it is called then."""

QUICK: Final[Mapping[str, str]] = {"cpu:8": "data=2,model=4"}


def measure(quick: bool) -> list[Row]:
    """Megabytes that one device sends in a step, its memory and its time, predicted and compiled."""
    rows = []
    for pod, axes in (QUICK if quick else PODS).items():
        if reached(pod) is None:
            continue
        for program in (MLP,) if quick else PROGRAMS:
            rows += compared(pod, axes, program)
        rows += counted(pod) if pod == COUNTED else []
    return rows


def compared(pod: str, axes: str, program: Program) -> list[Row]:
    """The rows of a program on a pod: those by hand, `auto`, and `auto` by bytes where that is another.

    Args:
        pod: the topology.
        axes: of the mesh, in words.
        program: what to spread.
    """
    topology = get_topology(pod)
    mesh, spec = topology.mesh(axes), topology.spec(axes)
    program = program.on(spec.devices)
    rows: list[Row] = []
    hands: list[Specs] = []
    for name, specs in program.by_hand.items():
        try:
            plan = through_lepton(program, specs, mesh).plan(*program.arguments)
        except ValueError as error:  # an axis that does not divide the heads
            print(f"{pod}, {program.name}, by hand: {name}: {error}")
            continue
        hands.append(specs)
        rows.append(_row(pod, program, f"by hand: {name}", plan, spec))
    split = [row for row in rows if row["sharding"] != f"by hand: {WHOLE}"]
    least = [min(rows, key=lambda row: float(row[column])) for column in ("predicted MB", "predicted ms")]
    least.append(min(split, key=lambda row: float(row["predicted MB"])))
    fastest = min(float(row["predicted ms"]) for row in rows)
    for row, specs in zip(rows, hands, strict=True):
        if row in least:
            _compile(row, by_hand(program, specs, mesh).compile, "compiled MB")
            predicted, compiled = float(row["predicted MB"]), float(row["compiled MB"])
            if abs(compiled - predicted) > SAME * predicted:
                lowered = through_lepton(program, specs, mesh).lower(*program.arguments)
                _compile(row, lowered.compile, "compiled MB by Lepton")
        print(_line(row), flush=True)
    solved: list[Plan] = []
    for objective, name in OBJECTIVES.items():
        start = time.perf_counter()
        shard = lepton.Sharding(preset="auto", objective=objective)
        f = lepton.optimize(program.step(), "none", mesh=mesh, shard=shard, donate_argnums=(0, 1))
        plan = f.plan(*program.arguments)
        if any(plan.layouts == other.layouts for other in solved):
            continue
        solved.append(plan)
        row = _row(pod, program, name, plan, spec)
        row["seconds to decide"] = time.perf_counter() - start
        _compile(row, f.lower(*program.arguments).compile, "compiled MB by Lepton")
        row["MB by the least by hand"] = _ratio(row, least)
        row["MB by the least that splits weights"] = _ratio(row, [each for each in least if each in split])
        row["ms by the least by hand"] = row["predicted ms"] / fastest
        print(_line(row), flush=True)
        rows.append(row)
    return rows


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


def through_lepton(program: Program, specs: Specs, mesh: Mesh) -> Any:
    """A step with these shardings, told to Lepton."""
    params, momentum, batch = program.arguments
    patterns = _patterns("batch", batch, lambda _, x: _batch_spec(specs, x))
    for argument, tree in (("params", params), ("momentum", momentum)):
        patterns |= _patterns(argument, tree, lambda way, x: _spec(specs, way, x))
    step = program.step(_placing(specs, mesh))
    return lepton.optimize(step, "none", mesh=mesh, shard=patterns, donate_argnums=(0, 1))


def counted(pod: str) -> list[Row]:
    """The all-reduces in the gradient of a transformer of L layers, beside those that Alpa's tests demand.

    Tensor parallelism over the only axis takes 4L - 1; beside a second axis one more, for all gradients;
    with everything split over all devices (ZeRO-3) there is none (Zheng et al., 2022; the tests of its
    `shard_parallel`).

    Args:
        pod: the topology.
    """
    topology, axes, count = get_topology(pod), PODS[pod], 4 * LAYERS
    megatron = TRANSFORMER.by_hand["Megatron"]
    line = {**megatron, "batch": PartitionSpec(), "activations": PartitionSpec()}
    cases: list[tuple[str, str, Specs, int]] = [
        ("Megatron, one axis: 4L - 1", f"model={topology.spec(axes).devices}", line, count - 1),
        ("Megatron, two axes: 4L", axes, megatron, count),
        ("ZeRO-3: none", axes, TRANSFORMER.by_hand["FSDP"], 0),
    ]
    rows: list[Row] = []
    for name, each, specs, expected in cases:
        mesh, spec = topology.mesh(each), topology.spec(each)
        f = _gradient(specs, mesh)
        compiled = f.lower(TRANSFORMER.params, TRANSFORMER.batch).compile().as_text()
        predicted = f.plan(TRANSFORMER.params, TRANSFORMER.batch).collectives
        rows.append(
            {
                "pod": pod,
                "gradient of the transformer": name,
                "mesh": str(spec),
                "all-reduces by Alpa": expected,
                "predicted": sum(one.times for one in predicted if one.kind == "all-reduce"),
                "compiled": sum(one.times for one in collectives(compiled) if one.kind == "all-reduce"),
            }
        )
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def _gradient(specs: Specs, mesh: Mesh) -> Any:
    """The gradient of the transformer with these shardings, by Lepton."""
    patterns = _patterns("params", TRANSFORMER.params, lambda way, x: _spec(specs, way, x))
    patterns |= _patterns("batch", TRANSFORMER.batch, lambda _, x: _batch_spec(specs, x))

    def gradient(params: Any, batch: Any) -> Any:
        return jax.grad(lambda params: TRANSFORMER.loss(params, batch, _placing(specs, mesh)))(params)

    return lepton.optimize(gradient, "none", mesh=mesh, shard=patterns)


def _patterns(
    argument: str, tree: Any, spec: Callable[[Any, Any], PartitionSpec]
) -> dict[str, PartitionSpec]:
    """The shardings of an argument by the paths of its arrays."""
    found = {}
    for way, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = (argument, jax.tree_util.keystr(way, simple=True, separator="/"))
        found["/".join(filter(None, names))] = spec(way, leaf)
    return found


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
        "compiled MB": NOT,
        "compiled MB by Lepton": NOT,
        "predicted GB of memory": plan.memory["peak"] / 1e9,
        "compiled GB of memory": NOT,
        "predicted ms": 1e3 * plan.seconds["seconds"],
        "MB by the least by hand": NOT,
        "MB by the least that splits weights": NOT,
        "ms by the least by hand": NOT,
        "seconds to decide": NOT,
    }


def _ratio(row: Row, others: Sequence[Row]) -> float:
    """What a row sends, as compiled, by the least that others do."""
    columns = ("compiled MB", "compiled MB by Lepton")
    sent = min(float(each[name]) for each in others for name in columns if each[name] != NOT)
    mine = float(row["compiled MB by Lepton"])
    return mine / sent if sent else float(mine == 0)


def _compile(row: Row, compile_: Callable[[], Any], column: str) -> None:
    compiled = compile_()
    found = [_alone(each) for each in collectives(compiled.as_text())]
    row[column] = sum(each.sent(group) * each.times for each, group in found) / 1e6
    row["compiled GB of memory"] = compiled.memory_analysis().peak_memory_in_bytes / 1e9


def _line(row: Row) -> str:
    """A row on the way to the table, to see that it goes on."""
    figures = {name: row[name] for name in FIGURES}
    shown = (f"{name} {x:.4g}" for name, x in figures.items() if not isinstance(x, str))
    return f"{row['pod']}, {row['program']}, {row['sharding']}: {', '.join(shown)}"
