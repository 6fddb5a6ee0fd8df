"""Callbacks, printing, references and random keys.

A program that keeps a log clears it with its first ordered callback, so that every call gives the same.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback

from ._program import Program, floats

NUMBER = jax.ShapeDtypeStruct((), np.int32)


def host_function(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A function of NumPy in the middle of a program, once for each element of a map."""
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    sinc = jax.pure_callback(lambda x: np.sinc(x).astype(np.float32), like, x * 2, vmap_method="sequential")
    row = jax.ShapeDtypeStruct((), x.dtype)
    span = jax.vmap(lambda r: jax.pure_callback(np.ptp, row, r, vmap_method="sequential"))(x)
    return sinc + x, span


def host_derivative(x: jax.Array) -> jax.Array:
    """A host function with a derivative of its own."""

    @jax.custom_jvp
    def erf_like(x: jax.Array) -> Any:
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.arctan(x), like, x, vmap_method="expand_dims")

    erf_like.defjvp(lambda primals, tangents: (erf_like(*primals), tangents[0] / (1 + primals[0] ** 2)))
    return jnp.sum(erf_like(x) * x)


def logbook(x: jax.Array, deep: jax.Array) -> tuple[Any, jax.Array]:
    """Ordered callbacks in a scan and in a branch, whose results are not used, and one that reads all."""
    log: list[int] = []

    def write(value: Any) -> None:
        log.append(int(value))

    def read(_: Any) -> np.int32:
        digest = 0
        for entry in log:
            digest = (31 * digest + entry) % 65521
        return np.int32(digest)

    io_callback(log.clear, None, ordered=True)

    def step(total: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
        io_callback(write, None, value * 10, ordered=True)
        return total + value, None

    total, _ = lax.scan(step, jnp.int32(0), x)
    lax.cond(deep, lambda: io_callback(write, None, total, ordered=True), lambda: None)
    io_callback(write, None, total + 1, ordered=True)
    return io_callback(read, NUMBER, total, ordered=True), total


def counter(x: jax.Array) -> tuple[Any, Any]:
    """Two equal ordered calls that give different results, which must not become one."""
    state = {"count": 0}

    def advance() -> np.int32:
        state["count"] += 1
        return np.int32(state["count"])

    def reset() -> None:
        state["count"] = 0

    io_callback(reset, None, ordered=True)
    first = io_callback(advance, NUMBER, ordered=True)
    io_callback(advance, NUMBER, ordered=True)
    third = io_callback(advance, NUMBER, ordered=True)
    return first * x, third * x


def print_progress(x: jax.Array) -> jax.Array:
    """Ordered printing from a loop and a branch, and one print of a value that is otherwise unused."""

    def step(i: Any, x: jax.Array) -> jax.Array:
        jax.debug.print("step {i}: {total}", i=i, total=jnp.int32(x.sum()), ordered=True)
        return x * 2

    unused = jnp.max(x) > 2
    x = jnp.asarray(lax.fori_loop(0, 3, step, x))
    jax.debug.print("large: {}", unused, ordered=True)
    big = lax.cond(x[0] > 5, lambda: jax.debug.print("big", ordered=True), lambda: None)
    assert big is None
    return x + 1


def references(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A mutable reference that a loop reads and writes."""
    total = jax.new_ref(jnp.zeros(x.shape[1:]))

    def step(i: Any, last: jax.Array) -> Any:
        total[...] += x[i]
        return last + total[0]

    last = lax.fori_loop(0, len(x), step, jnp.float32(0))
    return total[...], last


def keys_in_and_out(key: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
    """Typed keys: split, folded, selected, unwrapped, wrapped, kept in arrays."""
    first, second = jax.random.split(jax.random.fold_in(key, step))
    chosen = jnp.where(step > 3, first, second)
    return {
        "keys": jnp.stack([first, chosen])[:, None],
        "words": jax.random.key_data(second),
        "again": jax.random.wrap_key_data(jax.random.key_data(first), impl=jax.random.key_impl(key)),
        "draw": jax.random.normal(chosen, (3,), jnp.bfloat16),
    }


def samplers(key: jax.Array, logits: jax.Array) -> dict[str, jax.Array]:
    """Draws from several distributions by keys of the quick kind."""
    keys = jax.random.split(key, 3)
    return {
        "uniform": jax.random.uniform(keys[0], (2, 3), minval=-1, maxval=1),
        "categorical": jax.random.categorical(keys[1], logits, axis=-1),
        "integers": jax.random.randint(keys[2], (4,), -3, 9, jnp.int8),
    }


def old_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw uint32 keys, threaded through a scan."""

    def step(key: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        key, used = jax.random.split(key)
        return key, jax.random.normal(used, (2,))

    return lax.scan(step, key, None, length=3)


def barrier(x: jax.Array) -> Any:
    """Compensated summation that a barrier protects."""

    def add(carry: Any, value: jax.Array) -> tuple[Any, None]:
        total, lost = carry
        value = value - lost
        new = lax.optimization_barrier(total + value)
        return (new, (new - total) - value), None

    return lax.scan(add, (jnp.float32(0), jnp.float32(0)), x)[0][0]


PROGRAMS = [
    Program("pure_callback", host_function, lambda: (floats(2, 3),), vmappable=True),
    Program("callback_with_derivative", host_derivative, lambda: (floats(4),), (0,), vmappable=True),
    Program("ordered_log", logbook, lambda: (np.arange(1, 5, dtype=np.int32), np.bool_(True))),
    Program("ordered_counter", counter, lambda: (np.int32(3),)),
    Program("debug_print", print_progress, lambda: (np.arange(1.0, 4.0, dtype=np.float32),)),
    Program("references", references, lambda: (floats(3, 2),)),
    Program("keys_in_and_out", keys_in_and_out, lambda: (jax.random.key(7), np.int32(4)), exportable=True),
    Program(
        "samplers", samplers, lambda: (jax.random.key(7, impl="unsafe_rbg"), floats(3, 4)), exportable=True
    ),
    Program("old_keys", old_keys, lambda: (np.array([3, 4], np.uint32),), exportable=True),
    Program("compensated_sum", barrier, lambda: (1e4 * floats(20),), vmappable=True, exportable=True),
]
