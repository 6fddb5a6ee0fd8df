"""Gather: several masks over the same rows, and what is computed of sums by class."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.export import to_callable
from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, optimised
from tests.passes._movement import array

PASSES = "default"
X = array((12, 5))
CLASS = jnp.array([0, 3, 1, 2, 2, 1, 0, 3, 3, 1, 0, 0])
MASKS = array((3, 12), seed=1) > 0


def sums(x: jax.Array, masks: jax.Array) -> jax.Array:
    return jnp.where(masks[:, :, None], x[None], 0).sum(1)


def test_sums_by_several_masks_are_a_product() -> None:
    with profit.disregarded():
        [(graph, report)] = all_kept({"masks": (sums, (X, MASKS))}, passes=PASSES, vmap=False).values()
    assert report.rules["sum-by-masks"] == 1
    assert "dot_general" in graph.to_text()


def test_what_masks_hide_does_not_count() -> None:
    with profit.disregarded():
        found = jax.jit(to_callable(optimised(sums, X, MASKS, passes=PASSES)))
    hidden = X.at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf).at[2, 2].set(-jnp.inf).at[3, 2].set(jnp.inf)
    for x in (hidden, jnp.full_like(X, 3e38)):
        [result] = found(x, MASKS)
        np.testing.assert_allclose(result, sums(x, MASKS), rtol=1e-6)


def test_sums_by_masks_in_a_loop() -> None:
    def loop(x: jax.Array, masks: jax.Array) -> Any:
        return jax.lax.scan(lambda c, k: (c * k + sums(x, masks), None), X[:3], jnp.ones(3))[0]

    with profit.disregarded():
        [(graph, report)] = all_kept({"loop": (loop, (X, MASKS))}, passes=PASSES, vmap=False).values()
    assert report.rules["sum-by-masks"] == 1
    assert graph.to_text().count("dot_general[") == 1


def test_masked_sums_that_stay() -> None:
    programs: dict[str, Any] = {
        "one mask": (lambda x, m: jnp.where(m[0][:, None], x, 0).sum(0), (X, MASKS)),
        "not zero": (lambda x, m: jnp.where(m[:, :, None], x[None], 1).sum(1), (X, MASKS)),
        "the largest": (lambda x, m: jnp.where(m[:, :, None], x[None], 0).max(1), (X, MASKS)),
        "half": (lambda x, m: sums(x.astype(jnp.bfloat16), m), (X, MASKS)),
    }
    with profit.disregarded():
        reports = all_kept(programs, passes=PASSES, grad=False, vmap=False, export=False)
    assert not any("sum-by-masks" in report.rules for _, report in reports.values())


def test_means_by_class() -> None:
    programs: dict[str, Any] = {
        "means": (
            lambda x, i: jnp.stack(
                [jnp.where((i == k)[:, None], x, 0).sum(0) / (i == k).sum() for k in range(4)]
            ),
            (X, CLASS),
        ),
        "roots": (
            lambda x, i: jnp.stack(
                [jnp.sqrt(jnp.where((i == k)[:, None], x * x, 0).sum(0) + 1e-3) * 2 for k in range(4)], 1
            ),
            (X, CLASS),
        ),
    }
    programs["as an array"] = (
        lambda x, i: jnp.array([jnp.where(i == k, x[:, 0], 0).sum() / (i == k).sum() for k in range(4)]),
        (X, CLASS),
    )
    alike: dict[str, Any] = {
        "no sums by class": (lambda x, i: jnp.stack([x[k] / i[k] for k in range(4)]), (X, CLASS)),
        "computed otherwise": (
            lambda x, i: jnp.stack(
                [
                    f(jnp.where((i == k)[:, None], x, 0).sum(0))
                    for k, f in enumerate([jnp.exp, jnp.sqrt, jnp.log])
                ]
            ),
            (X * X, CLASS),
        ),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, vmap=False).items():
            assert report.rules["stack-of-masked-sums"] >= 1, name
            assert report.rules["stack-of-arithmetic"] >= 1, name
        for name, (_, report) in all_kept(alike, passes=PASSES, vmap=False, export=False).items():
            assert "stack-of-arithmetic" not in report.rules, name
