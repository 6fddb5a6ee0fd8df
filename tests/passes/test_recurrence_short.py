"""Short loops, and rows that a loop reads again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.rewrite import profit
from tests.passes._check import run, same
from tests.passes._golden import assert_every_gate
from tests.passes._loops import around, normal, ops

FULL = around("counted,recurrence")
X = jnp.abs(normal(8, 3)) + 0.5
LARGE = jax.ShapeDtypeStruct((512, 512), jnp.float32)


def root(x: Any, times: int = 3) -> Any:
    """Newton's method for 1 / sqrt(x)."""
    return lax.fori_loop(0, times, lambda i, y: y * (1.5 - 0.5 * x * y * y), jnp.full_like(x, 0.5))


def steps(x: Any) -> Any:
    """Several carries, one of which counts, and numbers that are not floats."""

    def body(i: Any, state: Any) -> Any:
        p, v, seed = state
        v = v - 0.1 * p * i
        return p + 0.1 * v, v, seed * (seed + 1)

    return lax.fori_loop(0, 4, body, (x, jnp.ones_like(x), x.astype(jnp.int32)))


def test_short_loops_are_written_out() -> None:
    with profit.disregarded():
        for fun in (root, steps):
            assert "scan" not in ops(same(fun, X, passes=FULL))


def test_only_where_it_pays() -> None:
    def rules(fun: Any, x: Any, target: str = "cpu") -> dict[str, int]:
        return run(fun, x, passes=FULL, target=target)[1].rules

    assert rules(root, LARGE)["short-loop"] == 1
    assert rules(root, X, "gpu")["short-loop"] == 1
    assert "short-loop" not in rules(root, X)
    assert "short-loop" not in rules(lambda x: root(x, 9), LARGE)
    assert "short-loop" not in rules(lambda x: lax.fori_loop(0, 3, lambda i, y: y @ x, x), LARGE)
    assert "short-loop" not in rules(lambda x: lax.scan(lambda c, y: (c * y, c), x[0], x[:4]), LARGE)
    assert "short-loop" not in rules(lambda x: lax.fori_loop(0, 3, lambda i, y: y - jnp.mean(y), x), LARGE)


def test_every_gate() -> None:
    with profit.disregarded():
        assert assert_every_gate(root, X, passes="inline,dce,counted,recurrence") >= 2


def two_behind(x: Any) -> Any:
    def body(t: Any, out: Any) -> Any:
        return out.at[t].set(0.5 * out[t - 1] - 0.3 * out[t - 2] + jnp.sin(x[t]))

    return lax.fori_loop(2, 8, body, jnp.ones((8, 3)))


def from_the_end(x: Any) -> Any:
    def body(i: Any, out: Any) -> Any:
        t = 6 - i
        return lax.dynamic_update_index_in_dim(out, jnp.sin(out[:, t + 1]) + x[t], t, 1)

    return lax.fori_loop(0, 7, body, jnp.ones((3, 8)))


@pytest.mark.parametrize("fun", [two_behind, from_the_end])
def test_rows_that_are_read_again_are_carries(fun: Any) -> None:
    with profit.disregarded():
        graph = same(fun, X, passes=around("counted"))
        assert assert_every_gate(fun, X, passes="inline,dce,counted") >= 3
    (loop,) = [node for node in graph.walk() if node.op == "scan"]
    assert loop.params["num_carry"] == (2 if fun is two_behind else 1)
    assert not {"dynamic_slice", "dynamic_update_slice", "scatter"} & {n.op for n in loop.regions[0]}


def test_other_rows_stay() -> None:
    def before_it_is_written(x: Any) -> Any:
        return lax.fori_loop(0, 7, lambda t, out: out.at[t].set(out[t + 1] + x[t]), x)

    def the_same_row(x: Any) -> Any:
        return lax.fori_loop(0, 8, lambda t, out: out.at[t].set(jnp.sin(out[t]) + x[t]), x)

    def far_behind(x: Any) -> Any:
        return lax.fori_loop(5, 8, lambda t, out: out.at[t].set(out[t - 5] + x[t]), x)

    def part_of_a_row(x: Any) -> Any:
        return lax.fori_loop(1, 8, lambda t, out: out.at[t].set(out[t - 1, 0] + x[t]), x)

    def outside(x: Any) -> Any:
        return lax.fori_loop(0, 8, lambda t, out: out.at[t].set(out[t - 1] + x[t]), x)

    def added(x: Any) -> Any:
        return lax.fori_loop(1, 8, lambda t, out: out.at[t].add(out[t - 1]), x)

    for fun in (before_it_is_written, the_same_row, far_behind, part_of_a_row, outside, added):
        assert "row-behind" not in run(fun, X, passes=around("counted"), target="gpu")[1].rules, fun.__name__


def test_rows_are_not_copied_on_a_cpu_to_no_purpose() -> None:
    def whole(x: Any) -> Any:
        return lax.fori_loop(0, 8, lambda t, out: out.at[t].set(jnp.sin(x[t])), jnp.zeros((8, 3)))

    def part(x: Any) -> Any:
        return lax.fori_loop(1, 8, lambda t, out: out.at[t].set(jnp.sin(x[t])), jnp.zeros((8, 3)))

    def backwards(x: Any) -> Any:
        return lax.fori_loop(0, 8, lambda t, h: 0.5 * h + x[7 - t], jnp.zeros(3))

    def with_product(x: Any) -> Any:
        return lax.fori_loop(1, 8, lambda t, h: jnp.sin(h) + x[t] @ x.T, jnp.zeros(8))

    def fired(fun: Any, target: str) -> int:
        rules = run(fun, X, passes=around("counted"), target=target)[1].rules
        return rules.get("indexed-input", 0) + rules.get("indexed-output", 0)

    programs = whole, part, backwards, with_product, two_behind
    counts = [(fired(fun, "cpu"), fired(fun, "gpu")) for fun in programs]
    assert counts == [(2, 2), (0, 2), (0, 1), (1, 1), (0, 2)]
