"""What calibration remembers: ranges, histograms and means, against numpy on all numbers at once."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import Scheme, fake_quantize, scale_of_range
from lepton_jax.numerics.observers import (
    Entropy,
    MeanSquaredError,
    MinMax,
    Moments,
    MovingAverage,
    Observer,
    Percentile,
    check,
    get_observer,
    seen_by,
)

SYMMETRIC, AFFINE = Scheme("int8"), Scheme("int8", symmetric=False)
EVERY: list[Observer] = [
    MinMax(axes=(-1,)),
    MovingAverage(axes=(-1,)),
    Percentile(axes=(-1,), percentile=99.0, bins=64),
    Moments(axes=(-1,)),
]


@partial(jax.jit, static_argnums=0)
def observe(observer: Observer, batches: Any) -> Any:
    """The state after batches stacked along the first axis."""

    def step(state: Any, x: Any) -> tuple[Any, None]:
        return observer.update(state, x), None

    return jax.lax.scan(step, observer.init(batches.shape[1:]), batches)[0]


def heavy(*shape: int, seed: int = 0) -> Any:
    """Numbers with long tails, of other magnitudes in each batch and a mean that is not zero."""
    rng = np.random.default_rng(seed)
    batch = 10.0 ** np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return np.float32((rng.standard_t(3, shape) + 0.5) * batch * 1e-2)


def same(left: Any, right: Any) -> bool:
    return all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def test_extremes_of_what_counts() -> None:
    x = heavy(3, 5, 4)
    x[0, 0, 0], x[1, 2, 3], x[2, 0, 1], x[2, 4, 1] = np.nan, np.inf, -np.inf, 1e9
    mask = np.ones((3, 5, 1), bool)
    mask[2, 4] = False
    observer = MinMax(axes=(2,))

    @jax.jit
    def run(x: Any, mask: Any) -> Any:
        state = observer.update(observer.init(x.shape), x, mask)
        return state, observer.range(state, AFFINE), observer.range(state, SYMMETRIC)

    state, affine, symmetric = jax.tree.map(np.asarray, run(x, mask))
    kept = np.where(np.isfinite(x) & mask, x, np.nan)
    np.testing.assert_array_equal(state.low, np.nanmin(kept, (0, 1)))
    np.testing.assert_array_equal(state.high, np.nanmax(kept, (0, 1)))
    np.testing.assert_array_equal(state.finite, np.isfinite(kept).sum((0, 1)))
    assert state.nan.tolist() == [1, 0, 0, 0] and state.infinite.tolist() == [0, 1, 0, 1]
    low, high = affine
    np.testing.assert_array_equal(low, np.minimum(np.nanmin(kept, (0, 1)), 0))
    low, high = symmetric
    np.testing.assert_array_equal(high, np.nanmax(np.abs(kept), (0, 1)))
    np.testing.assert_array_equal(low, -high)
    with pytest.raises(
        ValueError, match="block_3/mlp: calibration saw 1 NaN and 2 infinities among 56 numbers"
    ):
        check(state, "block_3/mlp")


def test_any_dtype_and_no_numbers() -> None:
    whole, empty = MinMax(), MinMax().init((2,))
    many = [
        np.array(x).astype(t)
        for x, t in (([-3, 7], "int8"), ([-3, 7], jnp.bfloat16), ([[-3], [7]], "float32"))
    ]

    @jax.jit
    def updated(xs: Any) -> Any:
        states = [whole.update(empty, x) for x in xs]
        return [(state, whole.update(state, x[:0])) for x, state in zip(xs, states, strict=True)]

    for x, (state, again) in zip(many, updated(many), strict=True):
        assert (float(state.low), float(state.high), float(state.finite)) == (-3, 7, 2), x.dtype
        assert same(state, again), x.dtype

    @jax.jit
    def cases(x: Any, none: Any, some: Any) -> Any:
        found = []
        for observer in EVERY:
            start = observer.init(x.shape)
            half = observer.update(start, x, some)
            found.append((start, observer.update(start, x, none), observer.range(half, AFFINE)))
        return found

    x = np.full((2, 3), -4, np.float32)
    found = cases(x, np.zeros((2, 1), bool), np.array([True, False, True]))
    for observer, (start, nothing, (low, high)) in zip(EVERY, found, strict=True):
        assert same(start, nothing), observer
        with pytest.raises(ValueError, match="saw no finite number: run calibration"):
            observer.range(nothing, SYMMETRIC)
        with pytest.raises(ValueError, match=r"embed: calibration saw no number; give it batches"):
            check(nothing, "embed")
        np.testing.assert_allclose(low, [-4, 0, -4], rtol=0.07)  # a channel that saw nothing
        np.testing.assert_array_equal(high, 0)
    for observer in (MinMax(), Percentile(bins=64), MeanSquaredError(), Entropy()):  # no numbers at all
        state = observer.init((0, 3))
        assert same(state, observer.update(state, jnp.zeros((0, 3)))), observer


def test_moving_average_starts_unbiased_and_merges_in_order() -> None:
    x = heavy(4, 6, 3)
    observer = MovingAverage(momentum=0.75)
    weights = 0.25 * 0.75 ** np.arange(3, -1, -1)

    @jax.jit
    def run(x: Any) -> Any:
        merge, state = observer.merge, observe(observer, x)
        parts = [observe(observer, x[i : i + 1]) for i in range(4)]
        left = merge(merge(parts[0], parts[1]), merge(parts[2], parts[3]))
        right = merge(parts[0], merge(parts[1], merge(parts[2], parts[3])))
        return state, (left, right), observer.range(state, AFFINE), observer.range(parts[0], AFFINE)

    state, both, (low, high), one = run(x)
    np.testing.assert_allclose(low, (x.min((1, 2)) * weights).sum() / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(high, (x.max((1, 2)) * weights).sum() / weights.sum(), rtol=1e-5)
    for merged in both:
        for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(one, (x[0].min(), x[0].max()), rtol=1e-6)


@pytest.mark.parametrize("observer", [Percentile(axes=(1,), bins=64), MinMax(axes=(0, 1))])
def test_merging_is_exact_in_any_order(observer: Observer) -> None:
    x = heavy(6, 50, 3)
    merge = jax.jit(observer.merge)

    @jax.jit
    def run(x: Any) -> Any:
        parts = jax.vmap(lambda batch: observer.update(observer.init((50, 3)), batch))(x)
        return observe(observer, x), parts, observer.init((50, 3))

    whole, stacked, start = jax.tree.map(np.asarray, run(x))
    parts = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(6)]
    back = functools.reduce(lambda later, part: merge(part, later), parts[::-1])
    tree = merge(merge(parts[0], parts[3]), merge(merge(parts[5], parts[1]), merge(parts[4], parts[2])))
    assert same(whole, back) and same(whole, tree) and same(whole, merge(start, whole))
    if not isinstance(observer, MinMax):
        counts = whole.histogram.counts
        np.testing.assert_array_equal(counts.sum(-1), whole.seen.finite)
        largest = np.abs(np.maximum(whole.seen.high, -whole.seen.low))
        assert (largest < 2.0**whole.histogram.exponent).all()
        assert (2.0**whole.histogram.exponent <= 2 * largest).all()


def test_devices_and_layers() -> None:
    x = heavy(4, 30, 3)

    def shard(part: Any) -> Any:
        states = [observer.update(observer.init(part.shape), part) for observer in EVERY]
        merged = [o.merge_over(state, "devices") for o, state in zip(EVERY, states, strict=True)]
        return states, merged

    @jax.jit
    def run(x: Any) -> Any:
        every = [observer.update(observer.init((120, 3)), x.reshape(120, 3)) for observer in EVERY]
        apart, together = jax.vmap(shard, axis_name="devices")(x)
        first = jax.tree.map(lambda a: a[0], together)
        stacked = [o.range(state, AFFINE) for o, state in zip(EVERY, apart, strict=True)]
        alone = [o.range(jax.tree.map(lambda a: a[2], s), AFFINE) for o, s in zip(EVERY, apart, strict=True)]
        return every, apart, together, stacked, alone, EVERY[1].range(first[1], AFFINE)

    every, apart, together, stacked, alone, (low, high) = run(x)
    np.testing.assert_allclose(low, x.min(1).mean(0), rtol=1e-5)  # the moving average's
    np.testing.assert_allclose(high, x.max(1).mean(0), rtol=1e-5)
    for i, observer in enumerate(EVERY):
        for a, b in zip(jax.tree.leaves(together[i]), jax.tree.leaves(every[i]), strict=True):
            assert (np.asarray(a) == np.asarray(a)[0]).all(), observer  # all devices know all
            if not isinstance(observer, MovingAverage):
                np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-4)
        assert seen_by(apart[i]).low.shape == (4, 3)  # stacked states, as those of scanned layers
        np.testing.assert_allclose(np.asarray(stacked[i])[:, 2], alone[i], rtol=1e-6)


def test_percentiles_are_numpys_within_a_bin() -> None:
    x = heavy(2, 3000, 3)
    flat = x.reshape(-1, 3)
    observers = [Percentile(percentile=p, axes=(-1,)) for p in (90.0, 99.9, 100.0)]

    @jax.jit
    def run(x: Any) -> Any:
        state = observe(observers[0], x)  # which does not depend on the percentile
        return state.histogram.exponent, [[o.range(state, s) for s in (AFFINE, SYMMETRIC)] for o in observers]

    exponent, ranges = jax.tree.map(np.asarray, run(x))
    width = 2.0**exponent / 1024
    for observer, ((low, high), (_, most)) in zip(observers, ranges, strict=True):
        percentile = observer.percentile
        assert (np.abs(high - np.percentile(flat, percentile, axis=0)) <= width).all(), percentile
        assert (np.abs(low - np.percentile(flat, 100 - percentile, axis=0)) <= width).all(), percentile
        assert (np.abs(most - np.percentile(np.abs(flat), percentile, axis=0)) <= width).all(), percentile
    np.testing.assert_array_equal(ranges[-1][1][1], np.abs(flat).max(0))


@pytest.mark.parametrize(
    "scheme", [Scheme("int4"), Scheme("int4", symmetric=False), Scheme("nf4"), SYMMETRIC]
)
def test_least_squares_finds_the_best_range(scheme: Scheme) -> None:
    x: Any = np.maximum(heavy(1, 20000, 1, seed=3)[0] * 1e4, -40)  # one long tail, of numbers far from one
    if scheme.symmetric and scheme.fmt.name != "nf4":
        x = x * np.random.default_rng(0).choice([-1, 1], x.shape)
    x = np.float32(x)
    highs = np.float32(np.linspace(0.01, 1, 60) * np.maximum(x.max(), -x.min()))
    lows: Any = -highs if scheme.symmetric else np.full_like(highs, x.min())

    @jax.jit
    def run(x: Any, lows: Any, highs: Any) -> Any:
        def squared_error(ends: Any) -> Any:
            low, high = (jnp.reshape(end, (1, 1)) for end in ends)
            scale, zero = scale_of_range(low, high, scheme)
            return jnp.sum(jnp.square(fake_quantize(x, scheme, scale, zero) - x))

        low, high = MeanSquaredError().range(observe(MeanSquaredError(), x[None]), scheme)
        return jax.lax.map(squared_error, (jnp.append(lows, low), jnp.append(highs, high)))

    every = run(x, np.append(lows, min(x.min(), 0)), np.append(highs, x.max()))
    *tried, widest, found = np.asarray(every)
    assert found <= 1.02 * min(tried)
    assert found < 0.7 * widest or scheme is SYMMETRIC


def tensorrt_divergences(x: Any, bins: int = 1024, levels: int = 128) -> tuple[float, list[float]]:
    """The slides' algorithm on the magnitudes: the width of a bin, and the divergence of each threshold."""
    counts, edges = np.histogram(np.abs(x), bins=bins, range=(0, np.abs(x).max()))
    found = [np.inf] * levels
    for i in range(levels, bins + 1):
        p = counts[:i].astype(float)
        p[-1] += counts[i:].sum()
        level = np.repeat(np.arange(levels), [len(part) for part in np.array_split(np.arange(i), levels)])
        sums, members = np.bincount(level, counts[:i]), np.bincount(level, p > 0)
        q = np.where(p > 0, (sums / np.maximum(members, 1))[level], 0)
        p, q = p / p.sum(), q / q.sum()
        found.append(np.sum(p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-7))))
    return float(edges[1]), found


