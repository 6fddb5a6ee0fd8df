"""Algebra as a whole: what the levels promise, hostile numbers, regions, shapes, and what it leaves alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lepton_jax.ir import from_jaxpr, trace
from lepton_jax.ir.export import to_callable
from lepton_jax.passes.simplify.algebra import RULES, Algebra
from lepton_jax.rewrite import Pipeline
from tests.passes import (
    test_algebra_additive,
    test_algebra_comparison,
    test_algebra_logic,
    test_algebra_minmax,
    test_algebra_multiplicative,
    test_algebra_powers,
    test_algebra_reductions,
)
from tests.passes._algebra import short, special
from tests.passes._check import all_bitwise, all_kept, fired, optimised, rewrite_jaxpr, same, same_bits

FAMILIES = [
    test_algebra_additive,
    test_algebra_comparison,
    test_algebra_logic,
    test_algebra_minmax,
    test_algebra_multiplicative,
    test_algebra_powers,
    test_algebra_reductions,
]


def test_every_rule_has_a_case_and_a_lookalike() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert {case.rule for family in FAMILIES for case in family.CASES} == set(names)
    assert {alike.rule for family in FAMILIES for alike in family.ALIKE} == set(names)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_says_what_it_does_and_where_it_is(rule: Any) -> None:
    assert "→" in rule.doc
    assert "_algebra" in rule.where


def test_text() -> None:
    def program(x: jax.Array, y: jax.Array) -> jax.Array:
        z = -(x * 1.0 - y) / 4.0
        return jnp.where(~(x == x), z, z) + 0.0 * jnp.sum(y)

    x = jnp.ones((2, 3))
    assert optimised(program, x, x, passes="inline,algebra,dce").to_text() == "\n".join(
        [
            "graph program(%0: f32[2,3], %1: f32[2,3]) {",
            "  %2: f32[2,3] = sub %1 %0",
            "  %3: f32[2,3] = mul %2 0.25",
            "  %4: f32[] = reduce_sum[axes=(0,1)] %1",
            "  %5: f32[] = mul 0.0 %4",
            "  %6: f32[2,3] = add %3 %5",
            "  return %6",
            "}",
        ]
    )


def test_level_is_an_option() -> None:
    assert Pipeline.parse("algebra{level=exact}").steps == (Algebra(level="exact"),)
    assert not fired(lambda x: x + 0.0, jnp.ones(3), passes="algebra{level=exact}")
    assert fired(lambda x: x + 0.0, jnp.ones(3), passes="algebra") == {"add-zero": 1}


# Hostile numbers: functions in which rules of both levels fire, of one real array.

REAL: dict[str, Callable[[Any], Any]] = {
    "sums": lambda x: [x + 0.0, 0.0 - x, x - (-x), -(x - 1.0), (x + 1.0) + 2.0, (2.0 - x) - 5.0, x - x],
    "products": lambda x: [x * 1.0, x * -1.0, (-x) * (-x), -(x * 3.0), (x * 3.0) * 0.5, x / 4.0, x / x],
    "quotients": lambda x: [
        6.0 / (x * 3.0),
        6.0 / (3.0 / x),
        (x / 7.0) * 14.0,
        0.0 / x,
        x * 0.0,
        x + x * 2.0,
    ],
    "powers": lambda x: [x**2.0, x**-2.0, x**0.5, x**1.5, x**-1.5, x**-0.5, x**0.0, (x**2) ** 2, x**-1],
    "roots": lambda x: [jnp.square(jnp.sqrt(x)), 1 / jnp.sqrt(x), 1 / lax.rsqrt(x), jnp.sqrt(1 / x)],
    "exponentials": lambda x: [jnp.log(jnp.exp(x)), jnp.exp(jnp.log(x)), 1 / (1 + jnp.exp(-x))],
    "signs": lambda x: [jnp.abs(jnp.abs(x)), jnp.abs(jnp.exp(x)), jnp.sign(jnp.sign(x)), jnp.square(-x)],
    "bounds": lambda x: [jnp.maximum(jnp.maximum(x, -1.0), 1.0), jnp.maximum(x, -jnp.inf), lax.max(x, x)],
    "comparisons": lambda x: [x == x, x < x, x >= x, ~(x == 1.0), ~(x < 1.0), jnp.isnan(x)],
    "reductions": lambda x: [jnp.sum(x - x), lax.cumsum(x[None], 0), lax.cummax(x[None], 0)],
}


def families(functions: dict[str, Callable[[Any], Any]], *arrays: Any) -> dict[str, tuple[Any, tuple[Any]]]:
    """Programs for `all_kept` and `all_bitwise`: every family of every array."""
    return {
        f"{family} of {x.dtype.name}{x.shape}": (fun, (x,))
        for x in arrays
        for family, fun in functions.items()
    }


VALUES: dict[str, Any] = {"passes": "algebra", "grad": False, "vmap": False, "export": False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hostile_floats(dtype: str) -> None:
    programs = families(REAL, special(dtype))
    all_kept(programs, **VALUES)
    all_bitwise(programs, passes="algebra")


def test_shapes() -> None:
    arrays = [special("float32", shape) for shape in ((), (0,), (3, 0, 2), (1, 1))]
    together = {str(x.shape): (lambda x: [fun(x) for fun in REAL.values()], (x,)) for x in arrays}
    all_kept(together, **VALUES)


INTEGER: dict[str, Callable[[Any], Any]] = {
    "sums": lambda n: [n + 0, 0 - n, n - n, n - (-n), -(n - 1), (n + 100) + 100, 5 - (n - 3)],
    "products": lambda n: [n * 1, n * 0, (-n) * (-n), (n * 11) * 13, n * 3 + n * 4, n - n * 3, (n**3) ** 2],
    "bits": lambda n: [n & n, n ^ n, ~~n, n & 0, n | 0, n ^ ~n, n & (n | 1), (n << 1) << 2, (n >> 2) >> 4],
    "comparisons": lambda n: [n == n, n < n, ~(n < 3), n >= 0, (n > 2).astype(n.dtype) == 1, n - 1 == 0],
    "bounds": lambda n: [
        lax.max(n, n),
        lax.max(lax.max(n, n + 1), n),
        jnp.abs(-n) if n.dtype.kind == "i" else n,
        jnp.sign(n & 7),
        lax.rem(n & 3, np.asarray(4, n.dtype)),
        lax.div(n, np.asarray(1, n.dtype)),
    ],
}


def test_hostile_integers() -> None:
    arrays = {dtype: special(dtype) for dtype in ("int8", "uint8", "int16", "int32", "uint32")}
    all_bitwise(families(INTEGER, *arrays.values()), passes="algebra")
    all_kept(families(INTEGER, arrays["int8"], arrays["uint32"]), **VALUES)


def test_conversions_of_every_pair() -> None:
    """What the passes leave as it is needs no numbers."""
    names = ["bool", "int8", "uint8", "int16", "int32", "uint32", "bfloat16", "float16", "float32"]
    x = jnp.asarray([0, 1, 1, 0])
    changed = 0
    for first in names:

        def there_and_back(x: Any, first: str = first) -> Any:
            start = x.astype(first)
            return [start.astype(second).astype(third) for second in names for third in names]

        closed = jax.make_jaxpr(there_and_back)(x)
        plain, graph = from_jaxpr(closed), rewrite_jaxpr(closed, "f", "algebra", "exact")[0]
        changed += len(list(plain)) - len(list(graph))
        same_bits(to_callable(plain)(x), to_callable(graph)(x), first)
    assert changed > 100


def test_narrow_values_survive_wide_detours() -> None:
    programs = {}
    for name in ("int8", "uint8", "int16", "bfloat16", "float16"):
        x = special(name)
        for middle in ("int32", "float32"):
            if name[0] in "bf" and middle == "int32":
                continue

            def detour(x: Any, middle: str = middle) -> Any:
                return x.astype(middle).astype(x.dtype)

            programs[f"{name} by {middle}"] = detour, (x,)
            assert short(optimised(detour, x, passes="algebra")) == "%0"
    all_bitwise(programs, passes="algebra")


def test_double_precision() -> None:
    with jax.enable_x64(True):
        x = special("float64")
        all_bitwise(families(REAL, x), passes="algebra")
        all_kept(families(REAL, x), passes="algebra", grad=False, export=False)
        graph = optimised(
            lambda x: x.astype("float64").astype("float32"), x.astype("float32"), passes="algebra"
        )
        assert short(graph) == "%0"
        assert fired(lambda x: x.astype("float32").astype("float64"), x, passes="algebra") == {}


# Derivatives at the points where they are delicate.

DELICATE: list[Callable[[Any], Any]] = [
    lambda x: jnp.abs(jnp.abs(x)),
    lambda x: jnp.abs(jnp.square(x)),
    lambda x: jnp.abs(-x),
    lambda x: jnp.sqrt(jnp.square(x)),
    lambda x: jnp.square(jnp.abs(x)),
    lambda x: jnp.maximum(x, x),
    lambda x: jnp.maximum(jnp.maximum(x, 0.0), 0.0),
    lambda x: jnp.maximum(jnp.maximum(x, 0.0), 1.0),
    lambda x: jnp.minimum(jnp.minimum(x, 1.0), 0.0),
    lambda x: jnp.maximum(x, -jnp.inf),
    lambda x: lax.clamp(0.0, lax.clamp(-1.0, x, 1.0), 2.0),
    lambda x: lax.clamp(-jnp.inf, x, jnp.inf),
    lambda x: jnp.where(x > 0, x, x),
    lambda x: jnp.square(jnp.sqrt(x)),
    lambda x: jnp.exp(jnp.log(x)),
    lambda x: lax.pow(x, np.float32(1.5)),
    lambda x: lax.pow(x, np.float32(2.5)),
    lambda x: lax.pow(x, np.float32(2.0)),
    lambda x: lax.pow(x, np.float32(0.5)),
    lambda x: lax.pow(x, np.float32(-1.0)),
    lambda x: 1 / (1 + jnp.exp(-x)),
    lambda x: (x**2) ** 2,
    lambda x: x * 0.0 + x / 2.0,
]


def test_derivatives() -> None:
    points = jnp.asarray([0.0, -0.0, 1.0, -1.0, 2.0])
    names = [f"{i}: {inspect.getsource(fun).strip()}" for i, fun in enumerate(DELICATE)]
    rewritten = [to_callable(optimised(fun, jnp.float32(1), passes="algebra")) for fun in DELICATE]

    def slopes(points: Any) -> Any:
        pairs = [
            (fun, lambda x, flat=flat: flat(x)[0]) for fun, flat in zip(DELICATE, rewritten, strict=True)
        ]
        return [[jax.vmap(jax.grad(fun))(points) for fun in pair] for pair in pairs]

    for name, (expected, found) in zip(names, jax.jit(slopes)(points), strict=True):
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(found), finite, err_msg=name)
        np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-6, err_msg=name)


def test_half_powers_have_all_derivatives() -> None:
    x = jnp.asarray([0.3, 1.0, 2.5])
    pairs: dict[float, list[Callable[[Any], Any]]] = {}
    for exponent in (1.5, 2.5, 4.5, -1.5, -3.5):

        def power(x: Any, exponent: float = exponent) -> Any:
            return lax.pow(jnp.maximum(x, 0.1), np.float32(exponent))

        graph = optimised(power, jnp.float32(1), passes="algebra")
        assert "pow" not in short(graph).replace("integer_pow", "")

        def rebuilt(x: Any, flat: Any = to_callable(graph)) -> Any:  # noqa: B008
            return flat(x)[0]

        pairs[exponent] = [power, rebuilt]

    def derivatives(fun: Callable[[Any], Any], x: Any) -> Any:
        return [jax.vmap(f)(x) for f in (fun, jax.grad(fun), jax.grad(jax.grad(fun)))]

    def both(x: Any) -> Any:
        return {exponent: [derivatives(fun, x) for fun in pair] for exponent, pair in pairs.items()}

    for exponent, (plain, found) in jax.jit(both)(x).items():
        for order, (a, b) in enumerate(zip(plain, found, strict=True)):
            np.testing.assert_allclose(b, a, rtol=3e-5, err_msg=f"derivative {order} of x**{exponent}")


# Where programs hide


def test_regions() -> None:
    def program(x: jax.Array) -> Any:
        def step(c: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
            return c * 1.0 - (-row), (c * 2.0) * 3.0

        carry, rows = lax.scan(step, x[0], x)
        chosen = lax.cond(x[0, 0] > 0, lambda a: lax.neg(lax.neg(a)), lambda a: a / 1.0, carry)
        last = lax.while_loop(lambda a: ~(a.sum() >= a.sum() + 1), lambda a: a * 1.0 + 0.0, chosen[:0])
        return rows, chosen, last, jax.checkpoint(lambda a: jnp.sin(a) * 1.0)(carry), jax.nn.relu(carry)

    graph = same(program, jnp.arange(6.0).reshape(3, 2), passes="algebra", grad=False)
    text = graph.to_text()
    assert "mul %0 1.0" not in text
    assert "mul %0 6.0" in text
    assert "neg" not in text


def test_symbolic_shapes() -> None:
    def program(x: jax.Array) -> Any:
        return (x * 1.0 + 0.0) * 3.0 * 2.0, x == x, jnp.sum(x * 0.0 + 1.0, 1), x**2.5

    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 3), jnp.float32)
    closed = jax.make_jaxpr(program)(x)
    graph, report = rewrite_jaxpr(closed, "f", "algebra")
    assert {"mul-by-one", "add-zero", "merge-factors", "pow-of-constant-exponent"} <= report.rules.keys()
    exported = jax.export.export(jax.jit(to_callable(graph)))(x)
    for size in (1, 4):
        y = jnp.arange(3.0 * size).reshape(size, 3)
        for a, b in zip(exported.call(y), program(y), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_keys_and_float0_pass() -> None:
    def program(key: jax.Array, x: jax.Array, n: jax.Array) -> Any:
        same_key = jnp.where(n[0] > 0, key, key)
        return jax.random.normal(same_key, (3,)) * 1.0 + x, lax.select_n(n[0] > 0, key, key)

    key, x, n = jax.random.key(0), jnp.ones(3), jnp.arange(3)
    flat = to_callable(optimised(program, key, x, n, passes="inline,algebra"))
    value, chosen = flat(key, x, n)
    np.testing.assert_array_equal(value, program(key, x, n)[0])
    assert chosen == key

    def with_float0(x: jax.Array, n: jax.Array) -> Any:
        return jax.jvp(lambda x, n: x * n, (x, n), (x, np.zeros(n.shape, jax.dtypes.float0)))

    graph = optimised(with_float0, x, n, passes="algebra")
    np.testing.assert_allclose(to_callable(graph)(x, n)[1], with_float0(x, n)[1])


def test_narrow_floats_are_left_alone() -> None:
    x = jnp.asarray([1.0, 2.0]).astype(jnp.float8_e4m3fn)
    assert fired(lambda x: [x * x.dtype.type(1), x - x, x == x], x, passes="algebra") == {}


def test_inside_shard_map_types_stay() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("i",))
    spec = PartitionSpec("i")

    def body(x: jax.Array, n: jax.Array) -> Any:
        return x * 1.0 - (-x), n - n, jnp.cumsum(x[None], 0)[0], n * 0

    def program(x: jax.Array, n: jax.Array) -> Any:
        return jax.shard_map(body, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(x, n)

    x, n = jnp.arange(4.0), jnp.arange(4)
    flat = to_callable(optimised(program, x, n, passes="algebra"))
    for a, b in zip(jax.jit(flat)(x, n), program(x, n), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sharded_types_stay() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Explicit,))

    def program(x: jax.Array, n: jax.Array) -> Any:
        return x * 1.0 - (-x), n - n, (x + 1.0) + 2.0, 1 / (1 + jnp.exp(-x)), lax.pow(x, np.float32(1.5))

    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(4.0), NamedSharding(mesh, PartitionSpec("i")))
        n = x.astype(jnp.int32)
        flat = to_callable(optimised(program, x, n, passes="algebra"))
        for a, b in zip(jax.jit(flat)(x, n), program(x, n), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
            assert jax.typeof(a) == jax.typeof(b)


def test_scalars_that_stand_for_arrays_are_spread() -> None:
    def program(s: jax.Array) -> Any:
        ones = jnp.ones((2, 3))
        return s * ones, s + ones * 0.0, ones / s, lax.select_n(np.full((2, 3), True), ones, ones * s)

    graph = same(program, jnp.float32(2.5), passes="algebra")
    assert [value.shape for value in graph.outputs] == [(2, 3)] * 4


def test_rules_do_not_fire_where_rounding_is_meant() -> None:
    def two_sum(a: jax.Array, b: jax.Array) -> Any:
        s = a + b
        t = s - a
        return s, (a - (s - t)) + (b - t)

    def split(x: jax.Array) -> Any:
        g = x * 4097.0
        high = g - (g - x)
        return high, x - high

    def nearest(x: jax.Array) -> Any:
        return (x + 12582912.0) - 12582912.0

    x = jnp.asarray([1.1, 2.3e-5, -7.9])
    for fun, args in ((two_sum, (x, x[::-1] * 1e-6)), (split, (x,)), (nearest, (x,))):
        assert fired(fun, *args, passes="algebra") == {}


def test_many_nodes_take_time_in_proportion() -> None:
    def program(x: jax.Array) -> jax.Array:
        for _ in range(500):
            x = jnp.sin(x * 1.0) + 0.0
        return x

    assert fired(program, jnp.ones(3), passes="algebra") == {"mul-by-one": 500, "add-zero": 500}
    assert len(list(optimised(program, jnp.ones(3), passes="algebra"))) == 500
    assert trace(program, jnp.ones(3)).num_nodes() == 1500
