"""One program for each kind of operation with regions, and for what is bound as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl


@dataclass(frozen=True)
class Program:
    """A function of arrays, and what JAX can do with it.

    Attributes:
        op: the operation that it is there for.
        grad: whether it has a gradient with respect to its first argument.
        vmap: whether it can be batched.
        export: whether it can be exported.
    """

    op: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    grad: bool = True
    vmap: bool = True
    export: bool = True


def vector() -> Any:
    return jnp.linspace(0.5, 2.0, 4)


def _inner(x: jax.Array) -> Any:
    return jnp.sin(x) * 2


_shared = jax.jit(_inner)


def calls(x: jax.Array) -> Any:
    return _shared(_shared(x)) + jax.jit(lambda y: y * x, inline=False)(x)


def scanned(x: jax.Array, **options: Any) -> Any:
    def step(carry: jax.Array, row: jax.Array) -> Any:
        return carry * x[0] + row, (carry + row, row * 2)

    return lax.scan(step, x[1], x, **options)


def counted(x: jax.Array) -> Any:
    return lax.scan(lambda c, _: (jnp.cos(c) * x, c[0]), x, None, length=3)


def empty(x: jax.Array) -> Any:
    return lax.scan(lambda c, row: (c * row, c), x.sum(), x[:0])


def looped(x: jax.Array) -> Any:
    limit = x.sum() * 10
    return lax.while_loop(lambda s: s[0] < limit, lambda s: (s[0] * 2 + x[0], s[1] + 1), (x[1], 0))


def branched(x: jax.Array) -> Any:
    table = jnp.array([1.0, 2.0, 3.0, 4.0])
    return lax.cond(x[0] > x[1], lambda y: y * table, lambda y: jnp.exp(y) + x, x)


def switched(x: jax.Array) -> Any:
    return lax.switch(jnp.argmax(x), [jnp.sin, lambda y: y * 3, lambda y: y, jnp.cos], x)


@jax.custom_jvp
def odd_slope(x: jax.Array) -> Any:
    return jnp.sin(x)


@odd_slope.defjvp
def _odd_slope_jvp(primals: Any, tangents: Any) -> Any:
    return odd_slope(primals[0]), 100.0 * tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def scaled_slope(x: jax.Array, scale: float) -> Any:
    return jnp.sin(x) * scale


@scaled_slope.defjvp
def _scaled_slope_jvp(scale: float, primals: Any, tangents: Any) -> Any:
    return scaled_slope(primals[0], scale), 10.0 * scale * tangents[0]


@jax.custom_vjp
def odd_pullback(x: jax.Array, y: jax.Array) -> Any:
    return x * y, x + y


odd_pullback.defvjp(lambda x, y: (odd_pullback(x, y), x), lambda x, g: (7.0 * g[0] * x, g[1] * x))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def applied(f: Callable[..., Any], x: jax.Array) -> Any:
    return f(x)


applied.defvjp(lambda f, x: (f(x), x), lambda f, x, g: (5.0 * g * f(x),))


def saved(x: jax.Array, policy: Any = None) -> Any:
    return jax.checkpoint(lambda y: jnp.sin(jnp.cos(y) @ jnp.outer(y, x)), policy=policy)(x)


def sharded(x: jax.Array) -> Any:
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    part = jax.P("d")
    return jax.shard_map(
        lambda y: jnp.sin(y) + lax.psum(y.sum(), "d"), mesh=mesh, in_specs=part, out_specs=part
    )(x)


def solved(x: jax.Array) -> Any:
    diagonal = x * 2
    return lax.custom_linear_solve(
        lambda v: diagonal * v, x, lambda _, b: b / diagonal, lambda _, b: b / diagonal
    )


def kernel(x: jax.Array) -> Any:
    def body(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = x_ref[...] * 2 + 1

    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def called_back(x: jax.Array) -> Any:
    return jax.pure_callback(lambda v: v * 2, x, x, vmap_method="expand_dims") + 1


def printed(x: jax.Array) -> Any:
    jax.debug.print("first {}", x[0], ordered=True)
    y = jnp.sin(x)
    jax.debug.print("second {}", x[1], ordered=True)
    return y


def printed_in_regions(x: jax.Array) -> Any:
    def step(carry: jax.Array, row: jax.Array) -> Any:
        jax.debug.print("row {}", row, ordered=True)
        return carry + row, None

    total, _ = lax.scan(step, jnp.float32(0), x)
    jax.debug.print("total {}", total, ordered=True)
    return total


def mutated(x: jax.Array) -> Any:
    ref = jax.new_ref(jnp.zeros_like(x))
    ref[1:] = x[1:] * 2
    ref[0] += x[0]
    return jnp.asarray(ref[...]) + 1


def drawn(x: jax.Array, key: jax.Array) -> Any:
    return x * jax.random.uniform(jax.random.fold_in(key, 3), x.shape)


def keys_through_loops(x: jax.Array, key: jax.Array) -> Any:
    def step(k: jax.Array, row: jax.Array) -> Any:
        k, used = jax.random.split(k)
        return k, row + jax.random.uniform(used)

    return lax.scan(step, key, x)[1]


def nested(x: jax.Array) -> Any:
    @jax.checkpoint
    def layer(h: jax.Array, w: jax.Array) -> Any:
        return lax.cond(
            w > 1, lambda v: jax.nn.relu(v) * w, lambda v: lax.fori_loop(0, 2, lambda i, u: u + i, v), h
        )

    def step(h: jax.Array, w: jax.Array) -> Any:
        h = jax.jit(layer)(h, w)
        return h, odd_slope(h).sum()

    return lax.scan(step, x, x)


PROGRAMS: dict[str, Program] = {
    "jit": Program("jit", calls, (vector(),)),
    "scan": Program("scan", scanned, (vector(),)),
    "scan reverse": Program("scan", partial(scanned, reverse=True), (vector(),)),
    "scan unroll": Program("scan", partial(scanned, unroll=2), (vector(),)),
    "scan without rows": Program("scan", counted, (vector(),)),
    "scan length 0": Program("scan", empty, (vector(),)),
    "while": Program("while", looped, (vector(),), grad=False),
    "cond": Program("cond", branched, (vector(),)),
    "switch": Program("cond", switched, (vector(),)),
    "custom_jvp": Program("custom_jvp_call", lambda x: odd_slope(x) * x, (vector(),)),
    "custom_jvp nondiff": Program("custom_jvp_call", lambda x: scaled_slope(x, 3.0), (vector(),)),
    "custom_vjp": Program("custom_vjp_call", lambda x: odd_pullback(x, x * 2), (vector(),)),
    "custom_vjp nondiff": Program("custom_vjp_call", lambda x: applied(jnp.tanh, x), (vector(),)),
    "checkpoint": Program("remat2", saved, (vector(),)),
    "checkpoint policy": Program(
        "remat2", partial(saved, policy=jax.checkpoint_policies.dots_saveable), (vector(),)
    ),
    "shard_map": Program("shard_map", sharded, (vector(),)),
    "custom_linear_solve": Program("custom_linear_solve", solved, (vector(),)),
    "pallas_call": Program("pallas_call", kernel, (vector(),), grad=False),
    "pure_callback": Program("pure_callback", called_back, (vector(),), grad=False, export=False),
    "debug print": Program("debug_print", printed, (vector(),), grad=False, vmap=False, export=False),
    "debug print in a scan": Program(
        "scan", printed_in_regions, (vector(),), grad=False, vmap=False, export=False
    ),
    "mutable reference": Program("get", mutated, (vector(),), grad=False),
    "random": Program("random_bits", drawn, (vector(), jax.random.key(0)), vmap=False),
    "keys in a scan": Program("scan", keys_through_loops, (vector(), jax.random.key(0)), vmap=False),
    "nested": Program("scan", nested, (vector(),)),
}
