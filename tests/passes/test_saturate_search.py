"""The parts of saturate: every rule is true, classes have one order, the choice is the best."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir.cost import node_cost
from lepton_jax.passes.simplify._saturate import egraph, language
from lepton_jax.passes.simplify._saturate.egraph import EGraph, ENode, program, saturate
from lepton_jax.passes.simplify._saturate.extraction import NOTHING, cheapest, cheapest_trees
from lepton_jax.passes.simplify._saturate.islands import Island, islands, leaf_shape
from lepton_jax.passes.simplify._saturate.pricing import Variant
from lepton_jax.passes.simplify._saturate.search import Search
from lepton_jax.rewrite import PassContext
from lepton_jax.targets import get_target
from tests.passes._check import run
from tests.passes._products import normal

S = 6


def island_of(fun: Callable[..., Any], *args: Any) -> Island:
    """The only island of a function."""
    graph, _ = run(fun, *args, passes="inline,dce")
    (island,) = islands(graph, PassContext(get_target("cpu")))
    return island


def value_of(node: ENode, children: list[Any], leaves: list[Any]) -> Any:
    """What an operation of the language means."""
    match node.op:
        case "Leaf":
            assert isinstance(node.payload, int)
            return leaves[node.payload]
        case "Num":
            assert node.payload is not None
            return np.full((1, 1), float(node.payload))
        case "Mul":
            return children[0] @ children[1]
        case "Add":
            return children[0] + children[1]
        case "T":
            return np.swapaxes(children[0], -1, -2)
        case "Scale" | "Had" | "Rows":
            return children[0] * children[1]
        case op:
            assert op == "Cols"
            return np.swapaxes(children[0], -1, -2) * children[1]


MATRIX, COLUMN, NUMBER = (S, S), (S,), ()

PROGRAMS: list[tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = [
    (lambda a, b, s: (3.0 * (a @ b) - s * (a @ b.T)).T / 4.0 + a @ a, (MATRIX, MATRIX, NUMBER)),
    (lambda a, b, d: (d[:, None] * a * d) @ b - (a * d) @ (a + b), (MATRIX, MATRIX, COLUMN)),
    (lambda a, u, v, x: (a * jnp.outer(u, v)) @ x + jnp.outer(u, v) @ x, (MATRIX, COLUMN, COLUMN, COLUMN)),
    (lambda a, b, x: (a * (b + a)).T @ x + 2.0 * ((b * a).T @ x), (MATRIX, MATRIX, COLUMN)),
    (lambda u, v, x, y: (u @ x) * v * (y @ x) + (u * v) * (v @ x) - u, (COLUMN,) * 4),
    (lambda v, a: (jnp.eye(S) - 2.0 * jnp.outer(v, v)) @ (a + jnp.eye(S)), (COLUMN, MATRIX)),
    (lambda x, w, v: (x @ w) @ v + (x - 0.5 * x) @ (w + w.T), ((2, 3, S), MATRIX, MATRIX)),
    (lambda a, b: (a @ b).mT + jnp.matmul(a, b.mT) - (-a) @ a, ((2, S, S), (2, S, S))),
]


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_all_forms_that_the_rules_find_are_equal(number: int) -> None:
    fun, shapes = PROGRAMS[number]
    island = island_of(fun, *(normal(*shape, seed=i) for i, shape in enumerate(shapes)))
    found = saturate(program(island), 600, math.inf).after
    rng = np.random.default_rng(0)
    leaves: list[Any] = []
    for leaf in island.leaves:
        rows, columns = leaf_shape(leaf, island.frame)
        batch = island.frame.batch if leaf.ndim else ()
        is_one = f"(identity $t{island.terms.index(('Leaf', len(leaves)))})" in program(island)
        leaves.append(np.eye(rows) if is_one else rng.normal(size=(*batch, rows, columns)))
    values: dict[int, Any] = {}
    while len(values) < len(found.classes):
        for i, nodes in enumerate(found.classes):
            for node in nodes:
                if all(child in values for child in node.children):
                    value = value_of(node, [values[child] for child in node.children], leaves)
                    np.testing.assert_allclose(value, values.setdefault(i, value), rtol=1e-9, atol=1e-9)
    assert found.size > 2 * len(island.terms)


def test_every_operation_occurs_in_these_programs() -> None:
    ops = {op for op in ("Mul", "Add", "T", "Scale", "Rows", "Cols", "Had", "Num", "Leaf")}
    seen = set()
    for fun, shapes in PROGRAMS:
        island = island_of(fun, *(normal(*shape, seed=i) for i, shape in enumerate(shapes)))
        seen |= {term[0] for term in island.terms}
    assert seen == ops and all(f"(constructor {op} " in language.PROGRAM for op in ops)


def test_classes_do_not_depend_on_egglogs_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fun, shapes = PROGRAMS[0]
    text = program(island_of(fun, *(normal(*shape, seed=i) for i, shape in enumerate(shapes))))
    plain, rng = egraph._classes, random.Random(0)

    def shuffled(serialised: str) -> EGraph:
        nodes = json.loads(serialised)["nodes"]
        for node in nodes.values():
            node["eclass"] = f"{hash(node['eclass']) % 997}-{node['eclass']}"
        order = list(nodes)
        rng.shuffle(order)
        return plain(json.dumps({"nodes": {name: nodes[name] for name in order}}))

    expected = saturate(text, 300, math.inf)
    monkeypatch.setattr(egraph, "_classes", shuffled)
    assert saturate(text, 300, math.inf) == expected


def test_the_limit_of_operations_holds() -> None:
    fun, shapes = PROGRAMS[0]
    text = program(island_of(fun, *(normal(*shape, seed=i) for i, shape in enumerate(shapes))))
    found = saturate(text, 60, math.inf)
    assert found.before.size < found.after.size <= 60 and found.stopped == "more than 60 operations"
    assert saturate(text, 60, 0.0).after == found.before


def test_the_estimate_is_that_of_the_cost_model() -> None:
    def fun(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return (a @ b.T + b @ a.T) + 3.0 * c

    args = (normal(96, 96), normal(96, 96, seed=1), normal(96, 96, seed=2))
    ctx = PassContext(get_target("cpu"))
    plan = Search(ctx, 10_000, math.inf).plan(island_of(fun, *args))
    graph, _ = run(fun, *args, passes="inline,dce,saturate")
    assert plan.pays and plan.stopped is None
    np.testing.assert_allclose(plan.choice.seconds, sum(ctx.seconds(node_cost(n)) for n in graph), 1e-4)


def test_a_large_program_is_cut_into_islands() -> None:
    def fun(x: jax.Array, w: jax.Array) -> jax.Array:
        for _ in range(60):
            x = x + x @ w
        return x

    graph, _ = run(fun, normal(S, S), normal(S, S), passes="inline,dce")
    found = islands(graph, PassContext(get_target("cpu")))
    assert [len(island.nodes) for island in found] == [40, 40, 40] and graph.num_nodes() == 120


def way(op: str, seconds: float, *children: int) -> Variant:
    return Variant(op, children, seconds)


def chosen(ways: list[list[Variant]], roots: list[int], limit: float = 99.0) -> Any:
    return cheapest(ways, roots, limit, time.perf_counter() + 20)


def test_what_is_shared_counts_once() -> None:
    ways = [
        [way("Leaf", 0.0)],
        [way("Mul", 5.0, 0)],
        [way("Mul", 5.0, 0), way("T", 1.0, 1)],
        [way("Add", 1.0, 1, 2)],
    ]
    assert cheapest_trees(ways, [3]).seconds == 11.0
    best = chosen(ways, [3])
    assert best.seconds == 7.0 and best.ways[2].op == "T" and best.stopped is None
    assert chosen(ways, [3], 6.5) is NOTHING


def test_nothing_is_made_of_itself() -> None:
    leaf = [way("Leaf", 0.0)]
    pair = [leaf, [way("T", 0.0, 2), way("Mul", 4.0, 0)], [way("T", 0.0, 1), way("Mul", 3.0, 0)]]
    best = chosen(pair, [1, 2])
    assert best.seconds == 3.0 and best.ways[1].op == "T" and best.ways[2].op == "Mul"
    ring = [leaf, *([way("T", 0.0, 1 + (i + 1) % 4), way("Mul", 3.0 + i, 0)] for i in range(4))]
    best = chosen(ring, [4])
    assert best.seconds == 3.0 and [best.ways[i].op for i in (4, 1)] == ["T", "Mul"]


def test_a_choice_needs_time() -> None:
    assert cheapest([[way("Leaf", 1.0)]], [0], 9.0, time.perf_counter() - 1) is None
