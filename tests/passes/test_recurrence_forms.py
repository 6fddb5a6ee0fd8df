"""Recurrences spelled as people spell them: each must be solved at once on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir import to_callable
from lepton_jax.ir.graph import Graph
from tests.passes._check import check, run
from tests.passes._loops import around, normal, ops

FULL = around("counted,projection,parallel,recurrence")
T = 32
R, V = normal(T), normal(T, seed=1)
DONE = (normal(T, seed=2) > 1).astype(jnp.float32)
X = normal(T, 3, seed=3)
LAST = jnp.float32(0.3)

PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}


def program(*args: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function in the table, with arguments."""

    def enter(fun: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS[fun.__name__] = fun, args
        return fun

    return enter


def back_up(after: Any, parts: Any) -> tuple[Any, Any]:
    r, done = parts
    total = r + 0.9 * after * (1 - done)
    return total, total


@program(R, DONE)
def returns_in_reverse(r: Any, done: Any) -> Any:
    return lax.scan(back_up, 0.0, (r, done), reverse=True)[1]


@program(R, DONE)
def returns_flipped(r: Any, done: Any) -> Any:
    return jnp.flip(lax.scan(back_up, 0.0, (jnp.flip(r), done[::-1]))[1])


@program(R, DONE)
def returns_counted(r: Any, done: Any) -> Any:
    def body(i: Any, state: Any) -> Any:
        t = T - 1 - i
        total, out = state
        total, _ = back_up(total, (r[t], done[t]))
        return total, out.at[t].set(total)

    return lax.fori_loop(0, T, body, (0.0, jnp.zeros(T)))[1]


@program(R, DONE)
def returns_in_place(r: Any, done: Any) -> Any:
    def body(i: Any, out: Any) -> Any:
        t = T - 1 - i
        return out.at[t].set(r[t] + 0.9 * out[t + 1] * (1 - done[t]))

    return lax.fori_loop(0, T, body, jnp.zeros(T + 1))[:-1]


@program(R, DONE)
def returns_while(r: Any, done: Any) -> Any:
    def body(state: Any) -> Any:
        t, total, out = state
        total, _ = back_up(total, (r[t], done[t]))
        return t - 1, total, out.at[t].set(total)

    return lax.while_loop(lambda state: state[0] >= 0, body, (T - 1, 0.0, jnp.zeros(T)))[2]


@program(R, DONE > 0)
def returns_by_mask(r: Any, done: Any) -> Any:
    def step(after: Any, parts: Any) -> Any:
        rt, end = parts
        total = rt + 0.9 * after * ~end
        return total, total

    return lax.scan(step, 0.0, (r, done), reverse=True)[1]


@program(R, V, DONE, LAST)
def advantages(r: Any, v: Any, done: Any, last: Any) -> Any:
    def step(carry: Any, parts: Any) -> Any:
        advantage, after = carry
        rt, vt, end = parts
        delta = rt + 0.99 * after * (1 - end) - vt
        advantage = delta + 0.99 * 0.95 * (1 - end) * advantage
        return (advantage, vt), advantage

    found = lax.scan(step, (jnp.zeros_like(last), last), (r, v, done), reverse=True)[1]
    return found, found + v


@program(R, V, DONE, LAST)
def advantages_by_index(r: Any, v: Any, done: Any, last: Any) -> Any:
    values = jnp.append(v, last)

    def step(advantage: Any, t: Any) -> Any:
        delta = r[t] + 0.99 * values[t + 1] * (1 - done[t]) - values[t]
        advantage = delta + 0.99 * 0.95 * (1 - done[t]) * advantage
        return advantage, advantage

    return lax.scan(step, 0.0, jnp.arange(T - 1, -1, -1))[1]


@program(R, V, DONE * 0.9, V * 0.1)
def corrected_by_importance(r: Any, v: Any, discount: Any, ratio: Any) -> Any:
    """V-trace."""
    weight = jnp.minimum(1.0, jnp.exp(ratio))
    after = jnp.concatenate([v[1:], v[:1]])
    delta = weight * (r + discount * after - v)

    def step(total: Any, parts: Any) -> Any:
        d, w, each = parts
        total = each + d * w * total
        return total, total

    return lax.scan(step, 0.0, (discount, weight, delta), reverse=True)[1] + v


@program(X)
def corrected_average(x: Any) -> Any:
    def step(state: Any, xt: Any) -> Any:
        mean, count = state
        mean, count = 0.9 * mean + 0.1 * xt, count + 1
        return (mean, count), mean / (1 - 0.9**count)

    return lax.scan(step, (jnp.zeros(3), 0), x)[1]


@program(X)
def running_variance(x: Any) -> Any:
    """Welford."""

    def step(state: Any, xt: Any) -> Any:
        count, mean, total = state
        count = count + 1
        delta = xt - mean
        mean = mean + delta / count
        total = total + delta * (xt - mean)
        return (count, mean, total), (mean, total / count)

    return lax.scan(step, (0, jnp.zeros(3), jnp.zeros(3)), x)[1]


@program(X)
def moving_mean(x: Any) -> Any:
    def step(state: Any, xt: Any) -> Any:
        window, total = state
        total = total + xt - window[0]
        return (jnp.concatenate([window[1:], xt[None]]), total), total / 4

    return lax.scan(step, (jnp.zeros((4, 3)), jnp.zeros(3)), x)[1]


@program(X)
def momentum(g: Any) -> Any:
    def step(state: Any, gt: Any) -> Any:
        v, p = state
        v = 0.9 * v + gt
        return (v, p - 0.1 * v), p

    return lax.scan(step, (jnp.zeros(3), jnp.ones(3)), g)


@program(X)
def double_smoothing(x: Any) -> Any:
    """Holt's level and trend."""

    def step(state: Any, xt: Any) -> Any:
        level, trend = state
        new = 0.5 * xt + 0.5 * (level + trend)
        return (new, 0.3 * (new - level) + 0.7 * trend), new

    return lax.scan(step, (x[0], jnp.zeros(3)), x)[1]


@program(X)
def oscillator(force: Any) -> Any:
    def step(state: Any, f: Any) -> Any:
        p, v = state
        v = v + 0.1 * (f - p - 0.1 * v)
        return (p + 0.1 * v, v), p

    return lax.scan(step, (jnp.ones(3), jnp.zeros(3)), force)[1]


@program(X, normal(3, 4), normal(T, 4), normal(T, 4, seed=1))
def selective(x: Any, a: Any, b: Any, c: Any) -> Any:
    """Mamba's scan."""
    dt = jax.nn.softplus(x)
    decay = jnp.exp(jnp.einsum("td,dn->tdn", dt, -jnp.exp(a)))
    fed = jnp.einsum("td,tn,td->tdn", dt, b, x)

    def step(h: Any, t: Any) -> Any:
        h = decay[t] * h + fed[t]
        return h, jnp.einsum("dn,n->d", h, c[t])

    return lax.scan(step, jnp.zeros((3, 4)), jnp.arange(T))[1]


@program(normal(4), normal(4, seed=1), normal(4, 3), normal(3, 4), X)
def complex_state(rate: Any, frequency: Any, b: Any, c: Any, u: Any) -> Any:
    """S5."""
    decay = jnp.exp(0.1 * (-jnp.exp(rate) + 1j * frequency))

    def step(h: Any, ut: Any) -> Any:
        h = decay * h + b @ ut
        return h, (c @ h).real

    return lax.scan(step, jnp.zeros(4, jnp.complex64), u)[1]


@program(normal(4, T))
def sequences_one_by_one(x: Any) -> Any:
    def one(xs: Any) -> Any:
        return lax.scan(lambda h, xt: ((y := 0.9 * h + 0.1 * xt), y), 0.0, xs)[1]

    return lax.map(one, x)


def solved(name: str) -> Graph:
    fun, args = PROGRAMS[name]
    return run(fun, *args, passes=FULL, target="gpu")[0]


def test_all_are_solved() -> None:
    """No loop is left but those that run where the solution is not finite, and the numbers are right."""
    graphs = {name: solved(name) for name in PROGRAMS}
    left = {name: [op for op in ops(graph) if op in ("scan", "while")] for name, graph in graphs.items()}
    guarded = {name: ops(graph).count("cond") for name, graph in graphs.items()}
    assert {name for name in PROGRAMS if len(left[name]) != guarded[name]} == set()

    def both() -> Any:
        for name, (fun, args) in PROGRAMS.items():
            yield jax.tree.leaves(fun(*args)), to_callable(graphs[name])(*args)

    for expected, found in jax.jit(lambda: list(both()))():
        check(expected, found)


def test_a_map_over_recurrent_layers_is_one_loop_over_time() -> None:
    def one(xs: Any, w: Any, u: Any) -> Any:
        return lax.scan(lambda h, xt: (jnp.tanh(xt @ w + h @ u), None), jnp.zeros(5), xs)[0]

    def f(x: Any, w: Any, u: Any) -> Any:
        return lax.map(lambda xs: one(xs, w, u), x)

    args = normal(4, 6, 3), normal(3, 5), normal(5, 5)
    for target in ("cpu", "gpu"):
        graph, _ = run(f, *args, passes=FULL, target=target)
        (loop,) = [node for node in graph.walk() if node.op == "scan"]
        assert (loop.params["length"], loop.graph) == (6, graph)
