"""Dead code elimination: what goes, what stays, and through which interfaces."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import to_callable
from tests.passes._check import fired, optimised, same
from tests.passes._golden import ONE, X, assert_every_gate, assert_text, assert_untouched, ops

kept = partial(same, passes="dce", level="exact")


def test_dead_chain() -> None:
    def f(x: Any, y: Any) -> Any:
        jnp.cos(jnp.sin(y))
        return x + 1

    assert_text(
        kept(f, X, X),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          %2: f32[3] = add %0 1.0
          return %2
        }
        """,
    )
    assert fired(f, X, X, passes="dce") == {"dead-node": 2}


def test_inputs_and_constants_may_be_returned() -> None:
    def f(x: Any, y: Any) -> Any:
        jnp.sin(y)
        return y, x, y, jnp.float32(2.0)

    assert_text(
        kept(f, X, ONE),
        """
        graph f(%0: f32[3], %1: f32[]) {
          return %1, %0, %1, 2.0
        }
        """,
    )


def test_nothing_to_do_leaves_the_program_verbatim() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            return c + x * w, jnp.sin(c)

        carry, ys = lax.scan(body, ONE, xs)
        return lax.cond(carry > 0, lambda y: y + w, lambda y: y, ys)

    assert_untouched(f, ONE, X, passes="dce")


# Scan


def scan_with_leftovers(w: Any, unused: Any, xs: Any, more: Any) -> Any:
    def body(carry: Any, x: Any) -> Any:
        total, lonely = carry
        a, b = x
        return (total + a, jnp.cos(lonely) * b), (total * a, jnp.sin(w), unused + a)

    (total, _), (products, _, _) = lax.scan(body, (ONE, w), (xs, more))
    return total, products


def test_scan_loses_outputs_carries_operands_and_constants() -> None:
    assert_text(
        kept(scan_with_leftovers, ONE, ONE, X, X),
        """
        graph f(%0: f32[], %1: f32[], %2: f32[3], %3: f32[3]) {
          %4: f32[], %5: f32[3] = scan[length=3 num_carry=1 num_consts=0 reverse=False unroll=1] 1.0 %2 {
            region body(%0: f32[], %1: f32[]) {
              %2: f32[] = add %0 %1
              %3: f32[] = mul %0 %1
              return %2, %3
            }
          }
          return %4, %5
        }
        """,
    )


def test_scan_keeps_reverse_and_unroll() -> None:
    def f(xs: Any) -> Any:
        return lax.scan(lambda c, x: (c * x + 1, c), ONE, xs, reverse=True, unroll=2)[0]

    graph = kept(f, X)
    (scan,) = graph
    assert scan.params["reverse"] and scan.params["unroll"] == 2
    assert len(scan.results) == 1