def test_entropy_clips_as_tensorrt_does() -> None:
    rng = np.random.default_rng(5)
    x: Any = rng.standard_normal((4, 50000))
    x[0, :20] *= 12
    x[1:] = [np.maximum(x[1], 0), rng.laplace(size=50000), np.linspace(-1, 1, 50000)]
    observer = Entropy(axes=(0,), bins=2048)
    run = jax.jit(lambda x: observer.range(observe(observer, x), SYMMETRIC))
    low, high = map(np.asarray, run(x[None].astype(np.float32)))
    np.testing.assert_array_equal(low, -high)
    for numbers, found in zip(x, high, strict=True):
        width, divergences = tensorrt_divergences(numbers[numbers != 0])
        least = min(divergences)
        assert divergences[round(found / width)] < least + 3e-3 < divergences[128] / 2
    assert high[0] < 0.6 * np.abs(x[0]).max() and high[3] > 0.95


def test_moments() -> None:
    x = heavy(3, 10, 4)
    state = observe(Moments(axes=(-1,)), jnp.asarray(x))
    flat = x.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(state.mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.magnitude, np.abs(flat).mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.second, np.square(flat).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(state.largest, np.abs(x).max((0, 1)))
    empty = Moments().init(())
    assert [float(part) for part in (empty.mean, empty.magnitude, empty.second, empty.largest)] == [0] * 4


def test_extreme_magnitudes_stay_in_range() -> None:
    big, small = float(jnp.finfo(jnp.float32).max), 1e-35
    observer = Percentile(percentile=100.0, bins=64)
    least = MeanSquaredError(bins=64, candidates=10)

    @jax.jit
    def run(x: Any) -> Any:
        state = observe(observer, x)
        return state.histogram, observer.range(state, AFFINE), least.range(state, AFFINE)

    histogram, ends, chosen = jax.tree.map(np.asarray, run(np.array([[small], [-big], [0.0]], np.float32)))
    assert histogram.counts.sum() == 3 and histogram.zeros == 1
    np.testing.assert_allclose(ends, (-big, small), rtol=1e-6)
    assert np.isfinite(chosen).all()


def test_large_counts_still_grow() -> None:
    """2²⁴ and 1 is 2²⁴ in float32, and so it is 64 times over: a batch is counted in integers."""
    observer = Percentile(bins=8)
    start = observer.init((64,))
    many = jnp.full_like(start.histogram.counts, 2.0**24)
    start = start._replace(histogram=start.histogram._replace(exponent=jnp.int32(1), counts=many))
    found = observer.update(start, jnp.ones(64))
    np.testing.assert_array_equal(found.histogram.counts - many, np.eye(8)[6] * 64)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="there is no observer 'max'; there are minmax, average"):
        get_observer("max")
    with pytest.raises(ValueError, match="observer 'minmax' has no momentum; it has axes"):
        get_observer("minmax", momentum=0.5)
    with pytest.raises(ValueError, match=r"MinMax keeps axes \(2,\); the array has 1"):
        MinMax(axes=(2,)).init((3,))
    with pytest.raises(ValueError, match="power of two from 8 to 65536, not 100"):
        Percentile(bins=100).init((3,))
    with pytest.raises(ValueError, match="percentile must be more than 50"):
        Percentile(percentile=1.0)
    with pytest.raises(ValueError, match="momentum must be at least 0"):
        MovingAverage(momentum=1.0)
    with pytest.raises(ValueError, match="mxfp4 computes a scale for each block"):
        MinMax().range(MinMax().init(()), Scheme("mxfp4", group_axis=0))
