from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.liveness import Peak, peak_bytes

X = jax.ShapeDtypeStruct((100,), jnp.float32)
SIZE = 400


def peak(fun: Any, *args: Any) -> Peak:
    return peak_bytes(trace(fun, *args))


def test_inputs_alone() -> None:
    assert peak(lambda x, y: x, X, X) == Peak(2 * SIZE, None)


def test_a_chain_holds_two_values_besides_the_input() -> None:
    found = peak(lambda x: jnp.sin(jnp.cos(jnp.tan(jnp.exp(x)))), X)
    assert found.bytes == 3 * SIZE
    assert found.node is not None and found.node.op == "tan"


def test_values_live_to_their_last_use() -> None:
    def fun(x: jax.Array) -> Any:
        kept = jnp.sin(x)
        for _ in range(5):
            x = jnp.cos(x)
        return kept + x

    assert peak(fun, X).bytes == 4 * SIZE
    assert peak(lambda x: [jnp.sin(x) for _ in range(5)], X).bytes == 6 * SIZE


def test_results_that_nobody_reads_die_at_once() -> None:
    graph = trace(lambda x: lax.top_k(x, 50)[0], X)
    assert peak_bytes(graph).bytes == SIZE + 200 + 200


def test_a_value_read_twice_by_its_last_user_dies_once() -> None:
    found = peak(lambda x: jnp.tan(jnp.sin(jnp.cos(x) * jnp.cos(x))), X)
    assert found.bytes == 4 * SIZE
    squared = peak(lambda x: jnp.tan((lambda y: y * y)(jnp.cos(x))), X)
    assert squared.bytes == 3 * SIZE


def test_constants_are_held_all_along_and_once() -> None:
    table = jnp.asarray(np.arange(100, dtype=np.float32))
    assert peak(lambda x: (x + table) * table, X).bytes == 4 * SIZE


def test_regions_add_what_they_need_inside() -> None:
    @jax.jit
    def inner(x: jax.Array) -> Any:
        return jnp.outer(x, x).sum(1)

    found = peak(lambda x: inner(jnp.sin(x)), X)
    assert found.node is not None and found.node.op == "jit"
    assert found.bytes >= 100 * SIZE
    deeper = peak(lambda p, x: lax.cond(p, inner, jnp.cos, x), jax.ShapeDtypeStruct((), bool), X)
    assert deeper.node is not None and deeper.node.op == "cond" and deeper.bytes >= 100 * SIZE
    looped = peak(lambda x: lax.scan(lambda c, r: (inner(c), r), x, x)[0], X)
    assert looped.node is not None and looped.node.op == "scan" and looped.bytes >= 100 * SIZE


def test_saving_memory_shows() -> None:
    def layers(x: jax.Array) -> Any:
        for _ in range(6):
            x = jnp.sin(x) * jnp.exp(x)
        return x.sum()

    plain = peak(jax.grad(layers), X)
    one_by_one = peak(lambda x: lax.fori_loop(0, 6, lambda _, y: jnp.sin(y) * jnp.exp(y), x).sum(), X)
    assert one_by_one.bytes < plain.bytes


def test_symbolic_dimensions_and_references_do_not_hurt() -> None:
    (n,) = jax.export.symbolic_shape("n")
    assert peak(jnp.sin, jax.ShapeDtypeStruct((n,), jnp.float32)).bytes == 8

    def counted(x: jax.Array) -> Any:
        ref = jax.new_ref(jnp.zeros(3))
        ref[0] = x[0]
        return ref[...]

    assert peak(counted, X).bytes >= SIZE
