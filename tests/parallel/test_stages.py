"""Cutting programs into stages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir import evaluate, trace
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.pipeline import StageError, Stages, cut, stage_boundary
from lepton_jax.parallel.pipeline.balance import SLACK, Line, best_cut
from lepton_jax.parallel.pipeline.marks import is_mark
from lepton_jax.parallel.pipeline.parts import Batch, Piece, Sent

Loss = Callable[[Any, Any], Any]
MESH = MeshSpec.of("stage=4", chip="v5e")


def stages_of(loss: Loss, params: Any, x: Any, count: int, **options: Any) -> Stages:
    """A loss of parameters and one array of examples, cut."""
    names = [*leaf_paths("params", params), "x"]
    return cut(
        trace(loss, params, x), count, MESH, "stage", params=range(len(names) - 1), names=names, **options
    )


def in_turn(stages: Stages, params: Any, x: Any) -> Any:
    """What the stages give, one after the other."""
    leaves = [*jax.tree.leaves(params), x]
    sent: list[Any] = []
    for stage in stages.stages:
        args = []
        for source in stage.part.sources:
            match source:
                case Piece(param=param, rows=rows):
                    args.append(leaves[param] if rows is None else leaves[param][slice(*rows)])
                case Batch(position=position):
                    args.append(leaves[position])
                case Sent(place=place):
                    args.append(sent[place])
        sent = evaluate(stage.part.graph, args)
    return sent[0]


def weights(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32) / shape[-1] ** 0.5


def dense(params: Any, x: Any) -> Any:
    for w in params["w"]:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


DENSE = {"w": [weights(8, 64), weights(64, 64), weights(64, 64), weights(64, 8), weights(8, 8)]}
X = weights(16, 8)


def mixed(params: Any, x: Any) -> Any:
    """A tied matrix, a skip over everything, a loop that stacks, and what depends on the batch alone."""
    scale = jnp.sum(x, axis=-1, keepdims=True)
    h = first = x @ params["tied"]

    def layer(h: Any, w: Any) -> tuple[Any, Any]:
        h = h + jnp.tanh(h @ w.astype(jnp.float32)) * scale
        return h, jnp.mean(h)

    h, means = jax.lax.scan(layer, h, params["layers"])
    h = jnp.where(jnp.arange(h.shape[1]) > 2, h, -h) * first
    return jnp.mean((h @ params["tied"].T) ** 2) + jnp.sum(means)


MIXED = {"layers": weights(6, 12, 12), "tied": weights(8, 12)}


def test_stages_one_after_the_other_are_the_program() -> None:
    for loss, params, count in ((dense, DENSE, 1), (dense, DENSE, 4), (mixed, MIXED, 4)):
        found = stages_of(loss, params, X, count)
        assert len(found.stages) == count
        np.testing.assert_allclose(in_turn(found, params, X), loss(params, X), rtol=1e-6)


def test_a_loop_over_layers_is_cut_by_length() -> None:
    found = stages_of(mixed, MIXED, X, 4)
    rows = [piece.rows for stage in found.stages for piece in stage.part.pieces if piece.rows]
    assert [first for first, _ in rows[1:]] == [end for _, end in rows[:-1]]
    assert rows[0][0] == 0 and rows[-1][1] == 6
    # what it has stacked so far, and what is read again at the end, is handed on
    assert [sorted(v.shape for v in each) for each in found.boundaries] == [
        sorted([(16, 12), (16, 12), (end,)]) for _, end in rows[:3]
    ]


def test_a_tied_parameter_is_shared() -> None:
    found = stages_of(mixed, MIXED, X, 3)
    assert found.shared == {1: (0, 2)}
    assert "shared: params/tied, read by stages 0, 2" in str(found)
    assert stages_of(mixed, MIXED, X, 3, shared=["params/tied"]).shared == {1: (0, 2)}
    with pytest.raises(
        StageError, match=r"stage 2 reads params/tied, a parameter of stage 0: name it in\s+shared="
    ):
        stages_of(mixed, MIXED, X, 3, shared=[])


def test_the_cut_is_within_five_percent_of_the_best() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        n, parts = int(rng.integers(4, 10)), int(rng.integers(1, 4))
        sending = np.concatenate([[0.0], rng.random(n - 1), [0.0]])
        line = Line(rng.random(n), sending, rng.random(n), rng.random(n + 1))
        live = [int(k) for k in rng.integers(1, 4, parts)]
        memory = float(rng.uniform(1.5, n))

        def slowest(places: tuple[int, ...], line: Line = line, n: int = n) -> float:
            ends = (0, *places, n)
            return max(line.part_seconds(a, b) for a, b in itertools.pairwise(ends))

        def fits(
            places: Any, line: Line = line, n: int = n, live: Any = live, memory: float = memory
        ) -> bool:
            ends = (0, *places, n)
            return all(
                line.part_bytes(a, b, k) <= memory
                for (a, b), k in zip(itertools.pairwise(ends), live, strict=True)
            )

        cuts = [places for places in itertools.combinations(range(1, n), parts - 1) if fits(places)]
        found = best_cut(line, range(1, n), live, memory)
        if not cuts:
            assert found is None
            continue
        assert found is not None and fits(tuple(found))
        best = min(map(slowest, cuts))
        assert slowest(tuple(found)) <= SLACK * best * (1 + 1e-9)
        least = min(line.sending[list(c)].sum() for c in cuts if slowest(c) <= SLACK * best)
        assert line.sending[found].sum() <= least + 1e-6


def test_marks_are_the_boundaries() -> None:
    def marked(params: Any, x: Any) -> Any:
        for i, w in enumerate(params["w"]):
            x = jnp.tanh(x @ w)
            if i in (0, 1, 3):
                x, _ = stage_boundary((x, x + 1))
        return jnp.mean(x**2)

    found = stages_of(marked, DENSE, X, 4)
    assert [stage.parameters // 4 for stage in found.stages] == [8 * 64, 64 * 64, 64 * 64 + 64 * 8, 8 * 8]
    two = stages_of(marked, DENSE, X, 2)
    assert two.places[0] in found.places
    with pytest.raises(StageError, match="marks 3 stage boundaries, 5 stages have 4"):
        stages_of(marked, DENSE, X, 5)
    assert len(stages_of(marked, DENSE, X, 5, marks="ignore").stages) == 5
    batched = jax.grad(lambda params, x: jnp.mean(jax.vmap(marked, (None, 0))(params, x)))
    assert sum(is_mark(node) for node in trace(batched, DENSE, X).walk()) >= 3


def test_marks_in_a_loop_over_layers() -> None:
    def marked(params: Any, x: Any) -> Any:
        y, _ = jax.lax.scan(lambda h, w: (stage_boundary(jnp.tanh(h @ w)), None), x @ params[0], params[1])
        return jnp.mean(y**2)

    params = [MIXED["tied"], MIXED["layers"]]
    found = stages_of(marked, params, X, 3)
    assert all(place - 1 in range(1, 6) for place in found.places)

    def again(w: Any, x: Any) -> Any:
        return jnp.mean(jax.lax.fori_loop(0, 3, lambda i, h: stage_boundary(h @ w), x @ w))

    with pytest.raises(StageError, match="marked inside scan, which is not a loop over layers"):
        stages_of(again, DENSE["w"][4], X, 2)


def test_marks_that_are_no_chain() -> None:
    def beside(params: Any, x: Any) -> Any:
        a = stage_boundary(jnp.tanh(x @ params["w"][0])) @ params["w"][1]
        b = stage_boundary(jnp.tanh(x @ params["w"][0] * 2)) @ params["w"][2]
        return jnp.mean(a * b @ params["w"][3])

    with pytest.raises(StageError, match="stage boundaries 0 and 1 do not form a chain"):
        stages_of(beside, DENSE, X, 3)

    def of_parameters(params: Any, x: Any) -> Any:
        return jnp.mean(x @ stage_boundary(params["w"][0]) @ params["w"][1])

    with pytest.raises(StageError, match="depends on parameters alone"):
        stages_of(of_parameters, DENSE, X, 2)


def test_memory_bounds_stages() -> None:
    free = stages_of(dense, DENSE, X, 2)
    most = [stage.bytes(1) for stage in free.stages]
    assert stages_of(dense, DENSE, X, 2, memory=max(most)).places
    with pytest.raises(StageError, match=r"no cut into 2 stages fits .* Take more stages"):
        stages_of(dense, DENSE, X, 2, memory=10_000)


def test_more_stages_than_layers() -> None:
    with pytest.raises(StageError, match=r"6 stages of a program with 5 layers .*: take at most 5"):
        stages_of(dense, DENSE, X, 6)
    with pytest.raises(ValueError, match="'pipe' is not an axis of the mesh"):
        cut(trace(dense, DENSE, X), 2, MESH, "pipe", params=range(5))
