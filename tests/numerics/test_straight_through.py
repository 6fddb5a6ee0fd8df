"""Fake quantisation that trains: its value is that of quantising, its gradients are those of the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import (
    Scheme,
    delayed,
    encode,
    fake_quantize,
    initial_step,
    learned_range,
    learned_step,
    learned_threshold,
    scale_of_range,
    scale_shape,
    straight_through,
    threshold_scale,
)

GROUPS = Scheme("int4", shared=(0,), group=12)
SCHEMES = (
    Scheme("int8"),
    GROUPS,
    Scheme("int8", symmetric=False, shared=(0,)),
    Scheme("fp8_e4m3", shared=(0,)),
    Scheme("nf4", shared=(0,), group=12),
    Scheme("mxfp4", shared=(0,)),
)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_values_are_those_of_quantising() -> None:
    """Bit for bit, compiled together with a gradient or alone."""
    x = normal(40, 3)
    free = [scheme for scheme in SCHEMES if not scheme.fmt.block]

    @jax.jit
    def train(x: jax.Array) -> Any:
        plain = [jax.grad(lambda x, s=s: straight_through(x, s).sum())(x) for s in SCHEMES]
        values = [straight_through(x, s) for s in SCHEMES]
        steps = [learned_step(x, initial_step(x, s), s) for s in free if s.symmetric]
        logs = [learned_threshold(x, jnp.zeros(scale_shape(x.shape, s)), s) for s in free if s.symmetric]
        ends = [learned_range(x, jnp.float32(-1.0), jnp.float32(1.5), s) for s in free]
        return plain, values, steps, logs, ends

    plain, values, steps, logs, ends = train(x)
    symmetric = [scheme for scheme in free if scheme.symmetric]

    @jax.jit
    def convert(x: jax.Array) -> Any:
        values = [fake_quantize(x, s) for s in SCHEMES]
        steps = [fake_quantize(x, s, initial_step(x, s)) for s in symmetric]
        zeros = [jnp.zeros(scale_shape(x.shape, s)) for s in symmetric]
        logs = [
            fake_quantize(x, s, threshold_scale(zero, s)) for zero, s in zip(zeros, symmetric, strict=True)
        ]
        ranges = [scale_of_range(-1.0, 1.5, s) for s in free]
        ends = [fake_quantize(x, s, *range_) for s, range_ in zip(free, ranges, strict=True)]
        return values, steps, logs, ends

    jax.tree.map(np.testing.assert_array_equal, [values, steps, logs, ends], list(convert(x)))
    for slope, scheme in zip(plain, SCHEMES, strict=True):
        np.testing.assert_array_equal(slope, np.ones_like(x), err_msg=str(scheme))


def test_the_gradient_passes_within_the_range() -> None:
    x = np.array([-130.0, -127.4, 0.2, 127.4, 128.0], np.float32)
    scale, scheme, affine = jnp.ones((1,)), Scheme("int8"), Scheme("int8", symmetric=False)

    def total(x: jax.Array, scale: jax.Array) -> jax.Array:
        return straight_through(x, scheme, scale).sum()

    def affine_total(x: jax.Array) -> jax.Array:
        return straight_through(x, affine, scale, jnp.array([-100], jnp.int8)).sum()

    @jax.jit
    def all_(x: jax.Array, y: jax.Array) -> Any:
        forward = jax.jvp(lambda x: straight_through(x, scheme, scale), (x,), (jnp.full(5, 2.0),))
        half = jax.grad(total)(x.astype(jnp.bfloat16), scale)
        return jax.grad(total, (0, 1))(x, scale), forward, jax.grad(affine_total)(y), half

    (on_x, on_scale), (value, tangent), affine_slope, half = all_(
        x, np.array([-29, -28, 227, 228.0], "float32")
    )
    np.testing.assert_array_equal(on_x, [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(tangent, [0, 2, 2, 2, 0])
    np.testing.assert_array_equal(value, [-127, -127, 0, 127, 127])
    np.testing.assert_array_equal(affine_slope, [0, 1, 1, 0])
    np.testing.assert_array_equal(on_scale, [0.0])
    assert half.dtype == jnp.bfloat16


def test_learned_steps_have_the_gradient_of_the_paper() -> None:
    """Esser et al., equations 3 and 5, and the scale of section 2.2."""
    v = np.array([-9.0, -8.0, -3.3, 0.2, 2.5, 6.9, 7.0, 30.0], np.float32)
    x, scheme = normal(40, 3), Scheme("int4")  # groups of 12, 12, 12 and 4

    @jax.jit
    def all_(v: jax.Array, x: jax.Array, step: jax.Array) -> Any:
        slopes = jax.grad(lambda x, s: learned_step(x, s, scheme).sum(), (0, 1))(v, step)
        tangent = jax.jvp(lambda s: learned_step(v, s, scheme), (step,), (jnp.ones(1),))[1]
        steps = initial_step(x, GROUPS)
        slope = jax.grad(lambda s: learned_step(x, s, GROUPS).sum())(steps)
        return *slopes, tangent, (initial_step(v, scheme), initial_step(0 * x, scheme)), steps, slope

    found = all_(v, x, np.ones(1, np.float32))
    slope_x, slope_s, tangent, (start, nothing), steps, slope = jax.tree.map(np.asarray, found)
    rounded = np.clip(np.round(v), -8, 7)
    inside = (v > -8) & (v < 7)
    expected = np.where(inside, rounded - v, rounded)
    np.testing.assert_array_equal(slope_x, inside)
    np.testing.assert_allclose(slope_s, [expected.sum() / np.sqrt(len(v) * 7)], rtol=1e-6)
    np.testing.assert_allclose(tangent, expected / np.sqrt(len(v) * 7), rtol=1e-6)
    np.testing.assert_allclose(start, [2 * np.abs(v).mean() / np.sqrt(7)], rtol=1e-6)
    for group, part in enumerate(np.split(x, [12, 24, 36])):
        ratio = part * (1 / steps[group])
        codes = np.clip(np.round(ratio), -8, 7)
        terms = np.where((ratio > -8) & (ratio < 7), codes - ratio, codes).sum(0)
        np.testing.assert_allclose(slope[group], terms / np.sqrt(len(part) * 7), rtol=1e-4, atol=1e-5)
    assert nothing.tolist() == [[1.0]]


def test_trained_thresholds_have_the_gradient_of_the_paper() -> None:
    """Jain et al., equations 7 and 8."""
    x = np.array([-3.0, -0.9, 0.33, 0.99, 2.0], np.float32)
    scheme = Scheme("int4", narrow=False)

    @jax.jit
    def all_(x: jax.Array, log: jax.Array, far: jax.Array) -> Any:
        slope = jax.grad(lambda log: learned_threshold(x, log, scheme, power_of_two=True).sum())(log)
        scales = [threshold_scale(log, scheme, power_of_two=power) for power in (True, False)]
        return slope, scales, [threshold_scale(far, scheme, power_of_two=power) for power in (True, False)]

    slope, (scale, smooth), far = jax.tree.map(
        np.asarray, all_(x, np.array([0.3], np.float32), np.array([1e9, -1e9], np.float32))
    )
    np.testing.assert_array_equal(scale, [2.0 ** (1 - 3)])  # a threshold of 2
    ratio = x / scale
    rounded = np.clip(np.round(ratio), -8, 7)
    inside = (ratio > -8) & (ratio < 7)
    expected = scale * np.log(2) * np.where(inside, rounded - ratio, rounded)
    np.testing.assert_allclose(slope, [expected.sum()], rtol=1e-5)
    np.testing.assert_allclose(smooth, [2**0.3 / 7.5], rtol=1e-6)
    assert np.isfinite(far).all()


def test_learned_ranges_have_the_gradient_of_the_paper() -> None:
    """PACT, equation 3: the clipping value gets the gradient of what it clips."""
    scheme, weights = Scheme("int4", symmetric=False), np.arange(1.0, 6.0, dtype=np.float32)

    @jax.jit
    def all_(x: jax.Array) -> Any:
        slopes = jax.grad(lambda x, a, b: (weights * learned_range(x, a, b, scheme)).sum(), (0, 1, 2))
        symmetric = jax.grad(lambda b: learned_range(x, -b, b, Scheme("int4")).sum())
        return slopes(x, jnp.zeros((1,)), jnp.full((1,), 2.0)), symmetric(jnp.full((1,), 0.9))

    slopes, symmetric = all_(np.array([-1.0, 0.5, 1.9, 2.1, 7.0], np.float32))
    np.testing.assert_array_equal(slopes[0], [0, 2, 3, 0, 0])
    np.testing.assert_array_equal(slopes[1], [1])
    np.testing.assert_array_equal(slopes[2], [9])
    np.testing.assert_array_equal(symmetric, [-1 + 3])


def test_training_converts_exactly() -> None:
    """Steps of gradient descent lower the error, and the trained codes are those of the final weights."""
    w, x = normal(32, 4), normal(64, 32, seed=1)
    target, scheme = x @ w, Scheme("int3", shared=(0,))

    def loss(params: Any) -> jax.Array:
        return jnp.mean((x @ learned_step(params["w"], params["step"], scheme) - target) ** 2)

    @jax.jit
    def train(w: Any) -> Any:
        def update(params: Any, _: None) -> Any:
            value, slope = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.02 * g, params, slope), value

        start = {"w": w, "step": initial_step(w, scheme)}
        params, losses = jax.lax.scan(update, start, None, length=60)
        codes = encode(params["w"], params["step"], None, scheme)
        return params["step"], losses, codes, learned_step(params["w"], params["step"], scheme)

    step, losses, codes, trained = map(np.asarray, train(w))
    assert losses[-1] < 0.6 * losses[0]
    np.testing.assert_array_equal(trained, codes.astype(np.float32) * step)


def test_a_delayed_start() -> None:
    x = np.array([0.3, 0.7, 1.0], np.float32)
    scheme = Scheme("int2")

    @jax.jit
    def both(x: jax.Array, step: jax.Array) -> Any:
        return delayed(straight_through(x, scheme), x, step, 10), fake_quantize(x, scheme)

    np.testing.assert_array_equal(both(x, np.int32(9))[0], x)
    np.testing.assert_array_equal(*both(x, np.int32(10)))


def test_under_vmap() -> None:
    x = normal(3, 24, 2)

    def slope(x: jax.Array) -> jax.Array:
        found: jax.Array = jax.grad(lambda s: learned_step(x, s, GROUPS).sum())(initial_step(x, GROUPS))
        return found

    one, alone = jax.jit(lambda x: (jax.vmap(slope)(x), jnp.stack([slope(layer) for layer in x])))(x)
    np.testing.assert_allclose(one, alone, rtol=1e-5)
    assert one.shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda x: learned_step(x, jnp.ones(1), Scheme("mxfp4", group_axis=0)),
            "not learned: use straight_through",
        ),
        (lambda x: initial_step(x, Scheme("mxfp8", group_axis=0)), "powers of two"),
        (lambda x: learned_range(x, -x, x, Scheme("mxfp4", group_axis=0)), "powers of two"),
        (lambda x: learned_threshold(x, x, Scheme("int8", symmetric=False)), "use learned_range"),
    ],
)
def test_wrong_use(use: Callable[[jax.Array], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        use(jnp.ones(3))
