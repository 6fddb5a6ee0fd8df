"""Compiling ahead of time, on CPU devices, and for TPUs where libtpu is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from benchmarks.shard_cases import pods
from lepton_jax.cli import main
from lepton_jax.ir import _jax
from lepton_jax.parallel.aot import topologies
from lepton_jax.parallel.aot.advice import advice, out_of_memory
from lepton_jax.parallel.aot.compile import compile_for
from lepton_jax.parallel.aot.hlo import totals
from lepton_jax.parallel.aot.shardy import Buffer, ShardyUnavailable
from lepton_jax.parallel.aot.topologies import TopologyError, get_topology
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.words import bytes_text
from tests.parallel._texts import OUT_OF_MEMORY, OUT_OF_MEMORY_LISTED

MESH = "data=2,model=4"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'lepton-jax[tpu]'",
)


def gradient(params: Any, x: jax.Array) -> Any:
    def loss(params: Any) -> jax.Array:
        def layer(x: jax.Array, param: Any) -> tuple[jax.Array, None]:
            return x + jax.nn.relu(x @ param["up"]) @ param["down"], None

        return (jax.lax.scan(layer, x, params)[0].astype(jnp.float32) ** 2).sum()

    return jax.grad(loss)(params)


def shapes(layers: int, batch: int, width: int, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    params = {
        "up": jax.ShapeDtypeStruct((layers, width, 4 * width), dtype),
        "down": jax.ShapeDtypeStruct((layers, 4 * width, width), dtype),
    }
    return params, jax.ShapeDtypeStruct((batch, width), dtype)


SPECS = ({"up": P(None, None, "model"), "down": P(None, "model")}, P("data"))
ABSTRACT = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def lowered(platform: str, *sizes: Any) -> Any:
    def on_mesh(leaf: Any, spec: P) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(ABSTRACT, spec))

    placed = jax.tree.map(on_mesh, shapes(*sizes), SPECS)
    return jax.jit(gradient).trace(*placed).lower(lowering_platforms=(platform,))


def test_what_a_program_needs() -> None:
    found = compile_for(gradient, shapes(3, 16, 8), "cpu:8", MESH, in_specs=SPECS)
    assert found.fits and not found.advice and found.memory is not None
    assert found.memory.arguments == 2 * 3 * 8 * 32 * 4 // 4 + 16 * 8 * 4 // 2
    assert found.memory.peak >= found.memory.arguments + found.memory.temporaries
    by_axes = {(each.kind, each.axes, each.times) for each in found.collectives}
    assert ("all-reduce", ("model",), 3) in by_axes and ("all-reduce", ("data",), 3) in by_axes
    assert found.communication_seconds > 0 and found.cycles is None and found.compute_seconds is None
    text = str(found)
    assert text.startswith("gradient for cpu:8: 8 devices, mesh data=2,model=4\nmemory per device")
    assert "of 16.0 GiB at the peak: fits" in text and "all-reduce over model: " in text
    record = json.loads(json.dumps(found.to_json()))
    assert record["totals"]["all-reduce"]["bytes"] == totals(found.collectives)["all-reduce"][1]
    assert record["mesh"] == {"data": 2, "model": 4} and record["fits"] and record["needed"] is None


def test_one_lowering_on_an_abstract_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    program = lowered("cpu", 3, 16, 8)
    found = compile_for(program, topology="cpu:8", axes=MESH)
    assert found.fits and {each.axes for each in found.collectives} == {("data",), ("model",)}

    spread = lepton.optimize(gradient, mesh=ABSTRACT, shard="dp").trace(*shapes(3, 16, 8))
    ours = compile_for(spread.lower(lowering_platforms=("cpu",)), topology="cpu:8", axes=MESH)
    assert ours.fits and {each.kind for each in ours.collectives} == {"all-reduce"}

    small = dataclasses.replace(
        get_topology("cpu:8"), chip=dataclasses.replace(found.topology.chip, memory=2000)
    )
    crowded = compile_for(program, topology=small, axes=MESH)
    assert not crowded.fits and crowded.largest[0].bytes >= crowded.largest[1].bytes
    assert "does not fit: " in str(crowded) and "advice" in str(crowded)

    def fails(message: str) -> Any:
        def compile_lowered(*_: Any) -> Any:
            raise jax.errors.JaxRuntimeError(message)

        return compile_lowered

    monkeypatch.setattr(_jax, "compile_lowered", fails(OUT_OF_MEMORY))
    short = compile_for(program, topology="cpu:8", axes=MESH)
    assert not short.fits and short.memory is None and short.collectives == ()
    assert "each device needs 25.4 GiB and has 15.8 GiB: 9.6 GiB are missing" in str(short)
    assert short.to_json()["needed"] == int(25.38 * 2**30) and short.to_json()["memory"] is None
    monkeypatch.setattr("lepton_jax.parallel.aot.compile.propagated", _without_shardy)
    assert compile_for(program, topology="cpu:8", axes=MESH).largest == ()
    monkeypatch.setattr(_jax, "compile_lowered", fails("INVALID_ARGUMENT: no"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        compile_for(program, topology="cpu:8", axes=MESH)


def _without_shardy(_: Any) -> Any:
    raise ShardyUnavailable("not here")


def test_messages_about_memory() -> None:
    short = out_of_memory(OUT_OF_MEMORY)
    assert short is not None
    assert [bytes_text(short.needed), bytes_text(short.available)] == ["25.4 GiB", "15.8 GiB"]
    listed = out_of_memory(OUT_OF_MEMORY_LISTED)
    assert listed is not None
    assert [bytes_text(listed.needed), bytes_text(listed.available)] == ["20.1 GiB", "15.5 GiB"]
    assert [(each.bytes, each.shape) for each in listed.largest] == [
        (4 << 30, "bf16[16,2048,65536]"),
        (512 << 20, "f32[128,1024,1024]"),
    ]
    assert listed.largest[0].what == "jit(step)/transpose(jvp())/dot_general"
    wanted = out_of_memory("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.00GiB.")
    assert wanted is not None and (wanted.needed, wanted.available) == (2 << 30, 0)
    assert out_of_memory("INVALID_ARGUMENT: Mosaic failed") is None
    assert bytes_text(3 << 20) == "3.0 MiB" and bytes_text(2048) == "2.0 KiB" and bytes_text(1) == "1 B"


def test_advice_names_arrays_and_options() -> None:
    mesh = MeshSpec.of(MESH, chip="v5e")
    gib = 1 << 30
    weights = Buffer(8 * gib, "bf16[64,8192,8192]", '[{}, {}, {"model"}]', "params['up']", "argument")
    kept = Buffer(
        4 * gib, "bf16[16,131072,2048]", '[{}, {"data"}, {}]', "jit(f)/jvp()/while", "collected by a loop"
    )
    back = dataclasses.replace(kept, what="jit(f)/transpose(jvp())/while")
    said = advice(2 * gib, [weights, kept, back], mesh, saved_by_donation=gib)
    assert [text.split(" ")[0] for text in said] == ["split", "compute", "take", "donate"]
    assert 'over data too (shard="fsdp"): frees up to 4.0 GiB' in said[0] and "params['up']" in said[0]
    assert "jax.checkpoint" in said[1] and "it keeps 4.0 GiB" in said[1] and "and 1 more" not in said[1]
    assert "in 4 micro-batches" in said[2] and "frees 1.0 GiB" in said[3]
    sums = dataclasses.replace(back, bytes=gib, shape="f32[64,8192,8192]")  # two: of all parts, and of each
    beside = [weights, kept, sums, dataclasses.replace(sums, kind="value")]
    taken = advice(gib, beside, mesh)[2]
    assert "in 8 micro-batches" in taken and "frees about 1.0 GiB" in taken
    assert not any("micro-batches" in text for text in advice(2 * gib, beside, mesh))
    parts = [dataclasses.replace(each, what=f"jit(f)/microbatches/while/body/{each.what}") for each in beside]
    parts.append(dataclasses.replace(kept, bytes=9 * gib, what="jit(f)/microbatches/while"))
    said = advice(gib, parts, mesh)
    assert "in 4 times as many micro-batches" in said[2] and "it keeps 4.0 GiB" in said[1]
    alone = advice(gib, [dataclasses.replace(weights, bytes=100, layout='[{"data"}, {}, {"model"}]')], mesh)
    assert alone == (
        "more devices along the axes that split the largest arrays: params['up'] bf16[64,8192,8192] (100 B)",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "no chip is called 'v9'; there are cpu, v4, v5e, v5p"),
        ("v5litepod-8", "a topology is written as one of v5e:2x4"),
        ("cpu:64", r"needs 64 CPU devices and this process has 8: set XLA_FLAGS=--xla_force_host"),
        ("cpu:0", "has no devices"),
    ],
)
def test_topologies_that_are_not(name: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        get_topology(name)
    assert topologies.why_not(name) and not topologies.why_not("cpu:8")


def test_compilers_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TopologyError, match=r"needs the TPU compiler: pip install 'lepton-jax\[tpu\]'"):
        get_topology("v5e:2x2")
    with pytest.raises(
        TopologyError, match=r"needs JAX's CUDA plug-in, no GPU: pip install 'lepton-jax\[cuda-aot\]'"
    ):
        get_topology("h100:1x4")


def test_meshes_of_a_topology() -> None:
    topology = get_topology("cpu:8")
    assert str(topology.spec()) == "data=8" and str(topology.spec("data,model=4")) == MESH
    assert topology.spec({"data": 2, "model": 4}).chip.name == "cpu"
    mesh = topology.mesh(MESH)
    assert mesh.axis_names == ("data", "model") and list(mesh.devices.flat) == jax.devices()[:8]
    for wrong, message in (
        ("data=3,model=4", "does not hold 8 devices"),
        ("data=a", "a mesh in words"),
        ("data:8", "a mesh in w"),
    ):
        with pytest.raises(ValueError, match=message):
            topology.spec(wrong)
    two = get_topology("cpu:4x2slices")
    assert two.slices == 2 and [axis.link.kind for axis in two.spec().axes] == ["dcn", "memory"]
    assert str(two.spec("model=4,across=2")) == "model=4,across=2"
    turned = two.mesh("model=4,across=2")
    assert [device.id for device in turned.devices[:, 0]] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="has 2 slices or nodes, and no axis of the mesh has that size"):
        two.spec("data=8")


def test_the_environment_is_left_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    topologies.prepare_environment()
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine" and os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/accel0")]))  # a real TPU
    topologies.prepare_environment()
    assert "TPU_SKIP_MDS_QUERY" not in os.environ


PROGRAM = """
import jax, jax.numpy as jnp
import lepton_jax as lepton
from jax.sharding import NamedSharding, PartitionSpec as P

