"""Loops and branches in one another, ordinary differential equations, and reductions of one's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec

from ._program import Program, floats, integers, positive_definite


def runge_kutta(y: jax.Array, steps: int, length: jax.Array) -> jax.Array:
    """Lotka and Volterra's equations by the classical fourth-order rule, a number of steps given as data."""

    def slope(y: jax.Array) -> jax.Array:
        return jnp.stack([y[0] * (1.1 - 0.4 * y[1]), y[1] * (0.1 * y[0] - 0.4)])

    def step(_: Any, y: jax.Array) -> jax.Array:
        k1 = slope(y)
        k2 = slope(y + 0.5 * length * k1)
        k3 = slope(y + 0.5 * length * k2)
        k4 = slope(y + length * k3)
        return y + length / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return jnp.asarray(lax.fori_loop(0, steps, step, y))


def adaptive_steps(y: jax.Array, end: jax.Array) -> tuple[Any, ...]:
    """Heun's rule with an error estimate that accepts a step or halves it."""

    def slope(t: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.cos(2 * t) - y

    def body(state: Any) -> Any:
        t, y, h, taken, refused = state
        h = jnp.minimum(h, end - t)
        k1 = slope(t, y)
        k2 = slope(t + h, y + h * k1)
        error = jnp.max(jnp.abs(h * (k2 - k1))) / 2
        ok = error < 0.02

        def accept() -> Any:
            return t + h, y + h * (k1 + k2) / 2, h * 1.3, taken + 1, refused

        def refuse() -> Any:
            return t, y, h * 0.5, taken, refused + 1

        return lax.cond(ok, accept, refuse)

    def unfinished(state: Any) -> Any:
        return (state[0] < end - 1e-6) & (state[3] + state[4] < 50)

    start = (jnp.zeros_like(end), y, jnp.float32(0.5), 0, 0)
    return tuple(lax.while_loop(unfinished, body, start))


def nested_loops(x: jax.Array, run: jax.Array) -> Any:
    """A while loop in a scan in a branch."""

    def collatz(carry: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        def halve_or_triple(state: Any) -> Any:
            return jnp.where(state[0] % 2 == 0, state[0] // 2, 3 * state[0] + 1), state[1] + 1

        _, count = lax.while_loop(lambda s: s[0] > 1, halve_or_triple, (n, jnp.int32(0)))
        return carry + count, count

    return lax.cond(run, lambda x: lax.scan(collatz, jnp.int32(0), x), lambda x: (x.sum(), -x), x)


def interpreter(code: jax.Array, x: jax.Array) -> jax.Array:
    """A small machine: a switch of four instructions under a scan over the code."""
    instructions = [lambda x: x + 1.0, lambda x: x * 2.0, lambda x: jnp.sin(x), lambda x: x[::-1] - x.mean()]
    return lax.scan(lambda x, i: (lax.switch(i, instructions, x), x.sum()), x, code)[0]


def piecewise(x: jax.Array, kind: jax.Array) -> tuple[Any, Any]:
    """Selections by mask, by list and by number, and a branch whose arms share work."""
    chosen = jnp.select([x < -0.5, x < 0.5], [-(x**2), x], default=jnp.sqrt(jnp.abs(x)))
    stacked = lax.select_n(kind, x, 2 * x, jnp.exp(x))
    arm = lax.cond(kind.sum() > 2, lambda a: (a @ a, a), lambda a: (a.sum(), a + a @ a), jnp.tanh(x))
    return chosen + stacked, arm[0] + arm[1]


@jax.named_scope("pipeline")
def nested_jit(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Jitted helpers called several times, inside names and with static arguments."""

    @partial(jax.jit, static_argnames="power")
    def scaled(x: jax.Array, power: int) -> Any:
        with jax.named_scope("scaled"):
            return jax.jit(jnp.tanh)(x @ weight) ** power

    with jax.named_scope("first"):
        first = scaled(x, power=2)
    return first + scaled(x, power=2), scaled(first, power=3)


def own_reductions(x: jax.Array, i: jax.Array) -> dict[str, jax.Array]:
    """Reductions by functions of the user, several operands at once, and in windows."""

    def by_size(a: Any, b: Any) -> Any:
        left = (jnp.abs(a[0]) > jnp.abs(b[0])) | ((jnp.abs(a[0]) == jnp.abs(b[0])) & (a[1] < b[1]))
        return jnp.where(left, a[0], b[0]), jnp.where(left, a[1], b[1])

    numbers = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    value, where = lax.reduce((x, numbers), (jnp.float32(0), jnp.int32(99)), by_size, (1,))
    return {
        "largest": value,
        "where": where,
        "log_sum": lax.reduce(x, -jnp.inf, jnp.logaddexp, (0,)),
        "parity": lax.reduce(i, jnp.int32(0), lax.bitwise_xor, (0, 1)),
        "window": lax.reduce_window(x, 1.0, lax.mul, (2, 2), (1, 2), "SAME"),
        "running": lax.cumlogsumexp(x, axis=1) + lax.cumprod(1 + 0.1 * x, axis=0, reverse=True),
    }


def matrix_powers(a: jax.Array, n: int) -> jax.Array:
    """Power by squaring with a number of squarings known only at run time, and a chain of products."""

    def body(state: Any) -> Any:
        result, base, n = state
        return jnp.where(n % 2 == 1, result @ base, result), base @ base, n // 2

    power = lax.while_loop(lambda s: s[2] > 0, body, (jnp.eye(len(a)), a, n))[0]
    chain = lax.associative_scan(jnp.matmul, jnp.stack([a, a.T, a, jnp.eye(len(a))]))
    return jnp.concatenate([power[None], chain, jnp.linalg.matrix_power(a, 3)[None]])


def sharded_mean(x: jax.Array, weight: jax.Array) -> Any:
    """Collectives of a data-parallel loss on a mesh of one device."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(rows, whole), out_specs=(whole, rows))
    def loss(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.tanh(x @ weight) * (1 + lax.axis_index("data"))
        return lax.pmean(jnp.mean(y**2), "data"), y - lax.psum(y.sum(0), "data")

    return loss(x, weight)


PROGRAMS = [
    Program("runge_kutta", runge_kutta, lambda: (np.array([10.0, 5.0], np.float32), 5, 0.1), exportable=True),
    Program(
        "adaptive_steps",
        adaptive_steps,
        lambda: (floats(3), np.float32(1.5)),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "while_in_scan_in_cond",
        nested_loops,
        lambda: (integers(4, low=1, high=12), np.bool_(True)),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "switch_interpreter", interpreter, lambda: (integers(6, high=5), floats(3)), (1,), vmappable=True
    ),
    Program(
        "piecewise",
        piecewise,
        lambda: (floats(5), integers(5, high=3)),
        (0,),
        vmappable=True,
        exportable=True,
    ),
    Program("nested_jit", nested_jit, lambda: (floats(3, 4), floats(4, 4, seed=1)), (0, 1), vmappable=True),
    Program(
        "own_reductions",
        own_reductions,
        lambda: (floats(4, 5), integers(3, 4, high=99)),
        vmappable=True,
        exportable=True,
    ),
    Program("matrix_powers", matrix_powers, lambda: (0.5 * positive_definite(3), 5), vmappable=True),
    Program("shard_map_mean", sharded_mean, lambda: (floats(4, 3), floats(3, 2, seed=1)), (0, 1)),
]
