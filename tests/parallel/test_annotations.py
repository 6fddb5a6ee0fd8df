"""Specs by patterns, logical names, and meshes over several slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from lepton_jax import Sharding
from lepton_jax.parallel.annotations import OPEN, Annotator, matched, rules_of, shown, spec_of
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.multislice import create_mesh, outer_axes

MESH = MeshSpec.of("replica=2,data=2,model=4", chip="v5e")


@pytest.mark.parametrize(
    ("written", "dims"),
    [
        (None, ((), ())),
        (P(), ((), ())),
        ("data", (("data",), ())),
        (P(None, "model"), ((), ("model",))),
        (("data", "model"), (("data",), ("model",))),
        (P(("replica", "data"), None), (("replica", "data"), ())),
        (["embed", "mlp"], ((), ("model",))),
        (("batch",), (("replica", "data"), ())),
        (("heads", "kv"), (("model",), ())),  # the rule's axis is taken: the next rule, which is none
        (P("data", OPEN), (("data",), ())),
    ],
)
def test_specs(written: Any, dims: Any) -> None:
    rules = rules_of(
        [
            ("embed", None),
            ("mlp", "model"),
            ("batch", ("replica", "data")),
            ("heads", "model"),
            ("kv", "model"),
        ]
    )
    assert Annotator(MESH, rules).layout(spec_of(written, "x"), (8, 16), "x") == Layout(dims)


def test_what_is_open_is_known() -> None:
    annotator = Annotator(MESH)
    assert annotator.entries(spec_of(P(OPEN, "model"), "x"), 3, "x") == (None, ("model",), ())
    assert (
        shown(spec_of(P("data", None, ("replica", "model")), "x")) == "P('data', None, ('replica', 'model'))"
    )


def test_the_first_rule_with_free_axes_holds() -> None:
    rules = rules_of([("embed", "model"), ("embed", "data")])
    found = Annotator(MESH, rules).layout(spec_of(("embed", "embed"), "w"), (8, 8), "w")
    assert found == Layout((("model",), ("data",)))


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        (
            P("modle"),
            (8,),
            r"'modle' in the spec of w is not an axis .* did you mean 'model'\? .* needs a rule",
        ),
        (("batch",), (8,), r"'batch' in the spec of w is not an axis .*rules=\{'batch': None\}"),
        (("wrong",), (8,), r"'rows' in the rule of 'wrong' is not an axis"),
        (
            P("data", None, None),
            (8, 8),
            r"w has 2 dimensions, its spec P\('data', None, None\) has 3 .* leave out 1",
        ),
        (P("data", "data"), (8, 8), "splits two dimensions along 'data'"),
        (P(None, "model"), (8, 30), "size 30 in dimension 1, .* axis 'model' of size 4 .* 28 or 32 would do"),
        (P(("data", "model")), (6,), "axes 'data' and 'model' of size 8 .* a size of 8 would do"),
    ],
)
def test_mistakes_are_named(spec: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Annotator(MESH, rules_of({"wrong": "rows"})).layout(spec_of(spec, "w"), shape, "w")


@pytest.mark.parametrize("written", [3, {"a": 1}, (1, None), (("data", 2),), P("data", unreduced={"model"})])
def test_what_is_no_spec_is_refused(written: Any) -> None:
    with pytest.raises(TypeError, match=r"shard: .*neither a name|shard: the spec of w is"):
        spec_of(written, "w")


@pytest.mark.parametrize("shard", [[P("data")], P("data"), 3])
def test_what_is_neither_a_preset_nor_a_dictionary_is_refused(shard: Any) -> None:
    with pytest.raises(TypeError, match=r"neither a preset nor a saved plan; specs stand in a dictionary"):
        Sharding.of(shard)


@pytest.mark.parametrize("rules", [["embed"], [("mlp", "data", "model")]])
def test_rules_are_pairs(rules: Any) -> None:
    with pytest.raises(TypeError, match=r"is not a pair of a logical name and what it stands for"):
        rules_of(rules)


def test_patterns() -> None:
    paths = ["params/a/kernel", "params/a/bias", "params/b/kernel", "x"]
    specs = {
        name: spec_of(spec, name)
        for name, spec in {".../kernel": "model", "x": "data", "params/b": None}.items()
    }
    assert matched(specs, paths) == {0: (("model",),), 2: (), 3: (("data",),)}
    with pytest.raises(ValueError, match=r"shard: '\.\.\./scale' matches none of the arrays params/a/kernel"):
        matched({".../scale": ()}, paths)


@dataclass(eq=False)
class Device:
    """What JAX says of a device."""

    id: int
    process_index: int
    platform: str
    device_kind: str = "H100"
    slice_index: int | None = None


def _devices(slices: int, each: int, platform: str = "gpu") -> list[Any]:
    return [
        Device(i, i // each, platform, slice_index=i // each if platform == "gpu" else None)
        for i in range(slices * each)
    ]


def test_meshes_over_slices() -> None:
    mesh = create_mesh("data=2,model=2", outer={"data": 2})  # one process: the devices are cut in order
    assert dict(mesh.shape) == {"data": 4, "model": 2} and mesh.axis_types == (AxisType.Auto,) * 2
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    assert ids.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] and outer_axes(mesh) == ()
    assert outer_axes(mesh.abstract_mesh) == ()

    mesh = create_mesh("model=4", outer="slices=2", devices=_devices(2, 4))
    where = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert dict(mesh.shape) == {"model": 4, "slices": 2}
    assert (where == [0, 1]).all() and outer_axes(mesh) == ("slices",)

    mixed = create_mesh({"data": 2, "model": 2}, outer={"data": 2}, devices=_devices(2, 4))
    where = np.vectorize(lambda device: device.slice_index)(mixed.devices)
    assert where.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]] and outer_axes(mixed) == ("data",)
    assert MeshSpec.of(mesh, outer=outer_axes(mesh)).axis("slices").link.kind == "infiniband"


def test_processes_on_cpu_are_slices() -> None:
    devices = _devices(2, 2, "cpu")
    mesh = create_mesh("model=2", outer={"data": 2}, devices=devices)
    assert outer_axes(mesh) == ("data",)
    assert outer_axes(Mesh(np.array(devices[:2]), ("model",))) == ()


def test_meshes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 slices of 8 devices are 16; there are 8"):
        create_mesh("model=8", outer={"data": 2})
    with pytest.raises(ValueError, match="the devices stand in 4 slices, outer= says 2"):
        create_mesh("model=4", outer={"data": 2}, devices=_devices(4, 2))
    assert dict(create_mesh("model=4", devices=jax.devices()[:4]).shape) == {"model": 4}
