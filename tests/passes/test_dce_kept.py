"""Dead code elimination: what must stay, for its derivative, its interface or its effects."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import to_callable
from tests.passes._check import optimised, same
from tests.passes._golden import ONE, X, assert_untouched, ops

kept = partial(same, passes="dce", level="exact")


def test_custom_derivatives_keep_their_interface() -> None:
    @jax.custom_vjp
    def scaled(x: Any, unused: Any) -> Any:
        return x * 2, unused

    scaled.defvjp(lambda x, u: (scaled(x, u), u), lambda u, ct: (ct[0] * 3 + u, ct[0] * 0))

    @jax.custom_jvp
    def shifted(x: Any, unused: Any) -> Any:
        return x + 1, unused

    shifted.defjvp(lambda p, t: (shifted(*p), (t[0] * 5, t[1])))

    def f(x: Any, y: Any) -> Any:
        return scaled(x, y)[0] + shifted(x, y)[0]

    assert_untouched(f, X, X, passes="dce")
    kept(f, X, X)


def test_dead_nodes_in_custom_derivatives_go_and_the_rule_stays() -> None:
    @jax.custom_jvp
    def odd(x: Any) -> Any:
        jnp.cos(x)
        return jnp.sin(x)

    odd.defjvp(lambda p, t: (odd(*p), t[0] * 7))

    graph = kept(lambda x: odd(x), X)
    assert ops(graph) == ["custom_jvp_call", "sin"]
    flat = to_callable(graph)
    np.testing.assert_array_equal(jax.grad(lambda x: flat(x)[0].sum())(X), np.full(3, 7.0))


def test_shard_map_keeps_its_interface() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))

    def f(x: Any, y: Any) -> Any:
        def shard(a: Any, b: Any) -> Any:
            jnp.tan(b)
            return jnp.sin(a), jnp.cos(b)

        return jax.shard_map(shard, mesh=mesh, in_specs=(P("i"), P("i")), out_specs=P("i"))(x, y)[0]

    graph = kept(f, X, X)
    assert ops(graph) == ["shard_map", "sin", "cos"]


def test_custom_linear_solve_keeps_its_interface() -> None:
    def f(b: Any, unused: Any) -> Any:
        def matvec(v: Any) -> Any:
            return 2 * v

        def solve(_: Any, rhs: Any) -> Any:
            jnp.sin(rhs)
            return rhs / 2

        return lax.custom_linear_solve(matvec, b, solve, symmetric=True)

    assert "sin" not in ops(kept(f, X, X))


class Log:
    """Remembers the order of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def add(self, name: str, value: Any) -> Any:
        self.calls.append(f"{name} {float(value):g}")
        return np.float32(value)


def test_effects_stay_in_order() -> None:
    log = Log()
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def f(x: Any, unused: Any) -> Any:
        io_callback(partial(log.add, "first"), shape, x, ordered=True)
        jnp.sin(unused)

        def body(c: Any, y: Any) -> Any:
            io_callback(partial(log.add, "loop"), shape, c, ordered=True)
            return c + y, jnp.cos(unused)

        lax.scan(body, x, jnp.ones(2))
        io_callback(partial(log.add, "last"), shape, x * 3, ordered=True)
        return x

    graph = optimised(f, ONE, ONE, passes="dce")
    jax.jit(to_callable(graph))(ONE, ONE)
    jax.effects_barrier()
    assert log.calls == ["first 1", "loop 1", "loop 2", "last 3"]
    assert not {"sin", "cos"} & set(ops(graph))


def test_effects_of_a_branch_keep_its_arguments() -> None:
    log = Log()

    def f(p: Any, x: Any, y: Any) -> Any:
        def speak(a: Any, b: Any) -> Any:
            jax.debug.callback(partial(log.add, "branch"), b)
            return a, b

        lax.cond(p, speak, lambda a, b: (a, b), x, y)

    graph = optimised(f, True, ONE, ONE * 2, passes="dce")
    jax.jit(to_callable(graph))(True, ONE, ONE * 2)
    jax.effects_barrier()
    assert log.calls == ["branch 2"]
    (cond,) = (node for node in graph if node.op == "cond")
    assert len(cond.operands) == 2 and not cond.results


def test_pure_callbacks_and_random_numbers_go() -> None:
    def f(x: Any) -> Any:
        jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), jnp.float32), x)
        jax.random.normal(jax.random.key(0), (3,))
        return x

    assert ops(kept(f, X, grad=False, vmap=False)) == []


def test_writes_to_references_stay() -> None:
    def f(x: Any) -> Any:
        ref = jax.new_ref(x)
        ref[0] = 5.0
        jnp.sin(x)

        def body(i: Any, _: Any) -> Any:
            ref[i] = ref[i] * 2
            jnp.cos(x)

        lax.fori_loop(0, 2, body, None)
        return ref[...]

    graph = optimised(f, X, passes="dce")
    np.testing.assert_array_equal(jax.jit(to_callable(graph))(X)[0], jax.jit(f)(X))
    assert "sin" not in ops(graph)


def test_random_keys_pass_through_loops() -> None:
    def f(seed: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            key, lonely = carry
            key, sub = jax.random.split(key)
            return (key, jax.random.fold_in(lonely, 1)), jax.random.uniform(sub)

        return lax.scan(body, (jax.random.key(seed), jax.random.key(1)), length=3)[1]

    graph = kept(f, jnp.uint32(3))
    (scan,) = (node for node in graph if node.op == "scan")
    assert scan.params["num_carry"] == 1
