"""Order: entries from the middle of a sort, and the places of the largest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from lepton_jax.rewrite import profit
from tests.passes._check import all_kept, optimised, run
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(inline,fold,algebra,movement,cse,constant-control,dce,order)"
X = array((3, 33))


def hostile(dtype: Any) -> jax.Array:
    """Rows with equal numbers, zeros of both signs, infinities and NaN."""
    x = np.round(np.asarray(X) * 3) / 3
    x[0, [3, 5, 7]] = np.nan, np.inf, -np.inf
    x[1, 2:9], x[1, 9:20] = -0.0, 0.0
    x[2] = np.nan
    x[2, :10] = 1.0
    return jnp.asarray(x, dtype)


def test_entries_are_found_without_sorting() -> None:
    programs: dict[str, Any] = {
        "median": (lambda x: jnp.median(x, 1), (X,)),
        "entry": (lambda x: jnp.sort(x, 1)[:, 16], (X,)),
        "along columns": (lambda x: jnp.sort(x, 0)[1], (X,)),
        "quantiles": (lambda x: jnp.quantile(x, jnp.array([0.3, 0.5, 0.8]), axis=1), (X,)),
        "one of several dimensions": (lambda x: jnp.median(x.reshape(3, 3, 11), 2), (X,)),
    }
    with profit.disregarded():
        for name, (graph, report) in all_kept(programs, passes=PASSES, vmap=False).items():
            assert report.rules["entry-by-bisection"] >= 1, name
            assert not any(node.op == "sort" for node in graph.walk()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_every_place_is_that_of_the_sort(dtype: str) -> None:
    x = hostile(dtype) if dtype.startswith(("f", "b")) else (X * 20).astype(dtype)

    def program(x: jax.Array) -> list[jax.Array]:
        return [jnp.sort(x + 0, 1)[:, k] for k in (10, 12, 13, 16, 20)]

    def gradients(x: jax.Array, fun: Any) -> Any:
        return jax.grad(lambda y: sum(o.sum() * k for k, o in enumerate(fun(y), 1)))(x)

    with profit.disregarded():
        graph = optimised(program, x, passes=PASSES)
    assert not any(node.op == "sort" for node in graph.walk())
    found = to_callable(graph)
    views = jax.jit(lambda x: (found(x), gradients(x, found) if dtype == "float32" else ()))(x)
    expected = jax.jit(lambda x: (program(x), gradients(x, program) if dtype == "float32" else ()))(x)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(views), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))


def test_sorts_that_stay() -> None:
    programs: dict[str, Any] = {
        "a stretch": (lambda x: jnp.sort(x, 1)[:, 14:19], (X,)),
        "also read whole": (lambda x: (lambda s: (s[:, 16], s * 2))(jnp.sort(x, 1)), (X,)),
        "with its order": (lambda x: lax.sort((x, x * 2), num_keys=1)[1][:, 16], (X,)),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, grad=False, vmap=False).items():
            assert "entry-by-bisection" not in report.rules, name
    for target in ("cpu", "gpu"):  # too small, and quick to sort
        _, report = run(lambda x: jnp.sort(x, 1)[:, 16], X, passes=PASSES, target=target)
        assert "entry-by-bisection" not in report.rules


def test_places_of_the_largest_of_what_rises() -> None:
    programs: dict[str, Any] = {
        "softmax": (lambda x: lax.top_k(jax.nn.softmax(x), 3)[1], (X,)),
        "log": (lambda x: lax.top_k(jax.nn.log_softmax(x) - 1, 3)[1], (X,)),
    }
    alike: dict[str, Any] = {
        "values": (lambda x: lax.top_k(jax.nn.softmax(x), 3), (X,)),
        "falls": (lambda x: lax.top_k(1 - x, 3)[1], (X,)),
        "rises not": (lambda x: lax.top_k(jnp.sin(x), 3)[1], (X,)),
    }
    with profit.disregarded():
        for name, (graph, report) in all_kept(programs, passes=PASSES, export=False).items():
            assert report.rules["top-of-rising"] == 1 and graph.num_nodes() == 1, name
        for name, (_, report) in all_kept(alike, passes=PASSES, export=False, vmap=False).items():
            assert "top-of-rising" not in report.rules, name


def test_what_is_far_from_the_ends_is_found_by_bisection() -> None:
    x = jnp.zeros((4, 1024))
    near = [node.op for node in optimised(lambda x: jnp.sort(x)[:, 1003], x, passes=PASSES).walk()]
    assert "top_k" in near and "scan" not in near
    for wanted in (slice(900, 901), slice(930, 931), slice(100, 101)):
        far = [node.op for node in optimised(lambda x, w=wanted: jnp.sort(x)[:, w], x, passes=PASSES).walk()]
        assert "scan" in far and not {"top_k", "sort"} & set(far)
    both = [node.op for node in optimised(lambda x: jnp.sort(x)[:, 930:932], x, passes=PASSES).walk()]
    assert "top_k" in both and "scan" not in both
