"""From layout to layout: the collectives that XLA compiles on eight devices, and worked-out ones."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax.parallel.aot.hlo import collectives
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.resharding import nbytes, reshard, seconds, stops
from lepton_jax.parallel.scattering import scattered

P = PartitionSpec
SHAPE = (64, 32, 16)
X = jax.ShapeDtypeStruct(SHAPE, "float32")
TWO = MeshSpec.of("a=2,b=4", chip="cpu")
THREE = MeshSpec.of("a=2,b=2,c=2", chip="cpu")
TPU = MeshSpec.of("a=2,b=4", chip="v5e")
PAIRS: dict[MeshSpec, list[tuple[P, P]]] = {
    TWO: [
        (P("a"), P()),
        (P(("a", "b")), P()),
        (P("a", "b"), P()),
        (P("a"), P(None, "a")),
        (P(("a", "b")), P("a")),
        (P(("a", "b")), P("b")),
        (P("a", "b"), P("b", "a")),
        (P(("a", "b")), P(("b", "a"))),
        (P(("a", "b")), P("a", "b")),
        (P(("a", "b")), P("b", "a")),
        (P("a", "b"), P(("a", "b"))),
        (P("a"), P("b")),
        (P("a"), P(None, "b")),
        (P("a", None, "b"), P(None, "a", "b")),
        (P(("a", "b")), P(None, ("a", "b"))),
        (P("a", "b"), P("a")),
        (P(), P("a", "b")),
        (P("a"), P("a", "b")),
    ],
    THREE: [
        (P("a"), P("b")),
        (P("a", "b"), P("b", "a")),
        (P("a", "b"), P("a", "c")),
        (P(("a", "b", "c")), P("a", ("b", "c"))),
        (P(("a", "b")), P("b")),
    ],
}


@pytest.mark.parametrize("mesh", PAIRS, ids=str)
def test_collectives_are_those_that_xla_compiles(mesh: MeshSpec) -> None:
    devices = Mesh(np.array(jax.devices()).reshape([axis.size for axis in mesh.axes]), mesh.names)
    pairs = PAIRS[mesh]
    # Each array is its own channel of one program, told apart by its number of rows.
    shapes = [(64 * (i + 1), 32, 16) for i in range(len(pairs))]
    text = (
        jax.jit(
            lambda *xs: [x * 2 for x in xs],
            in_shardings=[NamedSharding(devices, before) for before, _ in pairs],
            out_shardings=[NamedSharding(devices, after) for _, after in pairs],
        )
        .lower(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes))
        .compile()
        .as_text()
    )
    assert text is not None
    compiled = sorted((each.kind, each.bytes) for each in collectives(text, mesh))
    expected: list[tuple[str, int]] = []
    for (before, after), shape in zip(pairs, shapes, strict=True):
        aval = jax.ShapeDtypeStruct(shape, "float32")
        layouts = Layout.from_spec(before, 3), Layout.from_spec(after, 3)
        expected += [(each.kind, each.bytes) for each in reshard(aval, *layouts, mesh)]
    assert compiled == sorted(expected)


def kinds(
    before: Layout, after: Layout, mesh: MeshSpec = TPU, aval: Any = X
) -> list[tuple[str, tuple[str, ...], int]]:
    return [(each.kind, each.axes, each.bytes) for each in reshard(aval, before, after, mesh)]


WHOLE = 64 * 32 * 16 * 4


def test_parts_of_sums_are_joined_and_scattered() -> None:
    partial = Layout(((), (), ()), ("b",))
    assert kinds(partial, Layout.whole(3)) == [("all-reduce", ("b",), WHOLE)]
    assert kinds(partial, Layout((("b",), (), ()))) == [("reduce-scatter", ("b",), WHOLE // 4)]
    # For CPUs XLA keeps the sum and its slice apart.
    assert kinds(partial, Layout((("b",), (), ())), TWO) == [("all-reduce", ("b",), WHOLE)]
    assert kinds(partial, Layout(((), (), ("b",)))) == [("reduce-scatter", ("b",), WHOLE // 4)]
    both = Layout((("a",), (), ()), ("b",))
    assert kinds(both, Layout((("a", "b"), (), ()))) == [("reduce-scatter", ("b",), WHOLE // 8)]
    assert kinds(Layout(((), (), ()), ("a", "b")), Layout((("a", "b"), (), ()))) == [
        ("reduce-scatter", ("a", "b"), WHOLE // 8)
    ]
    # What some of the axes shall split is added up over the others in parts.
    assert kinds(Layout(((), (), ()), ("a", "b")), Layout((("b",), (), ()))) == [
        ("reduce-scatter", ("b",), WHOLE // 4),
        ("all-reduce", ("a",), WHOLE // 4),
    ]


@pytest.mark.parametrize(
    ("shape", "dim", "count", "slices"),
    [
        # Rows: whole tiles, an even number of them in each of equal pieces, none too large.
        ((256, 1024), 0, 4, (256,)),
        ((256, 4096), 0, 4, (264, 24)),
        ((256, 4096), 0, 8, (256,)),
        ((1024, 1024), 0, 4, (1032, 24)),
        ((1024, 4096), 0, 2, (1064, 40)),
        ((256, 8192), 0, 4, (280, 72)),
        ((800, 6016), 0, 4, (832, 96)),
        ((24, 64), 0, 4, (32, 24)),
        ((68, 2048), 0, 16, (72, 60)),
        # The last device lacks more than one part, or too much would be sent.
        ((13, 2048), 0, 16, (16, 16, 16, 13)),
        ((9, 4096), 0, 4, None),
        ((4, 4096), 0, 8, None),
        # Lanes: two halves; what does not fill them is stored the other way round.
        ((1024, 256), 1, 4, (256,)),
        ((1024, 384), 1, 4, None),
        ((1024, 128), 1, 8, None),
        ((1024, 192), 1, 4, (192,)),
        ((256, 16, 64), 0, 4, (256,)),
        ((128, 16, 64), 0, 8, None),
        ((16, 128, 4, 64), 1, 4, None),
        ((4096,), 0, 4, None),
    ],
)
def test_tpus_scatter_parts_of_whole_tiles(
    shape: tuple[int, ...], dim: int, count: int, slices: tuple[int, ...] | None
) -> None:
    """What texts compiled for v5e:2x4 and v5p:4x4x4 have for gradients of weights in bfloat16 and float32."""
    assert scattered(shape, dim, count) == slices


def test_what_scattering_in_tiles_sends() -> None:
    rows = jax.ShapeDtypeStruct((1024, 4096), "bfloat16")
    partial, row = Layout(((), ()), ("a", "b")), 4096 * 2
    goal = Layout((("b",), ()))
    assert kinds(partial, goal, aval=rows) == [
        ("reduce-scatter", ("b",), 264 * row),
        ("collective-permute", ("b",), 24 * row),
        ("all-reduce", ("a",), 256 * row),
    ]
    even = reshard(rows, partial, goal, TPU, even=True)
    assert [(each.kind, each.bytes) for each in even] == [
        ("reduce-scatter", 256 * row),
        ("all-reduce", 256 * row),
    ]
    # Reductions are added up over all axes at once, where not all of them split the result.
    whole = [("all-reduce", ("a", "b"), 1024 * row)]
    assert [(m.kind, m.axes, m.bytes) for m in reshard(rows, partial, goal, TPU, joined=True)] == whole
    odd = jax.ShapeDtypeStruct((1024, 1536), "bfloat16")
    assert kinds(partial, Layout(((), ("b",))), aval=odd) == [
        ("all-reduce", ("b",), 1024 * 1536 * 2),
        ("all-reduce", ("a",), 1024 * 384 * 2),
    ]


def test_a_sum_over_one_axis_may_stay() -> None:
    partial = Layout(((), (), ()), ("a", "b"))
    assert kinds(partial, Layout(((), (), ()), ("b",))) == [("all-reduce", ("a",), WHOLE)]
    with pytest.raises(ValueError, match="no parts of a sum over a"):
        reshard(X, Layout.whole(3), Layout(((), (), ()), ("a",)), TPU)


def test_the_way_is_told_where_it_has_several_steps() -> None:
    first, last = Layout(((), ("a", "b"), ())), Layout((("b",), (), ()))
    assert stops(X, first, last, TPU) == (Layout((("b",), ("a",), ())),)
    # One step, a slice alone, a renaming in place, parts of a sum: XLA finds these.
    assert stops(X, last, Layout(((), ("b",), ())), TPU) == ()
    assert stops(X, Layout.whole(3), last, TPU) == ()
    assert stops(X, Layout((("a",), ("b",), ())), Layout((("b",), ("a",), ())), TPU) != ()
    assert stops(X, Layout(((), (), ()), ("a",)), last, TPU) == ()


def test_truth_values_and_integers_have_their_own_size() -> None:
    for dtype, size in (("bool", 1), ("int8", 1), ("int32", 4), ("bfloat16", 2)):
        aval = jax.ShapeDtypeStruct(SHAPE, dtype)
        assert kinds(Layout(((), (), ()), ("a",)), Layout.whole(3), TPU, aval) == [
            ("all-reduce", ("a",), 64 * 32 * 16 * size)
        ]


def test_tpus_gather_all_dimensions_at_once() -> None:
    assert kinds(Layout((("a",), ("b",), ())), Layout.whole(3)) == [("all-gather", ("a", "b"), WHOLE)]


def test_axes_of_one_device_do_nothing() -> None:
    mesh = MeshSpec.of("a=1,b=4", chip="v5e")
    assert reshard(X, Layout((("a",), (), ())), Layout.whole(3), mesh) == ()
    assert reshard(X, Layout(((), (), ()), ("a",)), Layout.whole(3), mesh) == ()


def test_layouts_of_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="3 dimensions"):
        reshard(X, Layout.whole(2), Layout.whole(3), TPU)


def test_totals() -> None:
    moves = reshard(X, Layout((("a",), ("b",), ())), Layout.whole(3), TWO)
    assert nbytes(moves) == sum(each.bytes for each in moves) > WHOLE
    assert seconds(moves, TWO) == pytest.approx(sum(each.seconds(TWO) for each in moves))
