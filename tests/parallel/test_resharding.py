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
    # For CPUs XLA keeps the sum and its slice apart, and for TPUs where lanes are not filled.
    assert kinds(partial, Layout((("b",), (), ())), TWO) == [("all-reduce", ("b",), WHOLE)]
    assert kinds(partial, Layout(((), (), ("b",)))) == [("all-reduce", ("b",), WHOLE)]
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
