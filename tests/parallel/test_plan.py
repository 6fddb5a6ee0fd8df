"""Plans: read, drawn, saved, loaded, compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from lepton_jax.ir import trace
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.graph import Graph
from lepton_jax.parallel._plan.drawing import draw
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.plan import Plan, PlanError
from lepton_jax.parallel.prediction import predict
from lepton_jax.parallel.presets import arrange
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import roles_of

MESH = MeshSpec.of("data=2,model=4", chip="v5e")
PATHS = ("params/a", "params/b", "x")


def traced(width: int = 16, fun: Any = None) -> Graph:
    params = {"a": jnp.ones((8, width)), "b": jnp.ones((width, 8))}
    run = fun or (lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"])
    return inline_calls(trace(run, params, jnp.ones((4, 8))))


def planned(graph: Graph) -> Plan:
    roles = roles_of(graph, PATHS)
    found = arrange("tp", graph, roles, MESH)
    assignment = propagate(graph, found.layouts, MESH)
    prediction = predict(graph, assignment, MESH)
    return Plan.of(graph, PATHS, assignment, MESH, prediction, way="tp", roles=roles, notes=["b is small"])


GRAPH = traced()
PLAN = planned(GRAPH)

GOLDEN = """\
plan tp on data=2,model=4 of v5e
param params/a float32[8,16] [-, model]
param params/b float32[16,8] [model, -]
batch x float32[4,8] [data, -]
activation dot_general float32[4,16] [data, model]
activation tanh float32[4,16] [data, model]
activation dot_general float32[4,8] [data, -]
all-reduce over model of 64 bytes x1
note b is small
"""


def test_the_table_says_what_lies_where_and_what_is_sent() -> None:
    text = str(PLAN)
    for line in (
        "plan 'tp' on data=2,model=4 (8 v5e devices)",
        "parameters: 1.0 KiB, 256 B on a device",
        "  params/a  float32[8,16]  [-, model]  512 B  128 B",
        "collectives: 1, 96 B sent by a device",
        "predicted time of a run",
        "sending that computing does not hide",
        "  there are  16.0 GiB",
        "  b is small",
    ):
        assert line in text, text
    assert PLAN.seconds["communication"] > 0 and set(PLAN.memory) == {"arguments", "outputs", "peak"}
    empty = dataclasses.replace(PLAN, collectives=(), seconds={}, memory={}, notes=())
    assert "predicted" not in str(empty) and "notes" not in str(empty)


def test_alike_activations_are_one_line() -> None:
    graph = traced(fun=lambda params, x: jnp.sin(x) + jnp.sin(2 * x) + params["a"].sum() + params["b"].sum())
    plan = Plan.of(graph, PATHS, {}, MESH, most=3)
    lines = {each.name: each.count for each in plan.arrays if each.kind == "activation"}
    assert lines["sin"] == 2 and len(lines) == 3 and plan.arrays[0].kind == "other"
    assert " x2" in plan.golden() and "x2" in str(plan)


def test_pictures_show_who_holds_what() -> None:
    picture = PLAN.draw()
    assert "[-, model]  params/a float32[8, 16]" in picture
    assert "│ 0,4 │ 1,5 │ 2,6 │ 3,7 │" in picture and "│ 0-3 │" in picture
    whole = Plan.of(GRAPH, PATHS, {}, MESH).draw(most=1)
    assert whole.endswith("whole on each of 8 devices")
    both = draw(Layout((("model",), ("data",))), MESH)
    assert both[1] == "│ 0 │ 4 │" and both[-2] == "│ 3 │ 7 │"
    three = draw(Layout((("a",), ("b",), ("c",))), MeshSpec.of("a=2,b=2,c=2", chip="cpu"))
    assert three[0] == "dim 0 block 0:" and three[8] == "│ 4 │ 5 │"
    many = draw(Layout(((), ("x",))), MeshSpec.of("y=32,x=64", chip="cpu"))
    assert len(many) == 3 and many[1].startswith("│  0,64,…,1984  │") and "…" in many[1].split("│")[7]


def test_a_plan_is_saved_and_given_again(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    PLAN.save(file)
    loaded = Plan.load(file)
    assert loaded == PLAN
    again = traced()
    layouts = loaded.layouts_of(again, PATHS, MESH)
    assert [str(layouts[value]) for value in again.inputs] == ["[-, model]", "[model, -]", "[data, -]"]
    assert str(layouts[again.outputs[0]]) == "[data, -]"


@pytest.mark.parametrize(
    ("graph", "paths", "mesh", "message"),
    [
        (GRAPH, PATHS, "data=4,model=2", "its axis 'data' has 4 devices, not 2"),
        (GRAPH, PATHS, "data=2,tensor=4", "it has no axis 'model'; its axis 'tensor' is new"),
        (GRAPH, PATHS, "model=4,data=2", "its axes come in the order model, data"),
        (traced(32), PATHS, "data=2,model=4", r"params/a was f32\[8,16\] and is f32\[8,32\]"),
        (GRAPH, ("params/a", "params/c", "x"), "data=2,model=4", "params/b is not among its inputs any more"),
        (GRAPH, ("params/b", "params/a", "x"), "data=2,model=4", "params/b was f32"),
        (
            traced(fun=lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"] + 1),
            PATHS,
            "data=2,model=4",
            "it had 3 operations and has 4",
        ),
        (
            traced(fun=lambda params, x: jnp.sin(x @ params["a"]) @ params["b"]),
            PATHS,
            "data=2,model=4",
            "its operations differ",
        ),
    ],
)
def test_plans_of_others_say_what_differs(
    graph: Graph, paths: tuple[str, ...], mesh: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        PLAN.layouts_of(graph, paths, MeshSpec.of(mesh, chip="v5e"))


def test_a_plan_of_another_jax_says_how_the_inputs_lie(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    PLAN.save(file)
    kept = json.loads(file.read_text())
    otherwise = traced(fun=lambda params, x: jnp.sin(x @ params["a"]) @ params["b"])
    assert Plan.load(file).inputs_of(otherwise, PATHS, MESH) is None, "another program"
    kept["program"]["jax"] = "0.1.2"
    file.write_text(json.dumps(kept))
    older = Plan.load(file)
    assert older == PLAN and older.inputs_of(GRAPH, PATHS, MESH) is None, "traced alike"
    found = older.inputs_of(otherwise, PATHS, MESH)
    assert found is not None and "made with JAX 0.1.2; " in found[1]
    assert [str(found[0][value]) for value in otherwise.inputs] == ["[-, model]", "[model, -]", "[data, -]"]
    assert older.inputs_of(traced(32), PATHS, MESH) is None, "other inputs"
    with pytest.raises(PlanError, match="its axis 'data' has 4 devices"):
        older.inputs_of(otherwise, PATHS, MeshSpec.of("data=4,model=2", chip="v5e"))


def test_files_that_hold_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="its devices are v5p, not v5e"):
        PLAN.check_mesh(MeshSpec.of("data=2,model=4", chip="v5p"))
    file = tmp_path / "plan.json"
    PLAN.save(file)
    kept = json.loads(file.read_text())
    for change, message in (
        ({"lepton_plan": 99}, "version 99; this Lepton reads plans of version 1"),
        ({"lepton_plan": None}, "holds no plan"),
        ({"layouts": {"distinct": [], "values": [[3, 2]]}}, "damaged"),
        ({"program": {}}, "damaged"),
    ):
        file.write_text(json.dumps({**kept, **change}))
        with pytest.raises(PlanError, match=message):
            Plan.load(file)
    for text in ("no json", "[]"):
        file.write_text(text)
        with pytest.raises(PlanError, match="holds no plan"):
            Plan.load(file)


def test_the_golden_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PLAN.golden() == GOLDEN
    file = tmp_path / "plan.txt"
    with pytest.raises(AssertionError, match="there is no golden plan"):
        PLAN.check_golden(file)
    monkeypatch.setenv("LEPTON_UPDATE_GOLDEN", "1")
    PLAN.check_golden(file)
    monkeypatch.setenv("LEPTON_UPDATE_GOLDEN", "0")
    PLAN.check_golden(file)
    faster = dataclasses.replace(PLAN, seconds={"compute": 1.0}, memory={"peak": 1})
    faster.check_golden(file)
    with pytest.raises(AssertionError, match=r"-param params/a float32\[8,16\] \[-, model\]"):
        planned(traced(32)).check_golden(file)
    planned(traced(32)).check_golden(file, update=True)
    assert "float32[8,32]" in file.read_text()
