"""Every fact that is claimed holds: random programs run on random and special numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from tests.ir._observe import observe, wrong_facts

Op = Callable[[random.Random, list[Any]], Any]

SHAPES = [(), (3,), (3, 3), (1, 3), (3, 1), (2, 3, 3), (3, 4), (0, 3)]
DTYPES = ["float32", "float32", "int32", "bool", "bfloat16", "int8", "uint8", "complex64"]


def pick(rng: random.Random, pool: list[Any], kinds: str = "iufb", rank: int = 0) -> Any:
    """A value whose dtype is one of `kinds` (as numpy names them; V is bfloat16), of at least a rank."""
    fit = [x for x in pool if _kind(x) in kinds and x.ndim >= rank]
    return rng.choice(fit) if fit else jnp.zeros((2,) * rank, jnp.float32)


def _kind(x: Any) -> str:
    return "f" if jnp.issubdtype(x.dtype, jnp.floating) else np.dtype(x.dtype).kind


def unary(*functions: Callable[[Any], Any], kinds: str = "f") -> Op:
    return lambda rng, pool: rng.choice(functions)(pick(rng, pool, kinds))


def binary(*functions: Callable[[Any, Any], Any], kinds: str = "iufb") -> Op:
    def op(rng: random.Random, pool: list[Any]) -> Any:
        a = pick(rng, pool, kinds)
        same = [a, *(x for x in pool if x.dtype == a.dtype and _fits(x.shape, a.shape))]
        return rng.choice(functions)(a, rng.choice(same))

    return op


def _fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return len(np.broadcast_shapes(a, b)) <= 3
    except ValueError:
        return False


def one_of(rng: random.Random, makers: Sequence[Callable[[], Any]]) -> Any:
    """What one of these makes."""
    return rng.choice(makers)()


def structured(rng: random.Random, pool: list[Any]) -> Any:
    n, m, k = rng.choice([3, 3, 2]), rng.choice([3, 3, 4]), rng.randint(-2, 2)
    dtype = rng.choice(["float32", "int32", "bool"])
    x = pick(rng, pool, "iuf", 2)
    return one_of(
        rng,
        [
            lambda: jnp.eye(n, m, k, dtype),
            lambda: jnp.tri(n, m, k, dtype),
            lambda: jnp.tril(x, k),
            lambda: jnp.triu(x, k),
            lambda: jax.nn.one_hot(lax.iota(jnp.int32, n), m),
            lambda: lax.broadcasted_iota(jnp.int32, (n, m), rng.randint(0, 1)),
            lambda: lax.broadcasted_iota(jnp.float32, (2, n, m), rng.randint(0, 2)),
            lambda: jnp.full((n, m), rng.choice([0, 1, -1, 2]), dtype),
            lambda: jnp.full((m,), rng.choice([0.0, -0.0, 1.0, np.nan, np.inf, 1e38, 1e-40]), "float32"),
            lambda: jnp.diag(pick(rng, pool, "iuf").reshape(-1)[:3]),
            lambda: jnp.asarray(np.random.RandomState(k + 2).randint(0, 2, (n, m)), dtype),
            lambda: jnp.eye(4)[np.random.RandomState(k + 2).permutation(4)],
            lambda: jnp.arange(n) * rng.choice([1, 2, -3]) + k,
        ],
    )


def moved(rng: random.Random, pool: list[Any]) -> Any:
    x = pick(rng, pool, "iufbc")
    axes = list(range(x.ndim))
    rng.shuffle(axes)
    starts = [rng.randint(0, d // 2) for d in x.shape]
    stops = [rng.randint(s, d) for s, d in zip(starts, x.shape, strict=True)]
    edges = [(rng.randint(-1, 2), rng.randint(0, 2), rng.randint(0, 1)) for _ in x.shape]
    edges = [
        (max(low, 0) if d == 0 else low, high, gap)
        for (low, high, gap), d in zip(edges, x.shape, strict=True)
    ]
    filler = jnp.asarray(rng.choice([0, 1]), x.dtype)
    dim = rng.randint(0, max(x.ndim - 1, 0))
    return one_of(
        rng,
        [
            lambda: x.transpose(axes),
            lambda: lax.slice(x, starts, stops, [rng.randint(1, 2) for _ in axes]),
            lambda: lax.rev(x, axes[: rng.randint(0, 2)]),
            lambda: lax.pad(x, filler, edges),
            lambda: lax.concatenate([x, x], dim) if x.ndim else x,
            lambda: jnp.broadcast_to(x, (2, *x.shape)) if x.ndim < 3 else x,
            lambda: x.reshape(-1),
            lambda: jnp.expand_dims(x, dim),
            lambda: x[None].reshape(*x.shape, 1) if x.ndim < 3 else x,
            lambda: x.swapaxes(-1, -2) if x.ndim > 1 else x,
            lambda: lax.dynamic_slice(x, [1] * x.ndim, [max(d - 1, 0) for d in x.shape]),
            lambda: jnp.sort(x, axis=-1) if x.ndim and x.dtype != jnp.complex64 else x,
            lambda: x[jnp.array([0, 5, -1])] if x.ndim and x.shape[0] else x,
            lambda: x.at[jnp.array([0, 7])].get(mode="fill") if x.ndim and x.shape[0] else x,
            lambda: jnp.split(x, [1], axis=0)[1] if x.ndim else x,
            lambda: x[:1].squeeze(0) if x.ndim and x.shape[0] else x,
            lambda: lax.dynamic_update_slice(x, x[:1] * 0, [1] * x.ndim) if x.ndim and x.shape[0] else x,
            lambda: x.at[jnp.array([0, 7])].set(filler) if x.ndim else x,
            lambda: lax.optimization_barrier(x),
            lambda: jax.device_put(x),
        ],
    )


def reduced(rng: random.Random, pool: list[Any]) -> Any:
    x = pick(rng, pool, "iuf", 1)
    axes = tuple(rng.sample(range(x.ndim), rng.randint(1, x.ndim)))
    axis = axes[0]
    nonempty = 0 not in x.shape
    return one_of(
        rng,
        [
            lambda: lax.reduce_sum_p.bind(x, axes=axes, out_sharding=None),
            lambda: jnp.max(x, axes) if nonempty else x,
            lambda: jnp.min(x, axes) if nonempty else x,
            lambda: jnp.prod(x, axes, dtype=x.dtype),
            lambda: jnp.argmax(x, axis) if nonempty else x,
            lambda: jnp.argmin(x) if nonempty else x,
            lambda: lax.cummin(x, axis, reverse=True),
            lambda: jnp.convolve(x.reshape(-1).astype("float32"), jnp.ones(2)) if x.size else x,
            lambda: lax.reduce_precision(x.astype("float32"), 5, 3),
            lambda: lax.cumsum(x, axis),
            lambda: lax.cummax(x, axis),
            lambda: lax.cumprod(x, axis),
            lambda: jnp.any(x > 0, axes),
            lambda: jnp.all(x > 0, axes),
            lambda: lax.top_k(x, 1)[rng.randint(0, 1)] if x.shape[-1] else x,
            lambda: jnp.mean(x, axes) if nonempty else x,
            lambda: jax.nn.softmax(x.astype("float32"), axis),
        ],
    )


def multiplied(rng: random.Random, pool: list[Any]) -> Any:
    a = pick(rng, pool, "iuf", 2)
    fit = [x for x in pool if x.dtype == a.dtype and x.ndim == a.ndim and x.shape[-2] == a.shape[-1]]
    fit = [x for x in fit if x.shape[:-2] == a.shape[:-2]]
    return a @ (rng.choice(fit) if fit and rng.random() < 0.7 else a.swapaxes(-1, -2))


def symmetrised(rng: random.Random, pool: list[Any]) -> Any:
    x = pick(rng, pool, "iuf", 2)
    if x.shape[-1] != x.shape[-2]:
        return x
    return rng.choice([jnp.add, jnp.multiply, jnp.maximum, jnp.subtract])(x, x.swapaxes(-1, -2))


def converted(rng: random.Random, pool: list[Any]) -> Any:
    x = pick(rng, pool, "iufb")
    return lax.convert_element_type(x, rng.choice(DTYPES[:-1]))


def chosen(rng: random.Random, pool: list[Any]) -> Any:
    x = pick(rng, pool, "iuf")
    masks = [m for m in pool if m.dtype == bool and _fits(m.shape, x.shape)]
    mask = rng.choice(masks) if masks else x > 0
    number = jnp.asarray(rng.choice([0, 1]), x.dtype)
    other = rng.choice([number, x, -x])
    return one_of(rng, [lambda: jnp.where(mask, x, other), lambda: jnp.where(mask, other, x)])


def guarded(rng: random.Random, pool: list[Any]) -> Any:
    """A select whose predicate looks at what it selects."""
    x = pick(rng, pool, "iuf")
    other = rng.choice([jnp.zeros_like(x), pick(rng, [y for y in pool if y.shape == x.shape], "iuf")])
    other = other.astype(x.dtype) if other.shape == x.shape else jnp.ones_like(x)
    limit = rng.choice([other, jnp.full_like(x, rng.choice([0, 1, 3]))])
    test = rng.choice([lax.lt, lax.le, lax.gt, lax.ge, lax.eq, lax.ne])
    left, right = rng.choice([(x, limit), (limit, x), (x, x)])
    mask = test(left, right)
    if jnp.issubdtype(x.dtype, jnp.floating) and rng.random() < 0.2:
        mask = lax.is_finite(x)
    return lax.select(mask, x, other) if rng.random() < 0.5 else lax.select(mask, other, x)


def clipped(rng: random.Random, pool: list[Any]) -> Any:
    x = pick(rng, pool, "if")
    low, high = jnp.asarray(rng.choice([-1, 0]), x.dtype), jnp.asarray(rng.choice([0, 2]), x.dtype)
    return one_of(rng, [lambda: lax.clamp(low, x, high), lambda: jnp.clip(x, low, high)])


def with_regions(rng: random.Random, pool: list[Any]) -> Any:
    x = pick(rng, pool, "f", 1)
    y = pick(rng, pool, "f")
    count = jnp.asarray(rng.randint(0, 2))

    def body(carry: Any, row: Any) -> Any:
        kept, moving, i = carry
        return (kept, jnp.tanh(moving) + row.sum().astype(y.dtype), i + 1), (jnp.abs(row), kept * 1, i)

    return one_of(
        rng,
        [
            lambda: lax.cond(jnp.any(x > 0), lambda v: jnp.abs(v), lambda v: v * v, x),
            lambda: lax.switch(count, [jnp.exp, jnp.zeros_like, jnp.sqrt], y),
            lambda: lax.scan(body, (y, y, 0), x)[1][rng.randint(0, 2)],
            lambda: lax.scan(body, (y, y, 0), x, reverse=True)[0][rng.randint(0, 2)],
            lambda: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1], s[2] * s[2]), (0, y, y))[
                rng.randint(0, 2)
            ],
            lambda: lax.fori_loop(0, 3, lambda i, s: jnp.maximum(s, i.astype(s.dtype)), y),
            lambda: jax.nn.relu(jax.nn.relu(x)),
            lambda: jax.jit(lambda a, b: jnp.where(a > 0, a, b))(y, jnp.zeros((), y.dtype)),
            lambda: jax.checkpoint(lambda a: jnp.sin(a) * a)(y),
            lambda: jax.nn.logsumexp(x.astype("float32"), -1),
            lambda: jnp.linspace(0, 1, 3),
        ],
    )


OPS: list[Op] = [
    structured,
    structured,
    moved,
    moved,
    reduced,
    multiplied,
    symmetrised,
    converted,
    chosen,
    guarded,
    clipped,
    with_regions,
    unary(jnp.negative, jnp.abs, jnp.sign, jnp.square, kinds="if"),
    unary(jnp.exp, jnp.tanh, jax.nn.sigmoid, jnp.log, jnp.log1p, jnp.expm1, jnp.sqrt, lax.rsqrt, jnp.cbrt),
    unary(
        jnp.sin, jnp.cos, jnp.tan, jnp.arctan, jnp.sinh, jnp.cosh, jnp.arcsinh, lax.erf, lax.erfc, jnp.exp2
    ),
    unary(jnp.floor, jnp.ceil, jnp.round, jnp.isfinite, lax.stop_gradient, lax.erf_inv),
    unary(jnp.arcsin, jnp.arccos, jnp.arctanh, jnp.log2, lax.lgamma),
    unary(lambda x: x >> 1, lambda x: lax.shift_right_logical(x, x * 0 + 2), kinds="iu"),
    unary(*(lambda x, y=y: lax.integer_pow(x, y) for y in (-2, -1, 0, 1, 2, 3)), kinds="f"),
    unary(lax.population_count, lax.clz, jnp.invert, kinds="iu"),
    binary(jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum, kinds="iufc"),
    binary(jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum, kinds="iuf"),
    binary(lax.div, lax.rem, kinds="iuf"),
    binary(jnp.power, jnp.arctan2, kinds="f"),
    binary(jnp.equal, jnp.not_equal, jnp.less, jnp.less_equal, jnp.greater, jnp.greater_equal, kinds="iuf"),
    binary(jnp.bitwise_and, jnp.bitwise_or, jnp.bitwise_xor, kinds="iub"),
    unary(jnp.logical_not, kinds="b"),
]


def known(x: Any) -> list[Any]:
    """Values of a float matrix about which something is known: finite, ordered, of one sign, with zeros."""
    finite = jnp.tanh(lax.select(x == x, x, jnp.zeros_like(x)))
    return [
        finite,
        finite * 1e38 * 1e38,
        jnp.abs(finite),
        jnp.tril(x),
        jnp.triu(finite),
        jnp.tri(3, dtype=x.dtype),
        jnp.eye(3, dtype=x.dtype),
        lax.broadcasted_iota(x.dtype, (3, 3), 0),
        lax.broadcasted_iota(x.dtype, (3, 3), 1),
        jnp.zeros_like(x),
        jnp.tri(3, dtype=bool),
        x + x.T,
    ]


def program(seed: int, length: int) -> Callable[..., list[Any]]:
    def fun(*args: Any) -> list[Any]:
        rng = random.Random(seed)
        pool = [*args, *rng.sample(known(jnp.real(args[-1]).astype(jnp.float32)), 5)]
        for _ in range(length):
            try:
                made = rng.choice(OPS)(rng, pool)
            except (TypeError, ValueError, DeprecationWarning):  # the draw is not well typed
                continue
            if made.size <= 200 and made.ndim <= 4:
                pool.append(made)
        return pool

    return fun


SPECIAL = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 2e-38, 0.5, 7.0, -128.0]


def inputs(seed: int, mood: str) -> list[Any]:
    """Arrays of several shapes and dtypes, full of special numbers, or of small ones, or of zeros."""
    rng = np.random.RandomState(seed)
    made: list[Any] = []
    for shape in [*random.Random(seed).sample(SHAPES, 2), (3, 3)]:
        dtype = random.Random(seed + len(made)).choice(DTYPES)
        numbers: Any = rng.choice(SPECIAL, shape) if mood == "special" else rng.randn(*shape) * 2
        if mood == "zero":
            numbers = np.zeros(shape)
        if dtype == "bool" or np.issubdtype(jnp.dtype(dtype), np.integer):
            numbers = np.clip(np.nan_to_num(numbers), -128 if dtype[0] == "i" else 0, 127)
        made.append(jnp.asarray(np.asarray(numbers).astype(jnp.dtype(dtype))))
    return made


@pytest.mark.parametrize("seed", range(12))
def test_facts_hold_on_random_programs(seed: int) -> None:
    fun = program(seed, 25)
    with np.errstate(all="ignore"):
        graph = trace(fun, *inputs(seed, "special"))
        for mood in ("special", "small", "zero"):
            assert not wrong_facts(observe(graph, inputs(seed, mood)))
