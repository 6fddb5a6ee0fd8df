"""Collectives of compiled programs, read from their texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.parallel.aot.cycles import estimated_cycles, seconds
from lepton_jax.parallel.aot.groups import axes_of, chain, replica_groups
from lepton_jax.parallel.aot.hlo import CompiledCollective, collectives, totals
from lepton_jax.parallel.aot.text import arrays, parse
from lepton_jax.parallel.collectives import Collective
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.targets.chips import get_chip
from tests.parallel._texts import CPU_SCAN, GPU_ASYNC, TPU_ASYNC, TPU_SLICES

MESH = "data=2,model=4"


def seen(found: list[CompiledCollective]) -> list[tuple[str, int, tuple[str, ...] | None, int]]:
    return [(each.kind, each.bytes, each.axes, each.times) for each in found]


def test_a_loop_on_cpu() -> None:
    found = collectives(CPU_SCAN, MESH)
    assert sorted(seen(found), key=str) == [
        ("all-gather", 4096, ("data",), 3),
        ("all-gather", 4096, ("data",), 3),
        ("all-reduce", 8192, ("model",), 3),
        ("collective-permute", 4096, ("data",), 1),
    ]
    assert totals(found) == {
        "all-reduce": (3, 24576),
        "all-gather": (6, 24576),
        "collective-permute": (1, 4096),
    }
    gathered = next(each for each in found if each.name == "all-gather")
    assert gathered.groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert (gathered.computation, gathered.op_name) == ("body", "jit(loss)/while/body/dot_general")
    assert gathered.collective() == Collective("all-gather", ("data",), 4096, 3, gathered.op_name)
    assert str(gathered) == "all-gather of f32[32,32] over data 3 times"


def test_without_a_mesh_axes_are_not_known() -> None:
    found = collectives(CPU_SCAN)
    assert {each.axes for each in found} == {None}
    assert sorted(each.size for each in found) == [2, 2, 2, 4]
    with pytest.raises(ValueError, match=r"axes of .* are not known: give collectives\(\) the mesh"):
        found[0].collective()


def test_parts_of_asynchronous_collectives_on_tpu_count_once() -> None:
    found = collectives(TPU_ASYNC, MESH)
    assert sorted(seen(found), key=str) == [
        ("all-gather", 2 << 20, ("data",), 7),
        ("collective-permute", 128 << 10, ("data",), 1),
        ("reduce-scatter", 2 << 20, ("data",), 7),  # not an all-reduce of 4 MiB
    ]
    scattered = next(each for each in found if each.kind == "reduce-scatter")
    assert scattered.shapes == ("bf16[512,1024]", "bf16[1024,512]") and scattered.dtypes == ("bf16",)
    assert scattered.op_name == "jit(loss)/transpose/dot_general"


def test_cycles_of_a_loop_count_as_often_as_it_runs() -> None:
    assert estimated_cycles(parse(TPU_ASYNC)) == 7 * 1000 + 50
    assert estimated_cycles(parse(TPU_ASYNC), {"jit(loss)/jvp()/while": 2}) == 2050
    unknown = TPU_ASYNC.replace('"estimated_cycles":"50"', f'"estimated_cycles":"{2**63 - 1}"')
    assert unknown != TPU_ASYNC and estimated_cycles(parse(unknown)) == 7 * 1000
    assert estimated_cycles(parse(CPU_SCAN)) is None
    assert seconds(10**9, get_chip("v5p")) == pytest.approx(0.571, abs=1e-3)
    assert seconds(10**9, get_chip("h100")) is None


@pytest.mark.parametrize(
    ("text", "before", "after", "times"),
    [
        (CPU_SCAN, '"known_trip_count":{"n":"3"},', "", 3),  # from the condition
        (TPU_ASYNC, "%copy.16, %constant.86)", "%constant.86, %copy.16)", 7),
        (
            TPU_ASYNC,
            "%constant.86 = s32[]{:T(128)} constant(1)",
            "%constant.86 = s32[]{:T(128)} constant(2)",
            4,
        ),
        (TPU_ASYNC, "direction=LT", "direction=LE", 8),
        (
            TPU_ASYNC,
            "compare(%get-tuple-element.372, %constant.93)",
            "fusion(%get-tuple-element.372, %constant.93)",
            8,
        ),
        (TPU_ASYNC, "constant(8)", "parameter(1)", 1),  # it ends by what is computed
    ],
)
def test_trip_counts_are_read_from_conditions(text: str, before: str, after: str, times: int) -> None:
    assert before in text
    found = collectives(text.replace(before, after))
    assert {each.times for each in found if each.kind == "all-gather"} == {times}


def test_trip_counts_may_be_given() -> None:
    for key in ("while.38", "jit(loss)/jvp()/while"):
        found = collectives(TPU_ASYNC, trips={key: 30})
        assert [each.times for each in found if each.kind == "all-gather"] == [30]


def test_between_slices_data_goes_through_hosts() -> None:
    mesh = MeshSpec.of("slice=2,data=2,model=4", chip="v5e", outer=["slice"])
    found = collectives(TPU_SLICES, mesh)
    assert seen(found) == [
        ("all-reduce", 512 << 10, ("model",), 1),  # devices are numbered within a slice
        ("all-reduce", 512 << 10, ("slice",), 1),
    ]
    assert [each.outer for each in found] == [False, True]
    assert [each.size for each in collectives(TPU_SLICES)] == [4, 2]


def test_starts_on_gpu() -> None:
    found = collectives(GPU_ASYNC, MESH)
    assert seen(found) == [
        ("all-gather", 4 << 20, ("data",), 1),
        ("all-reduce", 2 << 20, ("model",), 1),
        ("all-reduce", 64, ("data", "model"), 1),  # no groups: all devices
        ("all-to-all", 64, ("data", "model"), 1),
    ]
    assert found[-1].dtypes == ("f8e4m3fn",)


def test_a_program_compiled_here() -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def exchange(x: jax.Array) -> jax.Array:
        turned = jax.lax.all_to_all(x, "model", 0, 0, tiled=True)
        moved = jax.lax.ppermute(turned, "data", [(0, 1), (1, 0)])

        def step(carry: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            part = jax.lax.psum_scatter(carry, ("data", "model"), tiled=True)
            return carry + jax.lax.psum(carry, "model"), jax.lax.all_gather(part, "data", tiled=True)

        return jax.lax.scan(step, moved, None, length=5)[1]

    spread = jax.shard_map(exchange, mesh=mesh, in_specs=P(("data", "model")), out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P(("data", "model"))))
    found = collectives(jax.jit(spread).lower(x).compile().as_text() or "", mesh)
    assert sorted(seen(found), key=str) == [
        ("all-gather", 256, ("data",), 5),
        ("all-reduce", 1024, ("model",), 5),
        ("all-to-all", 1024, ("model",), 1),
        ("collective-permute", 1024, ("data",), 1),
        ("reduce-scatter", 128, ("data", "model"), 5),
    ]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", ((0, 1), (2, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("channel_id=1", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([4]<=[2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ('_xla_send_recv_source_target_pairs="{{0,1},{1,2}}"', ((0, 1), (1, 2))),
    ],
)
def test_forms_of_replica_groups(text: str, groups: tuple[tuple[int, ...], ...]) -> None:
    assert replica_groups(text, 4) == groups


def test_groups_that_follow_no_axis() -> None:
    assert axes_of(((0, 1), (2, 3)), (2, 2), ("a", "b")) == ("b",)
    assert axes_of(((0, 9),), (2, 2), ("a", "b")) is None
    assert axes_of(((0, 1, 2), (3,)), (2, 2), ("a", "b")) == ("a", "b")
    assert (chain(((0, 1), (1, 2), (2, 0))), chain(((5, 5),)), chain(())) == (3, 1, 1)
    with pytest.raises(ValueError, match="unknown form of replica groups"):
        replica_groups("replica_groups=[what]", 4)


def test_shapes_and_texts() -> None:
    assert arrays("(pred[4]{0}, s4[3]{0}, f8e5m2[2,2]{1,0}, c64[2]{0}, bf16[<=8]{0}, token[])") == [
        ("pred[4]", 4),
        ("s4[3]", 2),
        ("f8e5m2[2,2]", 4),
        ("c64[2]", 16),
        ("bf16[<=8]", 16),
    ]
    with pytest.raises(ValueError, match="no ENTRY computation"):
        collectives("module @jit_f {}")
