"""Sums that are maxima, minima or logarithms, and matrices of scores, against plain numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.passes.loops._parts.piece import cut
from lepton_jax.passes.loops._parts.plan import EVERY, plan
from lepton_jax.passes.loops._parts.scan import Scan
from lepton_jax.passes.loops._recurrence import semiring
from lepton_jax.passes.loops._recurrence.trellis import along_paths, path_coefficients
from tests.passes._check import optimised
from tests.passes._loops import CLEAN

KINDS: dict[str, Any] = {"max": np.max, "min": np.min, "log": lambda x, axes: np.log(np.sum(np.exp(x), axes))}
SCORES = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_sums(kind: str) -> None:
    for axes in ((0,), (1, 2)):
        np.testing.assert_allclose(
            semiring.total(SCORES, axes, kind), KINDS[kind](SCORES, axes), rtol=1e-5, atol=1e-6
        )
    x, y = SCORES[0], SCORES[1]
    both = KINDS[kind](np.stack([x, y]), (0,))
    np.testing.assert_allclose(semiring.plus(x, y, kind), both, rtol=1e-5, atol=1e-6)
    nothing = semiring.nothing(x.shape, x.dtype, kind)
    np.testing.assert_array_equal(semiring.plus(x, nothing, kind), x)
    np.testing.assert_array_equal(semiring.plus(nothing, x, kind), x)
    np.testing.assert_array_equal(semiring.total(np.stack([x, nothing]), (0,), kind), x)
    np.testing.assert_array_equal(semiring.total(x[None], (0,), kind), x)


def test_logarithms_of_large_sums_and_of_nothing() -> None:
    large, nothing = jnp.float32(1e4), jnp.float32(-jnp.inf)
    assert semiring.plus(large, large, "log") == pytest.approx(1e4 + np.log(2))
    assert semiring.total(jnp.full(8, large), (0,), "log") == pytest.approx(1e4 + np.log(8))
    assert semiring.plus(nothing, nothing, "log") == -jnp.inf
    assert semiring.plus(jnp.float32(jnp.inf), large, "log") == jnp.inf
    assert jnp.isnan(semiring.plus(jnp.float32(jnp.nan), large, "log"))
    slopes = jax.grad(lambda x, y: semiring.plus(x, y, "log"), (0, 1))
    assert slopes(nothing, nothing) == (0.0, 0.0)
    np.testing.assert_allclose(slopes(jnp.log(3.0), jnp.log(1.0)), (0.75, 0.25), rtol=1e-6)
    np.testing.assert_array_equal(
        jax.grad(lambda x: semiring.total(x, (0,), "log"))(jnp.full(3, nothing)), np.zeros(3)
    )


REDUCE: dict[str, Any] = {"max": jnp.max, "min": jnp.min, "log": jax.nn.logsumexp}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_matrices_of_scores(kind: str, reverse: bool) -> None:
    """h_j ← Σ_i (h_i + A_ij) + e_j, and nothing is added: M_ji = A_ij + e_j, for two lanes."""
    e, a = SCORES, np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)

    def program(h: Any, e: Any, a: Any) -> Any:
        def step(h: Any, e: Any) -> tuple[Any, Any]:
            h = REDUCE[kind](h[:, None] + a[:, :, None], axis=0) + e
            return h, h

        return lax.scan(step, h, e, reverse=reverse)[1]

    h = np.zeros((4, 2), np.float32)
    (loop,) = [node for node in optimised(program, h, e, a, passes=CLEAN) if node.op == "scan"]
    scan = Scan(loop)
    steps = plan(scan, EVERY)
    assert not isinstance(steps, str) and len(steps) == 1
    step = steps[0]
    assert step.kind == "paths" and step.op == kind and step.layout is not None
    piece, leaves = cut(scan.body, [step.next])
    given = [
        {(4, 4): a, (4, 4, 1): a[:, :, None], (4, 2): e}[tuple(v.shape)]
        for v in leaves
        if v is not step.carry
    ]
    matrices, added = path_coefficients(
        *given,
        piece=piece,
        mapped=tuple(v in scan.scanned for v in leaves if v is not step.carry),
        length=3,
        carries=(leaves.index(step.carry),),
        layout=step.layout,
        kind=kind,
    )
    np.testing.assert_allclose(matrices, a.T[None, :, :, None] + e[:, :, None], rtol=1e-6)
    np.testing.assert_array_equal(added, np.full_like(e, semiring.ZEROS[kind]))
    ((after, before, last),) = along_paths(h, matrices, added, layout=step.layout, reverse=reverse, kind=kind)
    expected, state = np.empty_like(e), h
    for t in [2, 1, 0] if reverse else [0, 1, 2]:
        state = expected[t] = KINDS[kind](state[:, None] + a[:, :, None], (0,)) + e[t]
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, state, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(before[-1 if reverse else 0], h)
    np.testing.assert_array_equal(before[:2] if reverse else before[1:], after[1:] if reverse else after[:2])
