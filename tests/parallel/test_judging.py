"""Who chooses among the solver's best few, and which mesh: prediction, Shardy's passes, the compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax._sharded import judging
from lepton_jax._sharded.request import OpenMesh, make_spread
from lepton_jax.cli import main
from lepton_jax.ir import _jax
from lepton_jax.parallel.aot.topologies import Topology, get_topology
from lepton_jax.parallel.solver.fitting import CannotWin
from lepton_jax.parallel.solver.shapes import Attempt, Shape, best_shape, mesh_shapes

RNG = np.random.default_rng(0)
PARAMS = {"down": RNG.normal(size=(64, 16)).astype("f"), "up": RNG.normal(size=(16, 64)).astype("f")}
X = RNG.normal(size=(32, 16)).astype("f")
ABSTRACT = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


PROGRAM = """
import jax
import jax.numpy as jnp


def run(w, x):
    return jax.grad(lambda w: (jnp.tanh(x @ w) ** 2).mean())(w)


def on(mesh):
    return ()


def example_args():
    return jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
"""


def step(params: Any, x: Any) -> Any:
    def loss(params: Any) -> Any:
        return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"]) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def by(judge: str, mesh: Any = "data=2,model=4") -> Any:
    def fresh(params: Any, x: Any) -> Any:  # programs of one function are kept
        return step(params, x)

    return lepton.optimize(fresh, mesh=mesh, shard=lepton.Sharding(preset="auto", judge=judge))


def notes(run: Any, start: str) -> list[str]:
    return [note for note in run.plan(PARAMS, X).notes if note.startswith(start)]


@pytest.mark.parametrize("judge", ["shardy", "compile"])
def test_candidates_are_judged_and_the_one_taken_runs(judge: str) -> None:
    run = by(judge)
    (said,) = notes(run, f"judged by {judging.NAMES[judge]}: ")
    (solved,) = notes(run, "solver: ")
    assert "ms predicted" in solved and "the best preset" in solved and "of its bound" in solved
    scores = said.split(": ", 1)[1].rsplit(": ", 1)[0].split("; ")
    assert 2 <= said.count("(predicted") <= 4 and any(each.startswith("auto ") for each in scores)
    assert said.endswith("is taken")
    if judge == "compile":
        jax.tree.map(
            lambda got, want: np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5),
            run(PARAMS, X),
            jax.jit(step)(PARAMS, X),
        )


def test_the_one_that_the_judge_likes_best_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is predicted to be the slowest of the few is the only one that the judge likes."""
    names: list[str] = []

    def likes(candidate: Any, lowered: Any) -> judging.Score:
        names.append(candidate.name)
        assert "stablehlo" in lowered.as_text()
        return judging.Score(candidate.name, 1.0 / len(names), candidate.predicted.seconds, 0.0)

    monkeypatch.setattr(judging, "_shardy", likes)
    run = by("shardy", ABSTRACT)
    plan = run.plan(PARAMS, X)
    assert len(names) > 1 and any(note.endswith(f": {names[-1]} is taken") for note in plan.notes)
    assert plan.seconds["seconds"] > by("predict", ABSTRACT).plan(PARAMS, X).seconds["seconds"]

    def only_the_last(candidate: Any, lowered: Any) -> judging.Score:
        if candidate.name != names[-1]:
            raise RuntimeError("no such kernel\nat all")
        return judging.Score(candidate.name, 1.0, 1.0, 0.0, 2e9)

    monkeypatch.setattr(judging, "_shardy", only_the_last)
    said = by("shardy", ABSTRACT).plan(PARAMS, X).notes
    assert "judge shardy: of auto nothing could be found out: no such kernel" in said
    assert f"2 GB too large): {names[-1]} is taken" in said[-1]


