"""Gradients that a program adds up itself, in codes of 8 bits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec

import lepton_jax as lepton
from lepton_jax.parallel.aot.hlo import collectives
from tests.passes._check import run

P = PartitionSpec
BOTH = ("slice", "data")
PASS = "inline,dce,compress_collectives{smallest=4096}"  # as in Python


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return jax.make_mesh((2, 2), BOTH, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])


def parameters() -> Any:
    random = np.random.default_rng(0)
    shapes = {"a": (48, 64), "bias": (64,), "c": (64, 32), "small": (8, 8)}
    return {name: (random.standard_normal(s) * 0.2).astype(np.float32) for name, s in shapes.items()}


def loss(p: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ p["a"] + p["bias"]) @ p["c"] - 1.0) ** 2) + jnp.sum(p["small"] ** 2)


def step(mesh: Mesh, checked: bool, clip: bool = True) -> Any:
    """A training step by hand, with a norm of all gradients; JAX adds them up itself where it checks."""

    def each(p: Any, x: jax.Array) -> Any:
        value, slope = jax.value_and_grad(loss)(p, x)
        if not checked:
            slope = lax.pmean(slope, BOTH)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(slope))) if clip else 1.0
        return jax.tree.map(lambda p, g: p - 0.1 * g / norm, p, slope), slope, lax.pmean(value, BOTH)

    return jax.shard_map(each, mesh=mesh, in_specs=(P(), P(BOTH)), out_specs=P(), check_vma=checked)


def test_gradients_travel_in_codes_and_all_else_as_it_is(mesh: Mesh) -> None:
    p, x = parameters(), np.random.default_rng(1).standard_normal((16, 48)).astype(np.float32)
    for checked, passes, kinds in [
        (False, PASS, ["all-gather", "all-reduce", "all-to-all"]),
        (True, PASS.replace("}", ',grad=fp8_e4m3,axes="slice data",inner=data}'), None),
    ]:
        fun = step(mesh, checked)
        fast = lepton.optimize(fun, passes)
        compiled = fast.lower(p, x).compile()
        found, exact = compiled(p, x), jax.jit(fun)(p, x)
        assert fast.report.rules["compressed-all-reduce"] == 1  # both in one bucket
        assert "2 gradients are added up" in str(fast.report) and "without feedback" in str(fast.report)
        text = [each.kind for each in collectives(compiled.as_text(), mesh)]
        if kinds:
            assert sorted(set(text)) == kinds and text.count("all-to-all") == text.count("all-gather") == 1
        else:
            assert text.count("all-to-all") == 1 and text.count("all-gather") == 2
        for name in p:
            off = np.linalg.norm(found[1][name] - exact[1][name]) / np.linalg.norm(exact[1][name])
            assert off < (0.08 if checked else 0.02) if name in "ac" else off < 1e-5, name
            assert (name in "ac") == (off > 1e-4)
        assert abs(float(found[2]) - float(exact[2])) < 1e-5


def test_what_is_no_gradient_is_left_alone(mesh: Mesh) -> None:
    w, x = jnp.ones((64, 64)), jnp.ones((64, 64))

    def activations(w: jax.Array, x: jax.Array) -> Any:
        """The shape of a copied input; a product reads the sum."""
        return lax.psum(x @ w, BOTH) @ w

    def no_parameter(w: jax.Array, x: jax.Array) -> Any:
        """No input of this shape is the same on all devices."""
        return lax.psum((x @ w)[:32], BOTH)

    def model(w: jax.Array, x: jax.Array) -> Any:
        """An axis that nobody calls a data axis."""
        return x + lax.psum(x[:, :16] @ w.T, "model")

    for fun, split in ((activations, P()), (no_parameter, P(BOTH))):
        spread = jax.shard_map(fun, mesh=mesh, in_specs=(P(), split), out_specs=P())
        graph, report = run(spread, w, x, passes=PASS)
        assert not report.rules.get("compressed-all-reduce") and "all_to_all" not in graph.to_text()
        assert any("nothing explicit to compress" in note for note in report.notes)
    other = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    spread = jax.shard_map(
        model, mesh=other, in_specs=(P(None, "model"), P()), out_specs=P(), check_vma=False
    )
    assert not run(spread, w, x, passes=PASS)[1].rules.get("compressed-all-reduce")

    auto = jax.grad(loss)
    report = run(auto, parameters(), jnp.ones((4, 48)), passes=PASS)[1]
    assert any("use lepton.compressed" in note for note in report.notes)


@pytest.mark.parametrize("preset", [None, "dp", "fsdp", "tp"])
def test_the_report_says_that_there_is_nothing_to_compress(preset: str | None) -> None:
    spread = {} if preset is None else {"mesh": "data=2,model=2", "shard": preset}
    for fun in (jax.grad(loss), loss):
        fast = lepton.optimize(fun, PASS, **spread)  # type: ignore[call-overload]
        fast.lower(parameters(), jnp.ones((8, 48)))
        assert "nothing explicit to compress" in str(fast.report)


def test_the_report_says_why_sums_stay_exact(mesh: Mesh) -> None:
    p, x = parameters(), jnp.ones((16, 48))
    report = run(step(mesh, False), p, x, passes="inline,dce,compress_collectives")[1]
    assert any("nothing explicit to compress" in note for note in report.notes)
    assert any("3 since it has fewer than 65536 bytes: say smallest=" in note for note in report.notes)


def test_twice_is_once_and_the_rest_of_the_rules(mesh: Mesh) -> None:
    p, x = parameters(), jnp.ones((16, 48))
    once, _ = run(step(mesh, False), p, x, passes=PASS)
    twice, report = run(step(mesh, False), p, x, passes=f"{PASS},compress-collectives{{smallest=4096}}")
    assert once.to_text() == twice.to_text() and report.rules["compressed-all-reduce"] == 1
    apart, report = run(step(mesh, False, False), p, x, passes=PASS.replace("}", ",bucket=8192}"))
    assert report.rules["compressed-all-reduce"] == 2 and apart.to_text().count("all_to_all") == 2
    for wrong in ("grad=int4", 'inner=data,axes="data"', "block=0"):
        with pytest.raises(lepton.PipelineError):
            lepton.Pipeline.parse(f"compress-collectives{{{wrong}}}")
