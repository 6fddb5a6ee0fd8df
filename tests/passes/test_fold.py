"""Constant folding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.export import to_callable
from lepton_jax.ir.graph import constant
from lepton_jax.passes.simplify._fold.elementwise import Unfoldable
from lepton_jax.passes.simplify._fold.interpreter import contents
from lepton_jax.passes.simplify.fold import Fold
from lepton_jax.rewrite import PassContext, Pipeline
from lepton_jax.targets import get_target
from tests.passes._algebra import short
from tests.passes._check import all_bitwise, all_kept, bitwise, fired, optimised, same

A = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
K = np.arange(6, dtype=np.int32).reshape(2, 3) - 2
X = np.array([-1.5, 0.0, 2.0], np.float32)


def folded(fun: Any, *args: Any, level: str = "exact", passes: str = "fold") -> str:
    """The graph after folding, in one line."""
    return short(optimised(fun, *args, passes=passes, level=level))


def a() -> jax.Array:
    return jnp.asarray(A)


def k() -> jax.Array:
    return jnp.asarray(K)


def test_text() -> None:
    def program(x: jax.Array) -> Any:
        scale = jnp.float32(2.0) * 3.0
        return x * (jnp.full((2, 3), 1.0) + scale) + (a() * 2.0)[0]

    assert optimised(program, A, passes="fold", level="exact").to_text() == "\n".join(
        [
            "graph program(%0: f32[2,3]) {",
            "  %1: f32[2,3] = broadcast_in_dim[broadcast_dimensions=() shape=(2,3)] 7.0",
            "  %2: f32[2,3] = mul %0 %1",
            "  %3: f32[2,3] = add %2 const<f32[1,3]>",
            "  return %3",
            "}",
        ]
    )


EXACT: dict[str, Any] = {
    "sum": lambda: a() + 1.0,
    "integer quotient": lambda: k() // 4,
    "integer remainder": lambda: k() % 4,
    "truncated quotient": lambda: lax.div(k(), np.int32(2)),
    "comparison": lambda: a() > 0,
    "choice": lambda: jnp.where(a() > 0, a(), -a()),
    "choice of three": lambda: lax.select_n(np.int32(2), a(), a() + 1, a() + 2),
    "conversion": lambda: a().astype(jnp.int32).astype(jnp.bfloat16),
    "bits": lambda: (k() & 3) ^ ~k(),
    "shift": lambda: lax.shift_right_logical(k(), np.int32(3)) + (k() >> 1) + (k() << 2),
    "root": lambda: jnp.sqrt(jnp.abs(a())),
    "rounding": lambda: [jnp.floor(a() / 2), jnp.ceil(a() / 2), jnp.round(a() / 2), lax.round(a() / 2)],
    "bounds": lambda: [jnp.maximum(a(), 1.0), jnp.minimum(a(), 1.0), lax.clamp(-1.0, a(), 1.0)],
    "signs": lambda: [jnp.sign(a()), jnp.sign(k()), -a(), jnp.abs(k())],
    "transpose": lambda: a().T,
    "reshape": lambda: a().reshape(3, 2),
    "slice": lambda: a()[1:, ::2],
    "reverse": lambda: a()[:, ::-1],
    "concatenation": lambda: jnp.concatenate([a(), a()], 1)[:, :3],
    "dynamic slice": lambda: lax.dynamic_slice(a(), (0, 2), (1, 2)),
    "padding": lambda: lax.pad(a(), 0.0, ((0, 0, 0), (0, 0, 0))),
    "integer sum": lambda: [jnp.sum(k(), 1), jnp.cumsum(k(), 1), lax.cumsum(k(), 0, reverse=True)],
    "integer product": lambda: [jnp.prod(k(), 0), lax.dot(k(), jnp.asarray(K.T))[:1]],
    "extremes": lambda: [jnp.max(a() + 3, 0), jnp.min(k(), 1), jnp.argmax(a(), 1), jnp.argmin(k(), 0)],
    "all and any": lambda: [jnp.all(a() > 0, 1), jnp.any(a() > 0, 1)],
    "integer power": lambda: k() ** 3,
    "parts": lambda: [jnp.real(jnp.asarray(A + 1j)), jnp.imag(jnp.asarray(A + 1j))],
    "call": lambda: jax.jit(lambda x: x * 2 + 1)(k()),
    "branch": lambda: lax.switch(1, [lambda x: x, lambda x: x + 1], k()),
    "loop": lambda: lax.fori_loop(0, 3, lambda i, x: x * 2 + i, k()),
    "scan": lambda: lax.scan(lambda c, row: (c + row, c), k()[0], k()),
    "backward scan": lambda: lax.scan(lambda c, row: (c + row, c * row), k()[0], k(), reverse=True),
}


def test_exact() -> None:
    programs = {name: (fun, ()) for name, fun in EXACT.items()}
    for name, (graph, _) in all_kept(programs, passes="fold", level="exact").items():
        assert not list(graph), name
    all_bitwise(programs, passes="fold")


ROUNDED: dict[str, Any] = {
    "exp": lambda: [jnp.exp(a()), jnp.log(a() + 3), jnp.sin(a()), jnp.tanh(a()), lax.logistic(a())],
    "pow": lambda: [jnp.power(a() + 3, 1.5), a() ** 3, (a() + 3) ** -2, lax.rsqrt(a() + 3), jnp.cbrt(a())],
    "sum": lambda: [jnp.sum(a()), jnp.mean(a(), 0), jnp.cumsum(a(), 1), jnp.prod(a() + 3)],
    "product": lambda: [a() @ jnp.asarray(A.T), jnp.einsum("bij,bij->bi", a()[None], a()[None])],
    "loop": lambda: lax.fori_loop(0, 3, lambda i, x: jnp.sin(x) + 1, a()),
    "half": lambda: [jnp.exp(a().astype(jnp.bfloat16)), jnp.sum(a().astype(jnp.float16))],
}


def test_rounded_needs_reassociate() -> None:
    found = all_kept({name: (fun, ()) for name, fun in ROUNDED.items()}, passes="fold")
    for name, fun in ROUNDED.items():
        assert not list(found[name][0]), name
        assert list(optimised(fun, passes="fold", level="exact")), name


def test_arithmetic_on_one_number_is_done_once() -> None:
    def program(x: jax.Array) -> Any:
        two = jnp.full((2, 3), 2.0)
        return x * (two * 3.0 - two), jnp.where(two > 1.0, two, 0.0), jnp.exp(two)

    text = folded(program, A, passes="inline,fold,dce")
    assert text.count("broadcast_in_dim") == 3
    assert "4.0" in text
    assert "exp" in text
    assert "select_n" not in text
    assert "exp" not in folded(program, A, passes="inline,fold,dce", level="reassociate")
    same(program, A, passes="inline,fold")


STAYS: dict[str, Any] = {
    "iota": lambda: lax.iota(np.int32, 5),
    "broadcast": lambda: jnp.broadcast_to(a(), (4, 2, 3)),
    "a spread number": lambda: jnp.full((4, 4), 2.0),
    "an outer product": lambda: jnp.outer(k()[0], k()[0]),
    "padding that grows": lambda: jnp.pad(a(), 2),
    "integer division by zero": lambda: lax.div(k(), np.int32(0)),
    "integer remainder of zero": lambda: lax.rem(k(), np.int32(0)),
    "a shift out of range": lambda: lax.shift_left(k(), np.int32(32)),
    "a conversion out of range": lambda: jnp.asarray(A * 1e20).astype(jnp.int32),
    "a conversion of NaN": lambda: jnp.asarray(A * np.float32(np.nan)).astype(jnp.int32),
    "a conversion that rounds twice": lambda: jnp.asarray(K + 2**24 + 1).astype(jnp.bfloat16),
    "subnormal numbers": lambda: jnp.asarray(A * np.float32(1e-39)) * 2.0,
    "a subnormal result": lambda: jnp.asarray(np.full(3, 1e-30, np.float32)) * np.float32(1e-9),
    "zeros of both signs": lambda: jnp.maximum(jnp.asarray(A * 0.0), 0.0),
    "negative zero in a maximum": lambda: jnp.max(jnp.asarray(np.array([0.0, -0.0], np.float32))),
    "the maximum of nothing": lambda: jnp.max(jnp.zeros((0, 3)), 1),
    "complex products": lambda: jnp.asarray(A + 1j) * 2.0,
    "keys": lambda: jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32)),
    "random bits": lambda: jax.random.bits(jax.random.key(0), (2,)),
    "an unknown number of iterations": lambda: lax.while_loop(lambda x: x < 5, lambda x: x + 1, np.int32(0)),
    "too many iterations": lambda: lax.fori_loop(0, 10**6, lambda i, x: x + i, np.int32(0)),
    "narrow floats": lambda: jnp.asarray(A).astype(jnp.float8_e4m3fn) + jnp.ones(3, jnp.float8_e4m3fn),
    "negative padding": lambda: lax.pad(a(), np.float32(0), ((-1, 0, 0), (0, 0, 0))),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    fun = STAYS[name]
    graph = optimised(fun, passes="inline,fold", level="approximate")
    assert list(graph)
    for a, b in zip(to_callable(graph)(), jax.tree.leaves(fun()), strict=True):
        if not jnp.issubdtype(b.dtype, jax.dtypes.extended):
            np.testing.assert_array_equal(np.asarray(a, np.complex128), np.asarray(b, np.complex128))


def test_inputs_are_not_constants() -> None:
    assert fired(lambda x: x + 1.0, X, passes="fold") == {}
    assert fired(lambda x: jnp.broadcast_to(x, (2, 3)) + jnp.zeros((2, 3)), X, passes="fold") == {}


def test_effects_stay() -> None:
    def program() -> Any:
        jax.debug.print("{}", a())
        return lax.cond(True, lambda: [jax.debug.print("x"), k()][1], lambda: k() + 1)

    graph = optimised(program, passes="fold")
    assert "debug" in graph.to_text()
    assert "cond" in graph.to_text()


def test_limits_are_options() -> None:
    def program() -> Any:
        return k() * 2

    assert Pipeline.parse("fold{limit=5,flops=7}").steps == (Fold(limit=5, flops=7),)
    assert "mul" in folded(program, passes="fold{limit=5}")
    assert "mul" in folded(program, passes="fold{flops=5}")
    assert "mul" not in folded(program, passes="fold{limit=6}")


def test_a_loop_counts_all_its_iterations() -> None:
    def program() -> Any:
        return lax.fori_loop(0, 100, lambda i, x: x + i, np.int32(0))

    assert folded(program) == "4950"
    assert "scan" in folded(program, passes="fold{flops=10000}")


def test_little_of_a_large_constant() -> None:
    large = np.arange(100_000)
    assert folded(lambda: jnp.asarray(large)[7] + 1) == "8"
    assert "reduce_sum" in folded(lambda: jnp.sum(jnp.asarray(large)), passes="fold{flops=1000}")


def test_what_was_not_folded_is_explained() -> None:
    ctx = PassContext(get_target("cpu"), "exact", explain=True)
    graph = trace(lambda: [lax.div(k(), np.int32(0)), jnp.exp(a()), lax.sort(a())])
    Fold().run(graph, ctx)
    assert [(miss.op, miss.reason) for miss in ctx.misses] == [
        ("div", "integer division by zero"),
        ("exp", "the last bit may differ"),
    ]


def test_nothing_that_needs_a_device_or_a_trace_is_read() -> None:
    aval = jax.typeof(a())
    spread = SimpleNamespace(sharding=SimpleNamespace(device_set={1, 2}))
    with pytest.raises(Unfoldable, match="several devices"):
        contents(constant(spread, aval))
    with pytest.raises(Unfoldable, match="no array"):
        contents(constant(object(), object()))
    key = jax.random.key(0)
    with pytest.raises(Unfoldable, match="not to be had"):
        contents(constant(key, jax.typeof(key)))


def test_constants_of_an_outer_trace_stay() -> None:
    seen: list[dict[str, int]] = []

    @jax.jit
    def outer(x: jax.Array) -> Any:
        graph = trace(lambda y: y * (x + 1.0), X)
        report = PassContext(get_target("cpu"))
        Fold().run(graph, report)
        seen.append(dict(report.counts))
        return to_callable(graph)(X)[0]

    np.testing.assert_allclose(outer(jnp.float32(2)), X * 3)
    assert seen == [{}]


def test_while_another_trace_runs() -> None:
    def program(x: jax.Array) -> jax.Array:
        return x + jnp.sum(k() * 2) + jnp.exp(jnp.float32(0.0))

    def inner(x: jax.Array) -> Any:
        return to_callable(optimised(program, jax.ShapeDtypeStruct(x.shape, x.dtype), passes="fold"))(x)[0]

    np.testing.assert_allclose(jax.jit(inner)(X), program(jnp.asarray(X)))
    np.testing.assert_allclose(jax.vmap(inner)(a()), jax.vmap(program)(a()))
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: inner(x).sum()))(X), np.ones(3))


def test_in_threads() -> None:
    def work(n: int) -> str:
        return folded(lambda x: x + jnp.sum(jnp.asarray(K) * n), X)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(6))) == [work(n) for n in range(6)]


def test_double_precision() -> None:
    with jax.enable_x64(True):
        wide = np.linspace(0.0, 1.0, 7)
        for fun in (
            lambda: jnp.asarray(wide) * 3 + 1 / jnp.asarray(wide + 1),
            lambda: jnp.asarray(wide).astype(jnp.float32).astype(jnp.int64) + 2**40,
        ):
            bitwise(fun, passes="fold")
            assert not list(optimised(fun, passes="fold", level="exact"))
        assert not list(same(lambda: jnp.exp(jnp.asarray(wide)), passes="fold"))


def test_inside_regions() -> None:
    def program(x: jax.Array) -> Any:
        return lax.scan(lambda c, row: (c + row * (jnp.float32(2) * 3), row), jnp.zeros(3), x)

    graph = same(program, A, passes="fold")
    assert "6.0" in graph.to_text()
    assert graph.num_nodes() == len(list(graph)) + 2


def test_under_every_transformation() -> None:
    def program(x: jax.Array) -> Any:
        table = jnp.cumsum(k(), 1) * 2
        return x * table[0] + jnp.where(table[1] > 2, x, 2.0), jnp.sin(x) * jnp.float32(2) ** 3

    same(program, X, passes="fold,algebra")
    same(program, X, passes="fold", level="exact")
