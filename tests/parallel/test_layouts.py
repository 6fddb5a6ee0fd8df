"""Layouts and meshes, and every error that they raise."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec

MESH = MeshSpec.of("data=2,model=4", chip="v5e")
FLOATS = SimpleNamespace(shape=(8, 12), dtype=np.dtype("float32"))


@pytest.mark.parametrize(
    ("spec", "ndim", "layout", "text"),
    [
        (P(), 2, Layout(((), ())), "[-, -]"),
        (P("data"), 2, Layout((("data",), ())), "[data, -]"),
        (P(None, "model"), 2, Layout(((), ("model",))), "[-, model]"),
        (P(("data", "model")), 1, Layout((("data", "model"),)), "[data+model]"),
        (P(), 0, Layout(()), "[]"),
    ],
)
def test_a_layout_is_a_partition_spec(spec: P, ndim: int, layout: Layout, text: str) -> None:
    assert Layout.from_spec(spec, ndim) == layout
    assert layout.spec() == spec
    assert str(layout) == text
    assert layout.ndim == ndim


def test_what_a_layout_says() -> None:
    layout = Layout((("data",), ("model",)))
    assert layout.axes == ("data", "model")
    assert layout.shards(MESH) == 8
    assert layout.local_shape((8, 12), MESH) == (4, 3)
    assert layout.local_shape((7, 9), MESH) == (4, 3), "the largest of parts that do not divide"
    assert layout.local_bytes(FLOATS, MESH) == 4 * 3 * 4
    assert layout.divides((8, 12), MESH)
    assert not layout.divides((8, 10), MESH)
    assert not layout.is_whole
    assert Layout.whole(2).is_whole
    assert Layout.whole(2) == Layout(((), ()))


def test_a_partial_layout() -> None:
    partial = Layout((("data",), ()), partial=("model",))
    assert str(partial) == "[data, -] sum over model"
    assert partial.complete() == Layout((("data",), ()))
    assert partial.complete().complete() is not partial
    assert not Layout(((),), ("model",)).is_whole
    assert partial.spec() == P("data")
    assert partial.local_bytes(FLOATS, MESH) == 4 * 12 * 4
    partial.check((8, 12), MESH)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda: Layout.from_spec(P("data", "model"), 1), "has 2 entries; the array has 1 dimensions"),
        (lambda: Layout.from_spec(P("data", ("model", "data")), 2), "uses the mesh axis 'data' twice"),
        (lambda: Layout.whole(1).check((2, 3), MESH, "w"), r"\[-\] is for 1 dimensions; w has 2"),
        (
            lambda: Layout((("data",), ("data",))).check((2, 2), MESH, "w"),
            "of w uses the mesh axis 'data' twice",
        ),
        (
            lambda: Layout((("data",),), ("data",)).check((2,), MESH),
            "of the array uses the mesh axis 'data' twice",
        ),
        (
            lambda: Layout((("fsdp",),)).check((2,), MESH),
            "'fsdp' is not an axis of the mesh; its axes are data, model",
        ),
        (
            lambda: Layout(((), ("model",))).check((8, 11), MESH, "params/w"),
            "dimension 1 of params/w has size 11, which the 4 devices along model do not divide; 12 they do",
        ),
        (
            lambda: Layout((("data", "model"),)).check((3,), MESH),
            "which the 8 devices along data[+]model do not divide; 8 they do",
        ),
        (lambda: MeshSpec.of("data=2,model"), "a mesh in words is as 'data=2,model=4', not 'data=2,model'"),
        (lambda: MeshSpec.of("data=2,data=4"), "the mesh 'data=2,data=4' names the axis 'data' twice"),
        (lambda: MeshSpec.of("data=x"), "a mesh in words"),
        (lambda: MeshSpec.of({"data": 0}), "sizes of at least 1, not 'data'=0"),
        (lambda: MeshSpec.of({"": 2}), "have names and sizes of at least 1, not ''=2"),
        (
            lambda: MeshSpec.of("data=2", chip="v5e", outer=["slice"]),
            "'slice' is not an axis of the mesh; its axes are data",
        ),
        (lambda: MeshSpec.of("data=2", chip="abacus"), "abacus"),
        (lambda: MESH.axis("expert"), "'expert' is not an axis of the mesh; its axes are data, model"),
        (lambda: MESH.size("data", "expert"), "'expert' is not an axis"),
    ],
)
def test_errors_name_the_mistake(fails: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fails()


def test_a_mesh_in_words_in_numbers_and_from_jax() -> None:
    devices = np.array(jax.devices()).reshape(2, 4)
    concrete = jax.sharding.Mesh(devices, ("data", "model"))
    abstract = jax.sharding.AbstractMesh((2, 4), ("data", "model"))
    for mesh in ("data=2, model=4", {"data": 2, "model": 4}, concrete, abstract):
        found = MeshSpec.of(mesh)
        assert str(found) == "data=2,model=4"
        assert (found.names, found.devices, found.size(), found.size("model")) == (("data", "model"), 8, 1, 4)
        assert found.chip.name == "cpu"


def test_links_of_axes() -> None:
    mesh = MeshSpec.of("slice=2,data=16,model=4", chip="v5e", outer=["slice"])
    assert mesh.axis("slice").link == mesh.chip.outer
    assert mesh.axis("data").link == mesh.chip.inner
    assert [axis.wraps for axis in mesh.axes] == [False, True, False]


@pytest.mark.parametrize(
    ("platform", "kind", "chip"),
    [
        ("tpu", "TPU v5p", "v5p"),
        ("tpu", "TPU v9", "v5e"),
        ("gpu", "NVIDIA H200", "h200"),
        ("gpu", "NVIDIA A100", "h100"),
    ],
)
def test_the_chip_of_a_mesh(monkeypatch: pytest.MonkeyPatch, platform: str, kind: str, chip: str) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform=platform, device_kind=kind)])
    assert MeshSpec.of("data=8").chip.name == chip