def test_without_devices_shardy_judges_and_without_shardy_the_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = by("compile", ABSTRACT)
    assert notes(run, "judge compile: an abstract mesh has no devices to compile for")
    assert notes(run, "judged by Shardy's passes: ")

    def gone(*_: Any) -> Any:
        raise ImportError("no passmanager")

    monkeypatch.setattr(_jax, "run_mlir_passes", gone)
    run = by("compile", ABSTRACT)
    assert not notes(run, "judged by") and notes(run, "judge shardy: this jaxlib does not run Shardy's")
    assert notes(run, "the candidates are judged by the prediction alone")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: lepton.Sharding(preset="auto", judge="me"),
            ValueError,
            "predict, shardy or compile, not 'me'",
        ),
        (lambda: lepton.Sharding(preset="tp", judge="shardy"), ValueError, "leaves nothing to choose"),
        (
            lambda: lepton.Sharding(preset="auto", objective="speed"),
            ValueError,
            "objective is time or bytes, not 'speed'",
        ),
        (
            lambda: lepton.Sharding({"x": "data"}, objective="bytes"),
            ValueError,
            "what preset='auto' looks for, .*; preset=None leaves nothing to choose",
        ),
        (lambda: lepton.optimize(step, mesh=0, shard="auto"), ValueError, "at least one device, not 0"),
        (lambda: lepton.optimize(step, mesh=True, shard="auto"), TypeError, "a number of devices, or 'auto'"),
        (lambda: by("predict", 16)(PARAMS, X), ValueError, "mesh=16 needs 16 devices, JAX has 8"),
        (
            lambda: lepton.optimize(step, mesh=8, shard={"x": P("rows")}).plan(PARAMS, X),
            ValueError,
            "'rows' in the spec of x is not an axis",
        ),
    ],
)
def test_what_cannot_be(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_mesh_is_found_and_kept() -> None:
    run = lepton.optimize(step, mesh=8, shard=("auto", {"x": ("data", "model")}))
    (said,) = (note for note in notes(run, "mesh: ") if " of those tried: " in note)
    assert said.endswith(" ms")
    (not_possible,) = notes(run, "mesh: data=8 is not possible: ")
    assert "'model'" in not_possible
    params, value = run(PARAMS, X)
    np.testing.assert_allclose(value, jax.jit(step)(PARAMS, X)[1], rtol=2e-5)
    sharding = params["up"].sharding
    assert isinstance(sharding, NamedSharding) and sharding.mesh.size == 8
    shapes = run.eval_shape(PARAMS, X[:16])
    assert shapes[0]["up"].sharding.mesh == sharding.mesh
    with pytest.raises(ValueError, match="here give the mesh's axes"):
        spread = make_spread("auto", "tp", None, None, False)
        assert spread is not None
        spread.get_mesh()


def test_a_preset_finds_its_mesh_and_slices_have_an_axis() -> None:
    devices = get_topology("cpu:8").devices
    topology = Topology("two slices", "cpu", get_topology("cpu:8").chip, devices, slices=2)
    run = lepton.optimize(step, mesh=OpenMesh(topology=topology), shard="fsdp")
    plan = run.plan(PARAMS, X)
    (said,) = (note for note in plan.notes if note.startswith("mesh: "))
    assert plan.axes[0] == ("slice", 2)
    tried = said.partition("tried: ")[2]
    assert "slice=2,data=4 " in tried and "slice=2,data=2,model=2 " in tried


def test_the_command_finds_the_mesh_and_lets_xla_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judged_program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    on = ["aot", "judged_program:run", "--topology", "cpu:8"]
    for objective, unit in (("time", " ms"), ("bytes", " MB")):
        auto = ["--mesh", "auto", "--preset", "auto", "--judge", "shardy", "--objective", objective]
        assert main([*on, *auto]) == 0
        out = capsys.readouterr().out
        (tried,) = (line for line in out.splitlines() if line.startswith("note               mesh: data="))
        assert tried.endswith(unit) and "judged by Shardy's passes: " in out
        assert (" MB sent by each device" in out) == (objective == "bytes")
    for more, message in (
        (["--judge", "shardy"], "--judge needs --preset"),
        (["--mesh", "auto", "--objective", "bytes"], "--mesh auto and --objective need --preset"),
        (["--preset", "auto", "--objective", "bits"], "objective is time or bytes, not 'bits'"),
        (["--preset", "tp", "--judge", "compile"], "leaves nothing to choose"),
        (["--mesh", "auto", "--preset", "dp", "--args", "judged_program:on"], "which --mesh auto finds for"),
    ):
        assert main([*on, *more]) == 2
        assert message in capsys.readouterr().err


def test_shapes_that_cannot_win_are_not_tried() -> None:
    shapes = mesh_shapes(16, slices=2)
    assert [str(each) for each in shapes] == [
        "slice=2,data=8",
        "slice=2,data=4,model=2",
        "slice=2,data=2,model=2,other=2",
    ]
    assert all(each.outer == ("slice",) for each in shapes)
    with pytest.raises(ValueError, match="9 devices are not equally many in each of 2 slices"):
        mesh_shapes(9, slices=2)
    seen: list[float] = []

    def attempt(shape: Shape, seconds: float, beat: float) -> Attempt[str]:
        seen.append(beat)
        if len(seen) == 2:
            raise CannotWin(0.004)
        if len(seen) == 3:
            raise ValueError("too few heads")
        return Attempt(0.002, 0.0, 0.003, str(shape))

    best = best_shape(shapes, attempt, 60.0)
    assert (best.found, best.tried) == ("slice=2,data=8", {"slice=2,data=8": 0.002})
    assert seen == [float("inf"), 0.003, 0.003]
    assert "slice=2,data=4,model=2 cannot win: at least 4 ms with nothing hidden, and 3 ms" in best.notes[0]
    assert best.notes[1].endswith("is not possible: too few heads")
    late = best_shape(shapes, lambda shape, *_: Attempt(1.0, 0.0, 1.0, str(shape)), 0.0)
    assert late.notes == tuple(f"no time for {shape}" for shape in shapes[1:])
    with pytest.raises(ValueError, match="no, never"):
        best_shape(shapes[:1], _never, 1.0)


def _never(shape: Shape, seconds: float, beat: float) -> Attempt[str]:
    raise ValueError("no, never")
