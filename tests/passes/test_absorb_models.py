"""Norms of whole models, taken into weights: a residual network, modules of flax and Equinox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox
import jax
import numpy as np
from flax import linen, nnx

import lepton_jax as lepton
from tests.passes._absorb import (
    AFTER,
    BEFORE,
    IMAGE,
    W,
    apply_of,
    arithmetic,
    batch_norm,
    conv,
    norm,
    numbers,
    rewritten,
    to_callable_of,
)


def stage(p: Any, x: Any) -> Any:
    """Two convolutions with batch norms and a shortcut, as in ResNet-20."""
    y = jax.nn.relu(batch_norm(conv(x, p[0]["w"]), p[0]))
    return jax.nn.relu(batch_norm(conv(y, p[1]["w"]), p[1]) + x)


def residual_network(p: Any, x: Any) -> Any:
    x = jax.nn.relu(batch_norm(conv(x, p["stem"]["w"]), p["stem"]))
    for each in p["stages"]:
        x = stage(each, x)
    return x.mean((1, 2)) @ p["head"] + 1


def test_a_residual_network_has_no_batch_norm_left() -> None:
    def layer() -> dict[str, Any]:
        return {"w": numbers(3, 3, 4, 4) / 6, **norm(4)}

    stages = [[layer(), layer()] for _ in range(9)]
    params = {"stem": layer(), "stages": stages, "head": W[:4]}
    graph, report = rewritten(residual_network, params, IMAGE)
    assert report.rules[AFTER] == 19 and report.rules[BEFORE] == 1  # the norms, and the mean over pixels
    found = arithmetic(apply_of(graph, params))
    assert found == {"conv_general_dilated": 19, "add": 19 + 9 + 1, "dot_general": 1}
    result = to_callable_of(graph)(params, IMAGE)[0]
    np.testing.assert_allclose(result, residual_network(params, IMAGE), rtol=1e-3, atol=1e-3)


def shaken(tree: Any) -> Any:
    """Other numbers than the initial ones and zeros; those that were positive everywhere stay so."""
    return jax.tree.map(
        lambda a: a * (1 + 0.3 * np.abs(numbers(*a.shape))) + (0.1 if a.ndim == 1 else 0.0), tree
    )


class Net(equinox.Module):
    conv: equinox.nn.Conv2d
    norm: Any
    linear: equinox.nn.Linear

    def __init__(self, key: Any) -> None:
        self.conv = equinox.nn.Conv2d(3, 4, 3, key=key)
        self.norm = equinox.nn.BatchNorm(4, "batch", mode="batch")
        self.linear = equinox.nn.Linear(4, 2, key=key)

    def __call__(self, x: Any, state: Any) -> Any:
        y, _ = self.norm(self.conv(x), state)
        return self.linear(jax.nn.relu(y).mean((1, 2)))


class Cnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.linear(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_norms_of_flax_and_equinox_go() -> None:
    net, state = equinox.nn.make_with_state(Net)(jax.random.key(0))
    arrays, static = equinox.partition(equinox.nn.inference_mode((net, state)), equinox.is_array)

    def of_equinox(p: Any, x: Any) -> Any:
        net, state = equinox.combine(p, static)
        return jax.vmap(net, axis_name="batch", in_axes=(0, None))(x, state)

    class Layers(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.BatchNorm(use_running_average=True)(linen.Conv(4, (3, 3), use_bias=False)(x))
            return linen.Dense(2)(linen.relu(x).mean((1, 2)))

    module = Cnn(nnx.Rngs(0))
    module.eval()  # type: ignore[no-untyped-call]
    definition, weights = nnx.split(module)
    layers, x = Layers(), numbers(2, 5, 5, 3)
    variables = shaken(layers.init(jax.random.key(0), x))
    cases: list[tuple[Callable[..., Any], Any, Any]] = [
        (of_equinox, arrays, np.moveaxis(x, -1, 1)),
        (lambda p, x: layers.apply(p, x), variables, x),
        (lambda p, x: nnx.merge(definition, p)(x), shaken(weights), x),
    ]
    pairs = []
    for fun, params, sample in cases:
        graph, _ = rewritten(fun, params, sample, passes="inline,dce,movement,absorb,early,cse,dce")
        found = arithmetic(apply_of(graph, params))
        assert found == {"add": 2, "dot_general": 1, "conv_general_dilated": 1}
        pairs.append((fun, to_callable_of(graph)))
    given = [(params, sample) for _, params, sample in cases]
    both = jax.jit(lambda given: [[f(*args) for f in pair] for pair, args in zip(pairs, given, strict=True)])
    for expected, (result,) in both(given):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)


def test_merged_adapters_stay_merged() -> None:
    """No other pass takes a weight apart again that `prepare` makes once, at few rows either."""
    p = {"w": numbers(2, 64, 64), "a": numbers(2, 64, 2), "b": numbers(2, 2, 64)}

    def beside(p: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (jax.numpy.tanh(h @ w["w"] + (h @ w["a"]) @ w["b"]), None), x, p)[0]

    def whole(p: Any, x: Any) -> Any:
        return x @ (p["w"][0] + p["a"][0] @ p["b"][0])

    x = numbers(3, 64)
    for fun in (beside, whole):
        model = lepton.compile(fun, p, x, passes="deploy")
        assert model.nbytes == 4 * 64 * 64 * (2 if fun is beside else 1)
        np.testing.assert_allclose(model(x), jax.jit(fun)(p, x), rtol=1e-4, atol=1e-4)
    factors = lepton.compile(lambda p, x: x @ (p["a"][0] @ p["b"][0]), p, x, passes="deploy")
    assert factors.nbytes == 4 * 2 * (64 + 64)  # the product of both would be more to read at each call


def test_batches_of_unknown_size() -> None:
    """What goes into weights does not depend on it."""
    p = {"w": numbers(8, 3, 3, 3), "n": norm(8), "o": numbers(8, 5)}

    def network(p: Any, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(x.transpose(0, 3, 1, 2), p["w"], (1, 1), "SAME")
        y = batch_norm(y.transpose(0, 2, 3, 1), p["n"])
        return jax.nn.relu(y).mean((1, 2)) @ p["o"]

    x, (batch,) = numbers(4, 6, 6, 3), jax.export.symbolic_shape("batch")
    unknown = jax.ShapeDtypeStruct((batch, 6, 6, 3), x.dtype)
    model = lepton.compile(network, p, unknown, passes="deploy")
    rules = lepton.compile(network, p, x, passes="deploy").report().passes.rules
    for rule in ("scale-and-shift-into-weight", "scale-and-shift-into-readers"):
        assert model.report().passes.rules[rule] == rules[rule] >= 1
    expected = jax.jit(network)(p, x)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    exported = jax.export.export(jax.jit(model.jit), platforms=("cpu", "cuda", "tpu"))(model.params, unknown)
    for size in (1, 4):
        np.testing.assert_allclose(
            exported.call(model.params, x[:size]), expected[:size], rtol=1e-4, atol=1e-5
        )
