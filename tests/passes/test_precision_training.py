"""Automatic mixed precision: training converges as it does in float32."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.graph import Graph
from lepton_jax.numerics.loss_scale import loss_scaled, scale_loss

RNG = np.random.default_rng(0)
TARGETS = RNG.normal(size=(64, 2)).astype(np.float32)
INPUTS = RNG.normal(size=(64, 8)).astype(np.float32)


def low_products(graph: Graph) -> int:
    return sum(node.op == "dot_general" and node.operands[0].dtype != "float32" for node in graph.walk())


def model(params: Any, x: Any) -> Any:
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def loss(params: Any) -> Any:
    return jnp.mean((model(params, INPUTS) - TARGETS) ** 2)


def initial() -> Any:
    rng = np.random.default_rng(1)
    sizes = [8, 32, 32, 2]
    return [
        (jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), jnp.float32), jnp.zeros(b))
        for a, b in itertools.pairwise(sizes)
    ]


def trained(step: Callable[..., Any], tx: Any, steps: int = 60) -> tuple[Any, Any, Any]:
    """The loss before and after, and the state of the optimiser; traceable."""
    params = initial()
    state = lax.scan(lambda s, _: (step(s), None), (params, tx.init(params)), None, steps)[0]
    return loss(params), loss(state[0]), state[1]


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_training_converges_as_in_float32(target: str) -> None:
    """With the whole step rewritten, and with the loss alone, which JAX differentiates after."""
    tx = optax.adam(3e-3)
    optimize = functools.partial(lepton.optimize, passes="default,precision{force=true}", target=target)
    low_loss = optimize(loss)

    def step(state: Any, loss: Callable[..., Any] = loss) -> Any:
        params, opt = state
        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    whole = optimize(step)
    graph = whole.trace(jax.eval_shape(lambda: (initial(), tx.init(initial())))).graph
    assert low_products(graph) == 8 and {str(v.dtype) for v in graph.outputs} == {"float32", "int32"}
    runs: dict[str, Callable[..., Any]] = {
        "plain": step,
        "whole": whole,
        "loss": functools.partial(step, loss=low_loss),
    }
    losses = jax.jit(lambda: {name: trained(run, tx)[:2] for name, run in runs.items()})()
    expected = losses["plain"][1]
    for name, (before, found) in losses.items():
        assert found < 0.7 * before and abs(found - expected) < 0.03 * expected, name


def test_training_in_float16_with_a_scaled_loss() -> None:
    """Steps that overflow are left out while the scale comes down; then it converges."""
    tx = loss_scaled(optax.adam(3e-3), initial_scale=2.0**24, growth_interval=1000)
    low_loss = lepton.optimize(loss, "default,precision{dtype=f16,force=true}", target="gpu")

    def step(state: Any) -> Any:
        params, opt = state
        grads = jax.grad(lambda params: scale_loss(opt, low_loss(params)))(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    before, found, opt = jax.jit(lambda: trained(step, tx, 80))()
    assert int(opt.skipped) > 0 and float(opt.scale) < 2.0**24
    assert found < 0.7 * before