def test_carries_that_feed_only_each_other() -> None:
    def f(xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b, c = carry
            return (b * x, a + x, c + x), None

        return lax.scan(body, (ONE, jnp.float32(2.0), jnp.float32(3.0)), xs)[0][2]

    graph = kept(f, X)
    (scan,) = graph
    assert scan.params["num_carry"] == 1
    assert ops(graph) == ["scan", "add"]


def test_a_carry_that_feeds_a_live_one_stays() -> None:
    def f(xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b = carry
            return (a * x, b + a), None

        return lax.scan(body, (ONE, ONE), xs)[0][1]

    assert_untouched(f, X, passes="dce")


def test_dead_nodes_inside_that_read_a_constant() -> None:
    def f(w: Any, xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            jnp.sin(w)  # nothing that the loop returns goes with it
            return c + x, c

        return lax.scan(body, ONE, xs)

    graph = kept(f, ONE, X)
    assert ops(graph) == ["scan", "add"]
    assert next(iter(graph)).params["num_consts"] == 0


def test_scan_without_results_goes() -> None:
    def f(xs: Any) -> Any:
        lax.scan(lambda c, x: (c + x, c), ONE, xs)
        return xs

    assert ops(kept(f, X)) == []


def test_scan_of_length_zero_and_of_no_elements() -> None:
    def f(xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + x.sum(), (c, x * 2)), ONE, xs)[1][1]

    assert kept(f, jnp.zeros((0, 2))).outputs[0].shape == (0, 2)
    assert kept(f, jnp.zeros((3, 0))).outputs[0].shape == (3, 0)


# Loops in loops


def test_a_constant_that_only_an_inner_leftover_reads() -> None:
    def f(w: Any, xs: Any) -> Any:
        def inner(c: Any, y: Any) -> Any:
            return c + y, c * w

        def body(c: Any, x: Any) -> Any:
            return lax.scan(inner, c, jnp.stack([x, x]))[0], None

        return lax.scan(body, ONE, xs)[0]

    graph = kept(f, ONE, X)
    (outer,) = graph
    (inner,) = (node for node in outer.regions[0] if node.op == "scan")
    assert (outer.params["num_consts"], inner.params["num_consts"]) == (0, 0)


def test_carries_that_feed_themselves_through_an_inner_loop() -> None:
    def f(xs: Any, w: Any) -> Any:
        def inner(state: Any, y: Any) -> Any:
            total, lonely = state
            return (total + y, lonely * jnp.sin(y)), None

        def body(state: Any, x: Any) -> Any:
            return lax.scan(inner, state, xs * x)[0], None

        return lax.scan(body, (ONE, w), xs)[0][0]

    assert_text(
        kept(f, X, ONE),
        """
        graph f(%0: f32[3], %1: f32[]) {
          %2: f32[] = scan[length=3 num_carry=1 num_consts=1 reverse=False unroll=1] %0 1.0 %0 {
            region body(%0: f32[3], %1: f32[], %2: f32[]) {
              %3: f32[3] = mul %0 %2
              %4: f32[] = scan[length=3 num_carry=1 num_consts=0 reverse=False unroll=1] %1 %3 {
                region body(%0: f32[], %1: f32[]) {
                  %2: f32[] = add %0 %1
                  return %2
                }
              }
              return %4
            }
          }
          return %2
        }
        """,
    )


def test_carries_that_feed_themselves_through_a_branch_and_a_while() -> None:
    def f(x: Any, w: Any) -> Any:
        def body(state: Any) -> Any:
            i, total, lonely = state
            total, lonely = lax.cond(
                i > 1, lambda t, v: (t + 1, v * 2), lambda t, v: (t * 2, v), total, lonely
            )
            return i + 1, total, lonely

        return lax.while_loop(lambda s: s[0] < 4, body, (0, x, w))[1]

    graph = kept(f, X, X, grad=False)
    assert [len(node.results) for node in graph.walk() if node.regions] == [2, 1]


# While


def test_while_loses_carries_that_the_condition_does_not_read() -> None:
    def f(x: Any, w: Any) -> Any:
        def body(state: Any) -> Any:
            i, total, lonely = state
            return i + 1, total * 2, lonely + jnp.sin(w) * total

        return lax.while_loop(lambda s: s[0] < 3, body, (0, x, x))[1]

    assert_text(
        kept(f, X, X, grad=False),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          _: i32[], %2: f32[3] = while[body_nconsts=0 cond_nconsts=0] 0 %0 {
            region cond(%0: i32[], %1: f32[3]) {
              %2: bool[] = lt %0 3
              return %2
            }
            region body(%0: i32[], %1: f32[3]) {
              %2: i32[] = add %0 1
              %3: f32[3] = mul %1 2.0
              return %2, %3
            }
          }
          return %2
        }
        """,
    )


def test_while_keeps_what_the_condition_needs_by_way_of_others() -> None:
    def f(x: Any) -> Any:
        def cond(state: Any) -> Any:
            return state[0] < 3

        def body(state: Any) -> Any:
            i, step, total = state
            return i + step, step + 1, total * 2

        return lax.while_loop(cond, body, (0, 1, x))[2]

    assert_untouched(f, X, passes="dce")


def test_while_carry_read_only_by_dead_nodes_of_the_condition() -> None:
    def f(x: Any) -> Any:
        def cond(state: Any) -> Any:
            jnp.sum(state[2])
            return state[0] < 3

        return lax.while_loop(cond, lambda s: (s[0] + 1, s[1] * 2, s[2] + 1), (0, x, x))[1]

    graph = kept(f, X, grad=False)
    assert len(next(iter(graph)).results) == 2


def test_unused_while_goes() -> None:
    def f(x: Any) -> Any:
        lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 2), (0, x))
        return x

    assert ops(kept(f, X)) == []


# Branches, calls, checkpoints


def test_cond_loses_results_and_arguments() -> None:
    def f(i: Any, x: Any, y: Any) -> Any:
        branches = [lambda a, b: (a, b), lambda a, b: (a * 2, b * 2), lambda a, b: (jnp.sin(a), b + a)]
        return lax.switch(i, branches, x, y)[0]

    graph = kept(f, 2, X, X)
    (switch,) = (node for node in graph if node.op == "cond")
    assert len(switch.operands) == 2
    assert [len(branch.outputs) for branch in switch.regions] == [1, 1, 1]


def test_cond_keeps_an_argument_that_one_branch_reads() -> None:
    def f(p: Any, x: Any, y: Any) -> Any:
        return lax.cond(p, lambda a, b: a, lambda a, b: a + b, x, y)

    assert_untouched(f, True, X, X, passes="dce")


@jax.jit
def wide(x: Any, y: Any) -> Any:
    return jnp.sin(x), jnp.cos(y) * 2


def test_call_with_one_caller_loses_results_and_arguments() -> None:
    def f(x: Any, y: Any) -> Any:
        return wide(x, y)[0]

    assert_text(
        kept(f, X, X),
        """
        graph f(%0: f32[3], %1: f32[3]) {
          %2: f32[3] = jit[name='wide'] %0 {
            region wide(%0: f32[3]) {
              %1: f32[3] = sin[accuracy=None] %0
              return %1
            }
          }
          return %2
        }
        """,
    )


def test_call_with_two_callers_keeps_its_interface() -> None:
    def f(x: Any, y: Any) -> Any:
        return wide(x, y)[0] + wide(y, x)[0]

    assert_untouched(f, X, X, passes="dce")


def test_call_that_loses_a_caller_is_looked_at_again() -> None:
    def f(x: Any, y: Any) -> Any:
        wide(y, x)
        return wide(x, y)[0]

    graph = kept(f, X, X)
    assert ops(graph) == ["jit", "sin"]
    assert fired(f, X, X, passes="dce") == {"dead-node": 1, "dead-slot": 1}


def test_call_that_is_more_than_a_call_keeps_its_interface() -> None:
    donating = jax.jit(lambda x, y: (jnp.sin(x), jnp.cos(y)), donate_argnums=1)

    assert_untouched(lambda x, y: donating(x, y)[0], X, X, passes="dce")


def test_checkpoint_still_recomputes() -> None:
    def f(x: Any, y: Any) -> Any:
        return jax.checkpoint(lambda a, b: (jnp.sin(jnp.sin(a)), jnp.cos(b)))(x, y)[0]

    graph = kept(f, X, X)
    assert ops(graph) == ["remat2", "sin", "sin"] or ops(graph) == ["checkpoint", "sin", "sin"]
    flat = to_callable(graph)
    forward, backward = str(jax.make_jaxpr(jax.grad(lambda x: flat(x, X)[0].sum()))(X)).split(
        "differentiated=True"
    )
    assert (forward.count(" sin "), backward.count(" sin ")) == (2, 1)


# What must stay


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


# Other ways in


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "bool", "complex64", "uint8"])
def test_dtypes(dtype: str) -> None:
    def f(x: Any) -> Any:
        def body(carry: Any, y: Any) -> Any:
            return (jnp.where(carry[0] == y, y, carry[0]), jnp.where(y == y, carry[1], y)), carry[1]

        return lax.scan(body, (x[0], x[1]), x)[0][0]

    graph = kept(f, jnp.asarray([0, 1, 1]).astype(dtype), grad=False)
    assert next(node for node in graph if node.op == "scan").params["num_carry"] == 1


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")

    def f(x: Any, w: Any) -> Any:
        def body(carry: Any, y: Any) -> Any:
            return (carry[0] + y, carry[1] * jnp.sin(w)), jnp.cos(y)

        return lax.scan(body, (ONE, w), x)[0][0]

    graph = optimised(f, jax.ShapeDtypeStruct((n,), jnp.float32), ONE, passes="dce")
    assert ops(graph) == ["scan", "add"]
    exported = jax.export.export(jax.jit(to_callable(graph)))(jax.ShapeDtypeStruct((n,), jnp.float32), ONE)
    np.testing.assert_allclose(exported.call(X, ONE)[0], f(X, ONE))


def test_single_applications_can_be_forbidden() -> None:
    def f(w: Any, x: Any) -> Any:
        def inner(state: Any, y: Any) -> Any:
            jnp.tan(y)
            return (state[0] + y, state[1] * y), jnp.cos(w)

        def body(state: Any, y: Any) -> Any:
            jnp.exp(y)
            return lax.scan(inner, state, x)[0], lax.cond(y > 0, lambda: (y, w), lambda: (w, y))[0]

        wide(x, jnp.sin(w))
        state, ys = lax.scan(body, (ONE, jnp.sin(w)), x)
        return state[0], wide(ys, x)[1]

    assert assert_every_gate(f, ONE, X, passes="dce") >= 4
