"""Delayed scaling: scales made of the steps before, as a state that goes through every transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax.numerics import Scheme, encode
from lepton_jax.numerics.stochastic import encode_stochastic, key_of
from tests.passes._quantize import floats

X, Y = floats(64, 16), np.sin(floats(64, 4))
START = {
    "a": floats(16, 32, scale=0.25),
    "m": floats(2, 32, 32, scale=0.1),
    "b": floats(32, 4, scale=0.12),
}
PASSES = "inline,quantized-training{scaling=delayed,history=3%s}"


def loss(p: Any, x: Any, y: Any) -> Any:
    """Layers before, in and after a loop."""
    with jax.named_scope("body"):
        h = jnp.tanh(x @ p["a"])
    h, _ = lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, p["m"])
    return jnp.mean((h @ p["b"] - y) ** 2)


def short(p: Any, x: Any, y: Any) -> Any:
    """A layer, and one after it."""
    with jax.named_scope("body"):
        h = jnp.tanh(x @ p["a"])
    return jnp.mean((h @ p["b"] - y) ** 2)


def delayed(options: str = "", fun: Any = loss) -> lepton.DelayedScaling:
    return lepton.delayed_scaling(fun, START, X, Y, passes=PASSES % options, strict=True)


def step_of(f: lepton.DelayedScaling) -> Any:
    """One step of gradient descent, of which the state after it is told."""

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, (state, slopes) = jax.value_and_grad(f, (0, 1))(state, params, X, Y)
        params = jax.tree.map(lambda p, slope: p - 0.3 * slope, params, slopes)
        return (params, state), (value, state)

    return step


def check_left(left: Any, span: float, room: float) -> None:
    """The scale of the first product's input, which is the same at every step."""
    most = np.abs(X).max()
    np.testing.assert_array_equal(left["history"][-1], np.full(3, most))
    np.testing.assert_allclose(left["scale"], most * room / span, rtol=1e-6)


def test_a_network_trains_as_in_floats() -> None:
    """Float8; products of loops have a scale for each round."""
    f = delayed()
    shapes = {name: jax.tree.map(jnp.shape, each) for name, each in f.state.items()}
    one, two = ({"history": (*loops, 3), "scale": loops} for loops in ((), (2,)))
    operands = ("gradient", "left", "right")
    assert shapes == {
        "body": dict.fromkeys(operands, one),
        "product": dict.fromkeys(operands, one),
        "product#2": dict.fromkeys(operands, two),
    }

    @jax.jit
    def train(params: Any) -> Any:
        state = f.started(params, X, Y)
        return loss(params, X, Y), state, lax.scan(step_of(f), (params, state), length=200)

    first, started, ((_, last), (losses, every)) = jax.tree.map(np.asarray, train(START))
    np.testing.assert_allclose(losses[0], first, rtol=0.05)
    assert losses[-1] < 0.1 * first
    check_left(every["body"]["left"], 448.0, 1.0)
    history = every["product#2"]["gradient"]["history"]  # of each step, layer by layer; the latest first
    np.testing.assert_array_equal(history[1:, :, 1:], history[:-1, :, :-1])
    assert (history[-1, 0] != history[-1, 1]).all() and (started["product#2"]["right"]["scale"] > 0).all()
    assert jax.tree.map(jnp.shape, last) == jax.tree.map(jnp.shape, f.state)
    assert "3 with delayed scales" in f.report.notes[0]


def test_integers_rounded_at_random_with_room_from_the_first_state() -> None:
    f = delayed(",forward=int8,backward=int8,margin=1,rounding=stochastic", short)
    train = jax.jit(lambda params: lax.scan(step_of(f), (params, f.state), length=200))
    _, (losses, every) = jax.tree.map(np.asarray, train(START))
    assert losses[-1] < 0.2 * losses[0]
    check_left(every["body"]["left"], 127.0, 2.0)


def test_the_state_is_one_for_all_devices() -> None:
    """Batches spread over devices give the state, and about the gradients, of the whole batch."""
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))

    f, named = (delayed(options, short) for options in ("", ",axes=data"))

    @jax.jit
    def one_device(params: Any, x: Any, y: Any) -> Any:
        state = f.started(params, x, y)
        return state, jax.grad(f, (0, 1))(state, params, x, y)

    state, whole = jax.tree.map(np.asarray, one_device(START, X, Y))

    def checked(state: Any, params: Any, x: Any, y: Any) -> Any:
        return jax.grad(lambda *each: lax.pmean(f(*each, x, y), "data"), (0, 1))(state, params)

    def unchecked(state: Any, params: Any, x: Any, y: Any) -> Any:
        began = named.started(params, x, y)
        state, slopes = jax.grad(named, (0, 1))(state, params, x, y)
        return jax.tree.map(lambda a: a[None], (began, state)), lax.pmean(slopes, "data")

    @jax.jit
    def run(state: Any, x: Any, y: Any) -> Any:
        specs = (P(), P(), P("data"), P("data"))
        spread: Any = jax.shard_map(checked, mesh=mesh, in_specs=specs, out_specs=P())
        other: Any = jax.shard_map(
            unchecked, mesh=mesh, in_specs=specs, out_specs=(P("data"), P()), check_vma=False
        )
        return jax.grad(f, (0, 1))(state, START, x, y), spread(state, START, x, y), other(state, START, x, y)

    x, y = jax.device_put((X, Y), jax.NamedSharding(mesh, P("data")))
    by_jit, by_map, ((began, own), slopes) = jax.tree.map(np.asarray, run(state, x, y))
    for found in (by_jit, by_map):
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max())
    for each in jax.tree.leaves((began, own)):
        np.testing.assert_array_equal(each, np.broadcast_to(each[:1], each.shape))
    np.testing.assert_array_equal(own["body"]["left"]["history"][0], whole[0]["body"]["left"]["history"])
    assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(jnp.shape, START)


