"""Nodes of GPUs: compiled ahead of time where JAX's CUDA plug-in is, and what is said of their memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import lepton_jax as lepton
from lepton_jax.parallel.aot.compile import compile_for
from lepton_jax.parallel.aot.hlo import totals
from lepton_jax.parallel.aot.topologies import get_topology, why_not
from lepton_jax.parallel.meshes import MeshSpec, slice_of
from lepton_jax.parallel.multislice import outer_axes, slices_of
from lepton_jax.targets.chips import get_chip

needs_plugin = pytest.mark.skipif(bool(why_not("h100:2x2")), reason=why_not("h100:2x2"))


def test_what_a_gpu_has_is_not_all_given_to_programs() -> None:
    chip = dataclasses.replace(get_chip("h100"), memory=1000)
    small = dataclasses.replace(get_topology("cpu:1"), platform="gpu", chip=chip)
    for count, said in ((50, 0), (110, 1), (140, 1)):
        args = (jax.ShapeDtypeStruct((count,), jnp.float32),)
        found = compile_for(jax.jit(lambda x: x * 2).trace(*args).lower(), args, small)
        assert found.fits == (count < 125) and len(found.advice) >= said
        assert any("XLA_CLIENT_MEM_FRACTION=0.8" in text for text in found.advice) == (count == 110)


def test_where_a_device_stands() -> None:
    @dataclasses.dataclass(frozen=True)
    class Client:
        runtime_type: str

    @dataclasses.dataclass(frozen=True)
    class Device:
        platform: str
        client: Client
        process_index: int
        slice_index: int = 0

    absent, there = Client("compile_only_runtime"), Client("stream_executor")
    nodes = [Device("gpu", absent, i // 2) for i in range(4)]
    assert [slice_of(each) for each in nodes] == [0, 0, 1, 1] and slices_of(nodes) == {0, 1}
    assert slice_of(Device("gpu", there, 3, 1)) == 1 and slice_of(Device("tpu", absent, 3, 1)) == 1


@needs_plugin
def test_nodes_are_known_and_bytes_are_as_predicted() -> None:
    topology = get_topology("h100:2x2")
    mesh = topology.mesh("slice=2,data=2")
    assert [axis.link.kind for axis in MeshSpec.of(mesh).axes] == ["infiniband", "nvlink"]
    assert outer_axes(mesh) == ("slice",)

    def step(ws: Any, x: Any) -> Any:
        def loss(ws: Any) -> Any:
            h, _ = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, ws)
            return (h.astype(jnp.float32) ** 2).mean()

        return jax.tree.map(lambda w, g: w - g, ws, jax.grad(loss)(ws))

    args = (
        jax.ShapeDtypeStruct((4, 512, 512), jnp.bfloat16),
        jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16),
    )
    for axes in ("slice=2,data=2", "slice=2,data=1,model=2"):
        f = lepton.optimize(step, "none", params="ws", mesh=topology.mesh(axes), shard="fsdp")
        found = compile_for(f, args, topology, axes)
        plan = {kind: size for kind, (_, size) in totals(f.plan(*args).collectives).items()}
        assert {kind: size for kind, (_, size) in totals(found.collectives).items() if size > 4} == plan
