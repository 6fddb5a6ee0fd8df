"""The search behind the automatic sharder: bounds, choices, limits, against trying everything."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.graph import Graph
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import predict
from lepton_jax.parallel.presets import PresetError
from lepton_jax.parallel.resharding import reshard
from lepton_jax.parallel.roles import Roles, roles_of
from lepton_jax.parallel.solver import solve
from lepton_jax.parallel.solver.building import build
from lepton_jax.parallel.solver.choices import index_layouts
from lepton_jax.parallel.solver.flat import flatten
from lepton_jax.parallel.solver.greedy import Improver
from lepton_jax.parallel.solver.integer import solve_integer
from lepton_jax.parallel.solver.objective import TIME
from lepton_jax.parallel.solver.overlap import Shares, Soft
from lepton_jax.parallel.solver.problem import Labels, Problem, Row
from lepton_jax.parallel.solver.rivals import OVER_ALL, preset_layouts
from lepton_jax.parallel.solver.search import search
from lepton_jax.parallel.solver.tables import Tables

Shape = jax.ShapeDtypeStruct


def random_problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    problem = Problem()
    for _ in range(6):
        problem.variable(3)
    problem.costs = [rng.uniform(0, 1, 3) for _ in range(6)]
    for i, j in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 3), (5, 2), (5, 4)]:
        table = rng.uniform(0, 2, (3, 3))
        table[rng.integers(3), rng.integers(3)] = np.inf
        problem.add(i, j, table)
    return problem


def tried(problem: Problem) -> tuple[float, Labels | None]:
    """The cheapest choice within the limits, by trying all."""
    all_labels = itertools.product(*(range(len(costs)) for costs in problem.costs))
    fitting = (list(labels) for labels in all_labels if problem.excess(list(labels)) <= 1e-9)
    best = min(fitting, key=problem.value, default=None)
    return (np.inf, None) if best is None else (problem.value(best), best)


@pytest.mark.parametrize("seed", range(4))
def test_search_and_integer_program_find_what_trying_all_finds(seed: int) -> None:
    problem = random_problem(seed)
    best, labels = tried(problem)
    assert labels is not None
    for _ in range(2):  # without a limit, then with one that the best choice exceeds
        exact = solve_integer(problem, 10.0)
        assert exact.status == "optimal" and exact.labels is not None
        assert problem.value(exact.labels) == pytest.approx(best, rel=1e-3)
        assert exact.bound <= best * (1 + 1e-6)
        found = search(problem, [5], [[0] * 6], 10.0)
        assert (
            found.proven and found.value == pytest.approx(best, rel=2e-3) and found.bound <= best * (1 + 1e-6)
        )
        greedy = Improver(problem, [5]).fitting([0] * 6)
        assert problem.value(greedy) >= best * (1 - 1e-9) or problem.excess(greedy) > 0
        needs = {i: np.array([2.0, 1.0, 3.0]) for i in range(6)}
        assert labels is not None
        used = sum(float(needs[i][labels[i]]) for i in range(6))
        problem.rows = [Row(needs, max(used - 1.0, 6.0), "memory")]
        best, labels = tried(problem)


def test_hidden_communication_counts_as_much_as_is_said() -> None:
    problem = random_problem(0)
    labels = next(
        list(each)
        for each in itertools.product(range(3), repeat=6)
        if np.isfinite(problem.value(each)) and len(set(each)) > 2
    )
    full, soft = problem.value(labels), Soft(problem)
    ahead, late = problem.pairs[0, 1], problem.pairs[1, 2]
    assert np.isinf(ahead).any()
    soft.note(0, 1, ahead, ahead=True)
    soft.note(1, 2, late, ahead=False)
    for shares in (Shares(0.5, 0.1), Shares(0.01, 1.0), Shares()):
        soft.weigh(shares)
        less = (1 - shares.ahead) * ahead[labels[0], labels[1]]
        less += (1 - shares.late) * late[labels[1], labels[2]]
        assert problem.value(labels) == pytest.approx(full - less)
    assert np.isinf(problem.pairs[0, 1]).any()
    assert Shares(0.5, 0.5).near(Shares(0.51, 0.49)) and not Shares(0.5).near(Shares(0.6))


def test_limits_that_nothing_keeps_are_seen() -> None:
    problem = random_problem(0)
    problem.rows = [Row({i: np.full(3, 2.0) for i in range(6)}, 11.0, "memory")]
    assert solve_integer(problem, 5.0).status == "infeasible"
    greedy = Improver(problem, [5]).fitting([0] * 6)
    assert problem.excess(greedy) == 1.0 and problem.rows[0].least() == 12.0


def test_tables_are_the_costs_of_resharding() -> None:
    mesh = MeshSpec.of("a=2,b=4,c=4", chip="v5p")
    places = [(), ("a",), ("b",), ("c",), ("a", "b"), ("b", "c")]
    layouts = [Layout((x, y)) for x in places for y in places if not set(x) & set(y)]
    before = index_layouts([*layouts, Layout(((), ()), ("b",)), Layout((("a",), ()), ("c",))])
    after = index_layouts(layouts)
    aval = Shape((2048, 512), jnp.bfloat16)
    table = Tables(mesh).between(aval, before, after)
    for i in range(0, len(before.index), 3):
        for j in range(0, len(after.index), 2):
            exact = TIME.of(reshard(aval, before.of(i), after.of(j), mesh), mesh)
            assert table[i, j] == pytest.approx(exact, rel=1e-6, abs=1e-12), (before.of(i), after.of(j))


def chain(w1: jax.Array, w2: jax.Array, w3: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.tanh(x @ w1) @ w2) @ w3


def chain_program() -> tuple[Graph, Roles]:
    shapes = [Shape(shape, jnp.bfloat16) for shape in ((512, 2048), (2048, 1024), (1024, 512), (256, 512))]
    graph = inline_calls(trace(chain, *shapes))
    return graph, roles_of(graph, ["params/w1", "params/w2", "params/w3", "x"])


def test_three_products_cost_what_trying_all_layouts_finds() -> None:
    graph, _ = chain_program()
    model = build(flatten(graph), MeshSpec.of("a=4", chip="v5e"), {})
    problem, inner = model.problem, [variable for _, variable, _ in model.ways]
    improver = Improver(problem, inner)
    outer = [i for i in range(len(problem.costs)) if i not in inner]
    assert len(inner) == 3 and len(outer) <= 8
    best = np.inf
    for labels in itertools.product(*(range(len(problem.costs[i])) for i in outer)):
        chosen = [0] * len(problem.costs)
        for i, label in zip(outer, labels, strict=True):
            chosen[i] = label
        for i in inner:  # strategies only meet layouts
            chosen[i] = int(np.argmin(improver.view(i, chosen, None)))
        best = min(best, problem.value(chosen))
    found = search(problem, inner, [[0] * len(problem.costs)], 10.0)
    exact = solve_integer(problem, 10.0)
    assert found.value == pytest.approx(best, rel=1e-3) and exact.bound == pytest.approx(best, rel=1e-3)


def train(params: Any, x: jax.Array) -> Any:
    def loss(params: Any) -> jax.Array:
        for w in params:
            x_next = jnp.tanh(x @ w["up"]) @ w["down"]
        return jnp.mean(x_next**2)

    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))


def test_memory_binds_micro_batches_help_and_what_is_missing_is_said() -> None:
    weights = {"up": Shape((1024, 4096), jnp.float32), "down": Shape((4096, 1024), jnp.float32)}
    args = ([weights], Shape((4096, 1024), jnp.float32))
    graph = inline_calls(trace(train, *args))
    roles = roles_of(graph, ["params/down", "params/up", "x"], params=[0, 1])
    mesh = MeshSpec.of("data=2,model=4", chip="v5e")
    free = solve(graph, roles, mesh)
    peak = predict(graph, free.assignment, mesh).peak
    assert free.microbatches == 1 and not free.missing and not free.notes
    tight = solve(graph, roles, mesh, memory=int(0.8 * peak))
    fits = predict(graph, tight.assignment, mesh).peak <= 0.8 * peak
    assert fits or tight.microbatches > 1
    assert not tight.missing and tight.objective >= free.objective * (1 - 1e-3)
    small = solve(graph, roles, mesh, memory=int(0.35 * peak))
    assert small.microbatches > 1 and any("micro-batches" in note for note in small.notes)
    none = solve(graph, roles, mesh, memory=1000)
    assert none.missing > 1000 and none.status == "greedy"
    assert any(str(none.missing) in note and "jax.checkpoint" in note for note in none.notes)


def test_pins_are_kept_even_where_they_disagree() -> None:
    graph, roles = chain_program()
    mesh = MeshSpec.of("data=2,model=4", chip="v5e")
    tanh = next(node for node in graph if node.op == "tanh")
    pins = {
        graph.inputs[0]: Layout((("model",), ())),
        tanh.operands[0]: Layout((("data",), ())),
        tanh.result: Layout(((), ("model",))),
    }
    found = solve(graph, roles, mesh, pins=pins)
    assert {value: found.assignment[value] for value in pins} == pins
    with pytest.raises(ValueError, match="do not divide"):
        solve(
            graph, roles, MeshSpec.of("data=3", chip="v5e"), pins={graph.inputs[0]: Layout((("data",), ()))}
        )


def test_no_time_still_gives_layouts() -> None:
    graph, roles = chain_program()
    found = solve(graph, roles, MeshSpec.of("data=2,model=4", chip="v5e"), seconds=0.0)
    assert set(graph.inputs) <= set(found.assignment)
    assert found.predicted <= min(found.rivals.values(), default=np.inf)
    assert set(OVER_ALL) <= set(found.rivals)


def test_presets_over_all_axes_lie_as_on_a_mesh_of_one() -> None:
    graph, roles = chain_program()
    found = preset_layouts("fsdp over all axes", graph, roles, MeshSpec.of("data=2,model=4", chip="v5e"))
    alone = preset_layouts("fsdp", graph, roles, MeshSpec.of("data=8", chip="v5e"))
    inputs = {value: str(found[value]) for value in graph.inputs}
    assert inputs == {value: str(alone[value]).replace("data", "data+model") for value in graph.inputs}
    assert inputs[graph.inputs[0]] == "[-, data+model]"
    with pytest.raises(PresetError, match="has one axis"):
        preset_layouts("dp over all axes", graph, roles, MeshSpec.of("data=8,model=1", chip="v5e"))