def test_what_is_not_finite_does_not_stay_and_branches_are_dynamic() -> None:
    def branched(p: Any, x: Any) -> Any:
        h = lax.cond(x[0, 0] > 0, lambda h: jnp.tanh(h @ p["a"]), lambda h: h @ (2 * p["a"]), x)
        return (h @ p["b"]).sum()

    f = lepton.delayed_scaling(branched, START, X, passes=PASSES % "", strict=True)
    assert list(f.state) == ["product"]
    step = jax.jit(jax.grad(f, (0, 1)))
    state, slopes = step(f.state, START, X)
    bad, _ = step(state, START, X.at[3, 5].set(jnp.inf))
    left = bad["product"]["left"]
    assert jnp.isfinite(left["history"]).all() and left["scale"] > 0 and left["history"][1] > 0
    assert (jnp.abs(slopes["a"]).max() > 0) and slopes["m"].shape == START["m"].shape


def test_rounding_at_random_keeps_the_mean() -> None:
    """Each code is a neighbour of the number, and their mean is the number; nearest rounding is off."""
    x = np.concatenate([floats(40), floats(20, scale=1e-3), np.array([0, 500, -500], "f")])
    draws = 2000

    @jax.jit
    def both(x: Any) -> Any:
        keys = jax.random.split(jax.random.key(1), draws)
        made = {}
        for form, scale in (("int8", 0.1), ("fp8_e4m3", 0.01), ("fp8_e5m2", 0.001)):
            scheme, step = Scheme(form), jnp.float32(scale)
            codes = jax.vmap(lambda key, s=scheme, t=step: encode_stochastic(x, t, s, key))(keys)
            made[form] = (
                codes.astype(jnp.float32) * step,
                encode(x, step, None, scheme).astype(jnp.float32) * step,
            )
        return made, encode_stochastic(x * jnp.nan, step, scheme, key_of(x)), key_of(x) == key_of(x + 1)

    found, none, alike = jax.tree.map(np.asarray, both(x))
    steps = {
        "int8": np.full(x.shape, 0.1, "f"),
        "fp8_e4m3": np.maximum(np.abs(x) / 8, 0.01 * 2.0**-9),
        "fp8_e5m2": np.maximum(np.abs(x) / 4, 0.001 * 2.0**-16),
    }
    for form, (values, nearest) in found.items():
        inside = np.abs(x) < (12.7 if form == "int8" else 4.0)
        off = np.where(inside, np.abs(values - x) / steps[form], 0)
        assert 0.5 < off.max() <= 1.001, form
        drift = np.where(inside, np.abs(values.mean(0) - x) / steps[form], 0).max()
        assert drift < 5 * 0.5 / draws**0.5, form
        assert np.where(inside, np.abs(nearest - x) / steps[form], 0).max() > 4 * drift, form
        if form == "int8":
            np.testing.assert_allclose(
                values[:, -2:], np.tile(np.array([12.7, -12.7], "f"), (draws, 1)), rtol=1e-6
            )
    assert np.isnan(none.astype("f")).all() and not alike


def test_wrong_use() -> None:
    def step(p: Any) -> Any:
        return jax.grad(loss)(p, X, Y)

    with pytest.raises(lepton.UsageError, match="rewrite the loss"):
        lepton.delayed_scaling(step, START, passes=PASSES % "", strict=True)
    with pytest.raises(lepton.UsageError, match="no state of the product body: lepton"):
        lepton.optimize(loss, PASSES % "", strict=True)(START, X, Y)
    with pytest.raises(lepton.UsageError, match="gives no product a delayed scale"):
        lepton.delayed_scaling(loss, START, X, Y, passes="inline,quantized-training", strict=True)
    f = delayed()
    with pytest.raises(lepton.UsageError, match="the first argument is the state"):
        f(jnp.zeros(3), START, X, Y)  # type: ignore[arg-type]
    with pytest.raises(lepton.UsageError, match="the state of other is not used"):
        f(f.state | {"other": f.state["body"]}, START, X, Y)
    with pytest.raises(lepton.UsageError, match="no state of the product body"):
        f({"product": f.state["product"]}, START, X, Y)
    for options, message in (("history=0", "history is a number"), ("axes=data", "axes are for")):
        with pytest.raises(ValueError, match=message):
            lepton.optimize(loss, f"quantized-training{{{options}}}")
    with pytest.raises(ValueError, match="stochastic rounding is for"):
        encode_stochastic(X, jnp.ones(()), Scheme("nf4"), key_of(X))