def step(params, x):
    slope = jax.grad(lambda params: (jnp.tanh(x @ params["w"]) ** 2).mean())(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)

def example_args():
    return {"w": jax.ShapeDtypeStruct((16, 32), jnp.float32)}, jax.ShapeDtypeStruct((64, 16), jnp.float32)

def on_mesh(mesh):
    params, x = example_args()
    return params, jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P("data")))

def fails():
    raise KeyError("data")

def no_tuple():
    return jax.ShapeDtypeStruct((64, 16), jnp.float32)

spread = lepton.optimize(step, params="params", mesh="data=2", shard="dp", donate="auto")
"""


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "aot_program.py").write_text(PROGRAM)
    (tmp_path / "aot_broken.py").write_text("import nowhere")
    monkeypatch.chdir(tmp_path)
    on = ["--topology", "cpu:8"]
    assert main(["aot", "aot_program:step", *on, "--mesh", "data", "--args", "on_mesh"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("aot_program:step for cpu:8: 8 devices, mesh data=8\n")
    assert "all-reduce over data: 1 times, results of 2.0 KiB, 3.5 KiB sent" in out

    assert main(["aot", "aot_program:step", *on]) == 0
    assert "nothing says how to spread this function" in capsys.readouterr().out
    assert main(["aot", "aot_program:spread", *on, "--json"]) == 0  # made for two devices, compiled for eight
    record = json.loads(capsys.readouterr().out)
    assert record["devices"] == 8 and record["totals"]["all-reduce"]["bytes"] == 16 * 32 * 4
    assert record["memory"]["aliased"] == 16 * 32 * 4
    assert main(["aot", "aot_program.py:step", *on, "--preset", "fsdp", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["memory"]["arguments"] == (16 * 32 + 64 * 16) * 4 // 8

    for arguments, message in (
        (["aot_program:step", "--topology", "v9:8"], "no chip is called 'v9'"),
        (["aot_program:nothing", *on], "aot_program has no nothing"),
        (["aot_program", *on], "expected module:function"),
        (["aot_programme:step", *on], "there is no module 'aot_programme' in"),
        (["aot_broken:step", *on], "aot_broken:step failed with ModuleNotFoundError: No module"),
        (["aot_program:step", *on, "--args", "fails"], "aot_program:step failed with KeyError: 'data'"),
        (["nowhere/aot_program.py:step", *on], "there is no file nowhere/aot_program.py"),
        (["aot_program:step", *on, "--mesh", "data=3"], "does not hold 8 devices"),
        (
            ["aot_program:step", *on, "--args", "aot_program:no_tuple"],
            "it should return the arguments as a tuple",
        ),
        (["aot_program:step", *on, "--args", "aot_program:none"], r"write a function none() that returns"),
        (["aot_program:step", *on, "--preset", "zp"], "there is no preset 'zp'"),
    ):
        assert main(["aot", *arguments]) == 2
        assert message in capsys.readouterr().err


@needs_libtpu
def test_for_tpus_that_are_not_here() -> None:
    found = compile_for(lowered("tpu", 3, 64, 256, jnp.bfloat16), topology="v5e:2x4", axes=MESH)
    assert found.fits and found.cycles and found.compute_seconds  # the TPU's compiler, not the CPU's
    assert {each.axes for each in found.collectives} == {("data",), ("model",)}
    model = [each for each in found.collectives if each.axes == ("model",)]
    assert totals(model) == {"all-reduce": (6, 6 * 32 * 256 * 2)}  # three layers, there and back
    large = compile_for(lowered("tpu", 16, 1 << 20, 2048, jnp.bfloat16), topology="v5e:2x4", axes=MESH)
    assert not large.fits and large.shortage is not None and large.shortage.needed > large.shortage.available
    assert any("jax.checkpoint" in text for text in large.advice)
    with pytest.raises(TopologyError, match="libtpu knows no topology 'v5e:3x4'"):
        get_topology("v5e:3x4")
    two = get_topology("v5e:2x2x2slices")
    assert (len(two.devices), str(two.spec())) == (8, "slice=2,data=4")
    assert MeshSpec.of(two.mesh()).axis("slice").link.kind == "dcn"


def test_the_benchmark_in_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pods, "SMALL", (("cpu:8", MESH), ("cpu:64", "data=16,model=4")))
    (row,) = pods.measure(quick=True)
    assert (row["topology"], row["devices"], row["fits"]) == ("cpu:8", 8, "yes")
    assert row["arguments, GiB"] == (2 * 12 * 256 * 256 * 2 // 8 + 32 * 256 * 2) / 2**30
    assert row["all-reduce, GiB"] > 0 and row["all-gather, GiB"] > 0
    assert "not measured: cpu:64 needs 64 CPU devices" in capsys.readouterr().out


def test_slices_are_seen_on_the_devices_of_a_mesh() -> None:
    @dataclasses.dataclass(frozen=True)
    class Chip:
        id: int
        slice_index: int
        platform: str = "tpu"
        device_kind: str = "TPU v5 lite"

    def mesh(*numbers: int) -> Any:
        return jax.sharding.Mesh(np.array([Chip(i, i // 4) for i in numbers]).reshape(2, 4), ("a", "b"))

    across = MeshSpec.of(mesh(0, 1, 2, 3, 4, 5, 6, 7))
    assert [axis.link.kind for axis in across.axes] == ["dcn", "ici"] and across.chip.name == "v5e"
    assert [axis.link.kind for axis in MeshSpec.of(mesh(0, 4, 1, 5, 2, 6, 3, 7)).axes] == ["ici", "dcn"]
    assert [axis.link.kind for axis in MeshSpec.of(mesh(0, 1, 2, 3, 0, 1, 2, 3)).axes] == ["ici", "ici"]
