"""Neighbouring loops in one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import io_callback

from tests.passes._check import run, same
from tests.passes._golden import assert_every_gate, assert_text
from tests.passes._loops import alike, around, normal, ops

PASS = "adjacent"
FULL = around(PASS)
X, Y = normal(8, 3), normal(8, 3, seed=1)
ZERO = jnp.zeros(3)


def bent(h: Any, xt: Any) -> tuple[Any, Any]:
    h = jnp.sin(h) + xt
    return h, h


def smooth(h: Any, xt: Any) -> tuple[Any, Any]:
    h = 0.5 * h + xt
    return h, jnp.cos(h)


def chain(x: Any) -> Any:
    zero = jnp.zeros(3)
    hs = lax.scan(bent, zero, x)[1]
    return lax.scan(smooth, zero, hs * 2)[1]


def loops(fun: Any, *args: Any, passes: str = FULL, target: str = "cpu") -> int:
    """How many loops are left."""
    return ops(run(fun, *args, passes=passes, target=target)[0]).count("scan")


def test_golden() -> None:
    scan = "scan[length=8 num_carry=2 num_consts=0 reverse=False unroll=1]"
    assert_text(
        same(chain, X, passes=FULL),
        f"""
        graph f(%0: f32[8,3]) {{
          %1: f32[3] = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] 0.0
          _: f32[3], _: f32[3], %2: f32[8,3] = {scan} %1 %1 %0 {{
            region body(%0: f32[3], %1: f32[3], %2: f32[3]) {{
              %3: f32[3] = sin[accuracy=None] %0
              %4: f32[3] = add %3 %2
              %5: f32[3] = mul %4 2.0
              %6: f32[3] = mul 0.5 %1
              %7: f32[3] = add %6 %5
              %8: f32[3] = cos[accuracy=None] %7
              return %4, %7, %8
            }}
          }}
          return %2
        }}
        """,
    )


def test_rows_on_the_way() -> None:
    """Factors that change with time and that do not, new axes, an array of its own, and other readers."""

    def f(x: Any, y: Any, w: Any) -> Any:
        last, hs = lax.scan(bent, ZERO, x, reverse=True)
        zs = (jnp.tanh(hs * w) + y)[:, None, :] * jnp.where(y > 0, 1.0, 0.5)[:, None]
        more = jnp.exp(-y)
        return last, zs, lax.scan(smooth, jnp.zeros((1, 3)), zs - more[:, None], reverse=True)

    graph = same(f, X, Y, normal(3), passes=FULL)
    assert ops(graph).count("scan") == 1


def test_loops_that_know_nothing_of_each_other() -> None:
    def f(x: Any, y: Any, rate: Any) -> Any:
        first = lax.scan(bent, ZERO, x)
        second = lax.scan(
            lambda h, yt: ((z := rate * h + yt), z > 0), jnp.ones(2), y[:, :2] + first[0][0] * 0
        )
        return first, second, first[1] + 1

    graph = same(f, X, Y, jnp.float32(0.5), passes=FULL)
    assert ops(graph).count("scan") == 2  # the second reads what the first has in the end

    def g(x: Any, y: Any, rate: Any) -> Any:
        first = lax.scan(bent, ZERO, x)
        middle = jnp.sum(first[1])
        second = lax.scan(lambda h, yt: ((z := rate * h + yt), z > 0), jnp.ones(2), jnp.sin(y[:, :2]))
        return first, second, middle

    assert ops(same(g, X, Y, jnp.float32(0.5), passes=FULL)).count("scan") == 1


def test_several_in_a_row() -> None:
    def f(x: Any) -> Any:
        for _ in range(4):
            x = lax.scan(bent, ZERO, x)[1]
        return x

    graph, report = run(f, X, passes=FULL)
    assert (ops(graph).count("scan"), report.rules["adjacent-loops"]) == (1, 3)


def test_nan_integers_and_empty_rows() -> None:
    def f(x: Any, n: Any) -> Any:
        hs = lax.scan(lambda c, k: (c + k, c * k), jnp.zeros((), n.dtype), n)[1]
        return chain(x), lax.scan(lambda c, k: (c ^ k, c), jnp.zeros((), n.dtype), hs)

    assert ops(same(f, X.at[3, 1].set(jnp.nan), jnp.arange(8), passes=FULL, grad=False)).count("scan") == 1
    assert ops(same(chain_of(0), jnp.zeros((8, 0)), passes=FULL)).count("scan") == 1


def chain_of(width: int) -> Any:
    def f(x: Any) -> Any:
        hs = lax.scan(bent, jnp.zeros(width), x)[1]
        return lax.scan(smooth, jnp.zeros(width), hs)

    return f


def look_alikes() -> dict[str, Any]:
    def the_end(x: Any) -> Any:
        last, _ = lax.scan(bent, ZERO, x)
        return lax.scan(smooth, last, x)

    def other_way_round(x: Any) -> Any:
        return lax.scan(smooth, ZERO, lax.scan(bent, ZERO, x)[1], reverse=True)

    def other_length(x: Any) -> Any:
        return lax.scan(bent, ZERO, x), lax.scan(smooth, ZERO, x[1:])

    def neighbouring_rows(x: Any) -> Any:
        hs = lax.scan(bent, ZERO, x)[1]
        return lax.scan(smooth, ZERO, hs - jnp.roll(hs, 1, 0))

    def all_rows(x: Any) -> Any:
        hs = lax.scan(bent, ZERO, x)[1]
        return lax.scan(smooth, ZERO, hs - jnp.mean(hs, 0))

    def constant(x: Any) -> Any:
        hs = lax.scan(bent, ZERO, x)[1]
        return lax.scan(lambda h, xt: (h + xt @ hs.T @ hs, None), ZERO, x)

    def effects(x: Any) -> Any:
        def telling(h: Any, xt: Any) -> tuple[Any, Any]:
            io_callback(lambda value: None, None, xt[0], ordered=True)
            return smooth(h, xt)

        return lax.scan(bent, ZERO, x), lax.scan(telling, ZERO, x)

    functions = the_end, other_way_round, other_length, neighbouring_rows, all_rows, constant, effects
    return {fun.__name__: fun for fun in functions}


@pytest.mark.parametrize("name", look_alikes())
def test_look_alikes_stay(name: str) -> None:
    assert loops(look_alikes()[name], X, target="gpu") == 2


def test_products_pay_on_a_gpu_alone() -> None:
    def f(x: Any, u: Any) -> Any:
        hs = lax.scan(lambda h, xt: ((y := jnp.tanh(h @ u + xt)), y), ZERO, x)[1]
        return lax.scan(smooth, ZERO, hs)

    assert loops(f, X, jnp.eye(3)) == 2
    graph, _ = alike(f, X, jnp.eye(3), passes=FULL, target="gpu", grad=False)
    assert ops(graph).count("scan") == 1


def test_long_iterations_and_short_loops_stay() -> None:
    def apart(x: Any, y: Any) -> Any:
        zero = jnp.zeros(x.shape[1:])
        return lax.scan(bent, zero, x), lax.scan(smooth, zero, y)

    large = jax.ShapeDtypeStruct((8, 1 << 18), jnp.float32)
    assert loops(apart, large, large) == 2
    assert loops(chain, X[:3]) == 2


def test_every_gate() -> None:
    assert assert_every_gate(chain, X, passes=f"inline,dce,{PASS}") >= 1
