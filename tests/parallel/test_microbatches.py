"""Parts of a batch on eight devices: each keeps its rows, and gradients travel once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax._aot import parse_count, spread_over
from lepton_jax.numerics.compare import compare_trees
from lepton_jax.parallel.aot.hlo import collectives
from lepton_jax.parallel.aot.topologies import get_topology
from lepton_jax.parallel.plan import Plan, PlanError


def loss(params: Any, ids: Any, labels: Any) -> Any:
    """A table, layers in a loop, a head; the mean over the labels that count."""
    x = params["table"][ids]

    def layer(carry: tuple[Any, Any], w: Any) -> Any:
        h, size = carry
        h = jnp.tanh(h @ w + params["bias"])
        return (h, size + (h**2).sum()), None

    (x, size), _ = jax.lax.scan(layer, (x, 0.0), params["layers"])
    mask = labels >= 0
    losses = jnp.take_along_axis(jax.nn.log_softmax(x @ params["head"]), jnp.maximum(labels, 0)[:, None], -1)[
        :, 0
    ]
    return 0.01 * size - jnp.sum(losses * mask) / jnp.sum(mask)


def step(params: Any, ids: Any, labels: Any) -> Any:
    value, grads = jax.value_and_grad(loss)(params, ids, labels)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.3, shape).astype("f")


SIZE = 512
PARAMS = {"table": array(16, 32), "layers": array(3, 32, 32), "bias": array(32), "head": array(32, 16)}
ARGS = PARAMS, np.arange(SIZE, dtype=np.int32) % 16, np.arange(SIZE, dtype=np.int32) % 5 - 1


def sent(compiled: Any) -> dict[str, int]:
    """Bytes by kind of collective, loops counted as often as they run."""
    found: dict[str, int] = {}
    for each in collectives(compiled.as_text()):
        found[each.kind] = found.get(each.kind, 0) + each.bytes * each.times
    return found


def test_under_data_parallelism_gradients_travel_once() -> None:
    whole = lepton.optimize(step, "none", mesh="data=2", shard="dp")
    parts = lepton.optimize(step, "none", mesh="data=2", shard="dp", microbatches=4, strict=True)
    found = {run: run.lower(*ARGS).compile() for run in (whole, parts)}
    result = compare_trees(whole(*ARGS), parts(*ARGS))
    assert result.ok, result
    before, after = (sent(each) for each in found.values())
    assert set(after) == {"all-reduce"} and after["all-reduce"] <= 1.01 * before["all-reduce"]
    sizes = [each.memory_analysis().temp_size_in_bytes for each in found.values()]
    assert sizes[1] < 0.6 * sizes[0]
    plan = parts.plan(*ARGS)
    assert any("4 micro-batches" in note for note in plan.notes)
    assert "4 micro-batches" in str(parts.report)


def test_a_saved_plan_says_in_how_many_parts(tmp_path: Path) -> None:
    plan = lepton.optimize(step, "none", mesh="data=2", shard="dp", microbatches=4).plan(*ARGS)
    plan.save(tmp_path / "plan.json")
    kept = Plan.load(tmp_path / "plan.json")
    assert kept == plan and (kept.microbatches, kept.shares) == (4, 2)
    assert lepton.optimize(step, "none", mesh="data=2", shard=kept).plan(*ARGS) == plan
    for count, args, message in (
        (8, ARGS, "made for 4 micro-batches, not for microbatches=8: leave"),
        (None, (PARAMS, ARGS[1][:500], ARGS[2][:500]), r"another program: ids was i32\[512\] and is"),
    ):
        with pytest.raises(PlanError, match=message):
            lepton.optimize(step, "none", mesh="data=2", shard=kept, microbatches=count).plan(*args)


def deep(params: Any, x: Any) -> Any:
    def layer(h: Any, w: Any) -> tuple[Any, None]:
        return jnp.tanh(h @ w[0]) @ w[1], None

    def loss(params: Any) -> Any:
        return jnp.mean(jax.lax.scan(layer, x @ params["first"], params["layers"])[0] ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def test_weights_are_gathered_once_where_that_sends_less_and_fits() -> None:
    """What is predicted to be sent is sent; with less memory they are gathered in each round."""
    params = {"first": array(64, 64), "layers": (array(3, 64, 256), array(3, 256, 64))}
    args = params, array(64, 64)
    once = lepton.optimize(deep, "none", mesh="data=4", shard="fsdp", microbatches=4, strict=True)
    plan = once.plan(*args)
    assert len(plan.gathered) == 3 and any("3 arrays that lie split" in note for note in plan.notes)
    less = plan.memory["peak"] - 1
    each = lepton.optimize(deep, "none", mesh="data=4", shard="fsdp", microbatches=4, memory=less)
    assert each.plan(*args).gathered == () and each.plan(*args).memory["peak"] <= less
    found = sent(once.lower(*args).compile())
    predicted = [move for move in plan.collectives if move.kind == "all-gather"]
    assert (
        found["all-gather"]
        == sum(move.bytes * move.times for move in predicted)
        == 4 * (64 * 64 + 6 * 64 * 256)
    )
    assert found["all-gather"] * 3 < sent(each.lower(*args).compile())["all-gather"]
    result = compare_trees(jax.jit(deep)(*args), once(*args))
    assert result.ok, result
    assert lepton.optimize(deep, "none", mesh="data=4", shard=plan).plan(*args) == plan


def dense(params: Any, x: Any) -> Any:
    value, grads = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]) ** 2))(params)
    return [p - 0.1 * g for p, g in zip(params, grads, strict=True)], value


def test_the_solver_cuts_the_batch_when_memory_demands_it() -> None:
    args = [array(16, 64), array(64, 16)], array(SIZE, 16)
    peak = lepton.optimize(dense, "none", mesh="data=2", shard="auto").plan(*args).memory["peak"]
    most = int(peak * 0.7)
    run = lepton.optimize(dense, "none", mesh="data=2", shard="auto", memory=most, strict=True)
    plan = run.plan(*args)
    assert any("micro-batches; sums" in note for note in plan.notes)
    assert plan.memory["peak"] <= most
    result = compare_trees(jax.jit(dense)(*args), run(*args))
    assert result.ok, result
    least = lepton.Sharding(preset="auto", objective="bytes")
    few = lepton.optimize(dense, "none", mesh="data=2", shard=least, memory=most).plan(*args)
    assert few.memory["peak"] <= most and any(" MB sent by each device" in note for note in few.notes)
    assert any("micro-batches; sums" in note for note in few.notes)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"512 examples, in 256 .* 2 each, .* 128 micro-batches would"):
        lepton.optimize(step, "none", mesh="data=4", shard="dp", microbatches=256).plan(*ARGS)
    with pytest.raises(
        ValueError, match=r"are single examples of ids, which devices cannot share; take fewer"
    ):
        lepton.optimize(step, "none", mesh="data=4", shard="dp", microbatches=512).plan(*ARGS)
    with pytest.raises(ValueError, match="microbatches is a number of parts"):
        lepton.optimize(step, mesh="data=2", shard="dp", microbatches=0)

    topology = get_topology("cpu:8")
    mesh = topology.mesh("data=8")
    for_topology = spread_over(step, mesh, "dp", topology, parse_count("4"))
    assert for_topology.options.spread.microbatches == 4
    with pytest.raises(ValueError, match="--microbatches needs --preset"):
        spread_over(step, mesh, None, topology, 4)
    with pytest.raises(ValueError, match="a number of parts or auto, not many"):
        parse_count("many")

    def normed(w: Any, x: Any) -> Any:
        h = x @ w
        return ((h - h.mean(0)) ** 2).sum()

    small = np.ones((4, 4), "f"), np.ones((32, 4), "f")
    note = (
        lepton.optimize(normed, mesh="data=2", shard="dp", microbatches="auto", memory=10).plan(*small).notes
    )
    assert any("the batch stays whole: sub" in each for each in note)
    least = lepton.optimize(step, "none", mesh="data=2", shard="dp", microbatches="auto", memory=10)
    assert least.plan(PARAMS, *(each[:8] for each in ARGS[1:])).microbatches in (1, 2, 4)  # none fits


def test_gradients_of_convolutions_are_added_up_in_each_part() -> None:
    """Many shares of one would be a grouped convolution, which XLA splits wrongly."""

    def conv_step(kernel: Any, x: Any) -> Any:
        def loss(kernel: Any) -> Any:
            numbers = ("NHWC", "HWIO", "NHWC")
            made = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)
            return jnp.mean(jnp.tanh(made) ** 2)

        return kernel - jax.grad(loss)(kernel)

    args = array(3, 3, 3, 8), array(32, 16, 16, 3)
    parts = lepton.optimize(conv_step, "none", params="kernel", mesh="data=8", shard="dp", microbatches=4)
    plan = parts.plan(*args)
    assert plan.shares == 1
    apart = lepton.Sharding(preset=dataclasses.replace(plan, shares=8))
    with pytest.raises(PlanError, match="keeps 8 shares of the gradients of convolutions apart, which XLA"):
        lepton.optimize(conv_step, "none", params="kernel", mesh="data=8", shard=apart).plan(*args)
    result = compare_trees(jax.jit(conv_step)(*args), parts(*args))
    assert result.ok, result
