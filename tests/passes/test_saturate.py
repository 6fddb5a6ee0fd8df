"""Saturate: the cheapest of all equal forms of products and sums."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.rewrite import PipelineError, get_pass
from tests.passes._check import optimised, rewrite_jaxpr, same
from tests.passes._products import Program, body, check_lookalikes, check_programs, normal

PASSES = "inline,dce,saturate"
RULE = "equality-saturation"
S = 96


def arrays(*shapes: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return lambda: tuple(normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))


SQUARES = arrays(*((S, S),) * 4)


def crossed(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    return a @ c + (a @ d + b @ c) + b @ d


def reflection(v: jax.Array, a: jax.Array) -> jax.Array:
    return (jnp.eye(S) - 2.0 * jnp.outer(v, v)) @ a


def loop(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, x: jax.Array) -> jax.Array:
    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y, z = c @ x, d @ x
        return jnp.tanh((a @ y + (a @ z + b @ y) + b @ z) / 1000), None

    return lax.scan(step, x, None, length=500)[0]


def entangled(a: jax.Array, b: jax.Array) -> jax.Array:
    total = a @ b.T + b @ a.T
    return jnp.tanh(total / 9) @ b + total


PROGRAMS = [
    Program("reads-what-it-feeds", entangled, arrays((S, S), (S, S)), RULE),
    Program("transposes", lambda a, b: a @ b.T - b @ a.T, arrays((S, S), (S, S)), RULE),
    Program("crossed-batches", crossed, arrays(*((3, S, S),) * 4), RULE),
    Program("two-outputs", lambda a, b, c, d: ((a @ b) @ c, jnp.tanh((b @ c) @ d)), SQUARES, RULE),
    Program("reflection", reflection, arrays((S,), (S, S)), RULE),
    Program(
        "rows-of-a-sequence",
        lambda x, s, w, v: (x * s) @ w + x @ v - (x * s) @ v * 0.5,
        arrays((2, 64, S), (), (S, S), (S, S)),
        RULE,
    ),
    Program("loop", loop, arrays(*((S, S),) * 4, (S,)), RULE),
]


def test_it_finds_better_forms_and_keeps_the_meaning() -> None:
    check_programs(PROGRAMS, PASSES)


def test_a_gradient_is_saturated_too() -> None:
    gradient = jax.grad(lambda a, b: jnp.sum(jnp.sin((a @ b.T + b @ a.T) / 9)))
    args = arrays((S, S), (S, S))()
    assert [n.op for n in optimised(gradient, *args, passes="inline,dce")].count("dot_general") == 4
    graph = same(gradient, *args, passes=PASSES, grad=False)
    assert [n.op for n in graph].count("dot_general") == 2


def test_the_rewritten_graph() -> None:
    args = SQUARES()[:2]
    dot = "dot_general[dimension_numbers=(((1,),(1,)),((),())) preferred_element_type=float32]"
    assert body(lambda a, b: a @ b.T + b @ a.T, *args, passes=PASSES) == [
        f"%2: f32[96,96] = {dot} %0 %1",
        "%3: f32[96,96] = transpose[permutation=(1,0)] %2",
        "%4: f32[96,96] = add %3 %2",
        "return %4",
    ]
    assert body(crossed, *SQUARES(), passes=PASSES) == [
        "%4: f32[96,96] = add %0 %1",
        "%5: f32[96,96] = add %2 %3",
        f"%6: f32[96,96] = {dot.replace('(1,)),((),', '(0,)),((),')} %4 %5",
        "return %6",
    ]


def test_in_a_loop_what_is_the_same_on_every_iteration_counts_once() -> None:
    args = arrays(*((S, S),) * 4, (S,))()
    (scan,) = [n for n in optimised(loop, *args, passes=f"{PASSES},invariant") if n.op == "scan"]
    assert [n.op for n in scan.regions[0]].count("dot_general") == 1


def precise(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.T, precision="highest") + b @ a.T


def with_barrier(a: jax.Array, b: jax.Array) -> jax.Array:
    hidden: jax.Array = lax.optimization_barrier(b)
    return a @ b.T + hidden @ a.T


LOOKALIKES = [
    Program("different", lambda a, b, c, d: a @ b + c @ d, SQUARES, RULE, "nothing is common"),
    Program("precisions", precise, arrays((S, S), (S, S)), RULE, "the precisions differ"),
    Program("barrier", with_barrier, arrays((S, S), (S, S)), RULE, "a barrier hides what is equal"),
    Program(
        "nonlinear",
        lambda a, b, c, d: a @ c + (jnp.tanh(a @ d) + jnp.tanh(b @ c)) + b @ d,
        SQUARES,
        RULE,
        "tanh stands between",
    ),
    Program(
        "all-needed",
        lambda a, b, c, d: (crossed(a, b, c, d), a @ c, a @ d, b @ c, b @ d),
        SQUARES,
        RULE,
        "every product is needed anyway",
    ),
    Program("half", crossed, arrays(*((S, S),) * 4, dtype=jnp.float16), RULE, "overflows easily"),
    Program(
        "contractions",
        lambda a, b: jnp.einsum("ikl,jlk->ij", a, b) + jnp.einsum("ilk,jkl->ij", b, a),
        arrays((S, 8, 8), (S, 8, 8)),
        RULE,
        "the summed dimensions are in another order",
    ),
]


def test_what_only_looks_alike_stays() -> None:
    check_lookalikes(LOOKALIKES, PASSES)


def test_symbolic_shapes_stay() -> None:
    (n,) = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, n), jnp.float32)
    closed = jax.make_jaxpr(crossed)(*(shape,) * 4)
    assert RULE not in rewrite_jaxpr(closed, "f", PASSES)[1].rules


def test_what_is_no_number_stays_none() -> None:
    a, b, c, d = SQUARES()
    a, d = a.at[0, 0].set(jnp.nan), d.at[1, 1].set(jnp.inf)
    flat = lepton.optimize(crossed, PASSES)(a, b, c, d)
    expected = crossed(a, b, c, d)
    np.testing.assert_array_equal(np.isnan(flat[0]), np.isnan(expected[0]))
    assert not np.isfinite(flat[:, 1]).any() and np.isfinite(flat[2, 2:]).all()


def test_a_limit_is_obeyed_and_reported() -> None:
    args = arrays((S, S), (S, S))()

    def fun(x: jax.Array, y: jax.Array) -> jax.Array:
        return (x + y) @ (x + y).T + (x - y) @ (x - y).T + x @ y.T + y @ x.T

    def seen(options: str) -> tuple[str, dict[str, int]]:
        f = lepton.optimize(fun, f"inline,dce,saturate{{{options}}}")
        report = f.trace(*args).report
        return str(report), report.rules

    few, rules = seen("nodes=400")
    assert "note: saturate: the search ended early: more than 40 operations" in few and RULE in rules
    none, rules = seen("seconds=1e-9")
    assert "a limit was reached before" in none and RULE not in rules


def test_options() -> None:
    cls = get_pass("saturate")
    assert str(cls.with_options([("nodes", "500"), ("seconds", "2")])) == "saturate{nodes=500,seconds=2.0}"
    for name in ("nodes", "seconds"):
        with pytest.raises(PipelineError, match="must be positive"):
            cls.with_options([(name, "0")])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "egglog", None)
    with pytest.raises(PipelineError, match=r"pass 'saturate': .* pip install 'lepton-jax\[saturate\]'"):
        lepton.optimize(crossed, "default,saturate")
