from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.cost import Cost, Rates, bytes_of, graph_cost, node_cost, seconds
from lepton_jax.targets import CPU, TARGETS, get_target


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def cost(fun: Any, *args: Any) -> Cost:
    return graph_cost(trace(fun, *args))


def test_products_of_matrices() -> None:
    found = cost(jnp.matmul, f32(8, 16), f32(16, 4))
    assert found.flops == 2 * 8 * 16 * 4
    assert found.dot_flops == (("float32", found.flops),)
    assert found.bytes == 4 * (8 * 16 + 16 * 4 + 8 * 4)
    batched = cost(jnp.matmul, f32(3, 8, 16), f32(3, 16, 4))
    assert batched.flops == 3 * found.flops
    small = cost(jnp.matmul, jax.ShapeDtypeStruct((8, 16), jnp.int8), jax.ShapeDtypeStruct((16, 4), jnp.int8))
    assert small.dot_flops == (("int8", found.flops),)


def test_convolutions() -> None:
    found = cost(
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        f32(2, 8, 8, 3),
        f32(3, 3, 3, 16),
    )
    assert found.flops == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)
    grouped = cost(
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=4),
        f32(1, 8, 8, 8),
        f32(16, 2, 3, 3),
    )
    assert grouped.flops == 2 * (16 * 8 * 8) * (2 * 3 * 3)


def test_elementwise_operations_by_weight() -> None:
    assert cost(jnp.add, f32(10), f32(10)).flops == 10
    assert cost(lambda x: -x, f32(10)).bytes == 80
    assert cost(jnp.exp, f32(10)).flops > cost(jnp.sqrt, f32(10)).flops > cost(jnp.negative, f32(10)).flops


def test_reductions_count_what_they_read() -> None:
    found = cost(lambda x: x.max(), f32(8, 9))
    assert found.flops == 72 and found.bytes == 4 * 73
    assert cost(lambda x: lax.cumsum(x), f32(8)).flops == 8
    pooled = cost(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"), f32(8, 8))
    assert pooled.flops == 16 * 4


def test_moving_and_renaming() -> None:
    assert cost(lambda x: x.reshape(-1), f32(4, 4)) == Cost()
    assert cost(lambda x: x.T, f32(4, 5)).flops == 0
    assert cost(lambda x: x.T, f32(4, 5)).bytes == 160
    sliced = trace(
        lambda x, i: lax.dynamic_slice(x, (i,), (2,)), f32(1000), jax.ShapeDtypeStruct((), jnp.int32)
    )
    assert node_cost(list(sliced)[-1]).bytes == 8 + 8 + 4
    update = cost(lambda x, u: lax.dynamic_update_slice(x, u, (3,)), f32(1000), f32(2))
    assert update.bytes == 16
    gathered = cost(lambda x, i: x[i], f32(1000, 4), jax.ShapeDtypeStruct((5,), jnp.int32))
    assert gathered.bytes < 1000
    assert cost(lambda x: x.at[jnp.array([1, 2])].add(1.0), f32(1000)).flops >= 2


def test_sorting_and_transforms() -> None:
    assert cost(jnp.sort, f32(4, 1024)).flops == 300 * 4096 * 10
    assert cost(lambda x: lax.top_k(x, 3), f32(4, 1024)).flops == 10 * 4096 * 10
    found = cost(jnp.fft.fft, jax.ShapeDtypeStruct((64,), jnp.complex64))
    assert found.flops == 5 * 64 * 6


@pytest.mark.parametrize(
    ("fun", "cubes"),
    [
        (lambda a: lax.linalg.cholesky(a, symmetrize_input=False), 1 / 3),
        (lax.linalg.lu, 2 / 3),
        (lambda a: lax.linalg.qr(a), 4 / 3),
        (lax.linalg.svd, 20),
        (lambda a: lax.linalg.eigh(a, symmetrize_input=False), 9),
        (lambda a: lax.linalg.triangular_solve(a, a, left_side=True), 1),
    ],
)
def test_factorisations_grow_with_the_cube(fun: Any, cubes: float) -> None:
    small, large = (cost(fun, f32(n, n)).flops for n in (64, 128))
    assert small == pytest.approx(cubes * 64**3, rel=0.3)
    assert 7 < large / small < 9


def test_loops_count_body_times_trips() -> None:
    def run(length: int) -> Cost:
        return cost(lambda x: lax.scan(lambda c, _: (c @ c, None), x, None, length=length)[0], f32(8, 8))

    assert run(10).flops == 10 * 2 * 8**3 and run(20).flops == 2 * run(10).flops
    assert run(10).iterations == 10 and not run(10).unknown_trip
    assert run(0).flops == 0
    nested = cost(
        lambda x: lax.scan(
            lambda c, _: (lax.scan(lambda d, _: (jnp.sin(d), None), c, None, length=3)[0], None),
            x,
            None,
            length=4,
        )[0],
        f32(2),
    )
    assert nested.iterations == 4 + 12
    endless = cost(lambda x: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ c, x), f32(8, 8))
    assert endless.unknown_trip and endless.flops >= 2 * 8**3


def test_branches_count_as_the_dearer() -> None:
    found = cost(
        lambda p, x: lax.cond(p, lambda y: y @ y, lambda y: y, x), jax.ShapeDtypeStruct((), bool), f32(8, 8)
    )
    assert found.dot_flops == (("float32", 2 * 8**3),)


def test_calls_count_as_often_as_they_run() -> None:
    inner = jax.jit(lambda x: x @ x)
    assert cost(lambda x: inner(inner(x)), f32(8, 8)).flops == 2 * 2 * 8**3
    assert cost(jax.checkpoint(lambda x: x @ x), f32(8, 8)).flops == 2 * 8**3
    (call,) = trace(lambda x: inner(x), f32(8, 8))
    assert node_cost(call).flops == 2 * 8**3
    assert cost(jax.nn.relu, f32(4)).flops == 4


def test_unknown_and_opaque_operations_have_a_cost() -> None:
    def fun(x: jax.Array) -> Any:
        y = jax.pure_callback(lambda v: v, f32(3), x)
        jax.debug.print("{}", y)
        key = jax.random.key(0)
        return jax.random.normal(key, (3,)) + y

    found = cost(fun, f32(3))
    assert found.flops > 0 and found.bytes > 0
    solved = cost(
        lambda b: lax.custom_linear_solve(lambda x: 2 * x, b, lambda _, v: v / 2, symmetric=True), f32(3)
    )
    assert solved.flops == 4 * 3


def test_symbolic_dimensions_count_as_one() -> None:
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 8), jnp.float32)
    found = cost(lambda x: jnp.sort(x @ x.T).sum(), x)
    assert found.dot_flops == (("float32", 16.0),)
    looped = cost(lambda x: lax.scan(lambda c, r: (c + r, r), x[0], x), x)
    assert looped.iterations == 1


def test_narrow_numbers_take_half_a_byte() -> None:
    graph = trace(lambda x: x, jax.ShapeDtypeStruct((5,), jnp.int4))
    assert bytes_of(graph.inputs[0]) == 3
    (key,) = trace(lambda: jax.random.key(0)).outputs
    assert bytes_of(key) >= 8


def test_costs_add_and_multiply() -> None:
    a = Cost(10, 4, (("float32", 6.0),), 1, 0, False)
    b = Cost(20, 8, (("bfloat16", 2.0), ("float32", 3.0)), 2, 5, True)
    assert a + b == Cost(30, 12, (("bfloat16", 2.0), ("float32", 9.0)), 3, 5, True)
    assert a + Cost() == a and Cost() + b == b
    assert b.times(2) == Cost(40, 16, (("bfloat16", 4.0), ("float32", 6.0)), 4, 10, True)


def test_seconds() -> None:
    rates = Rates("t", "cpu", {"float32": 100.0, "int8": 400.0}, 10.0, 8.0, 0.5, 0.25)
    assert seconds(Cost(flops=20), rates) == 2.0
    assert seconds(Cost(flops=100, dot_flops=(("float32", 100.0),)), rates) == 1.0
    assert seconds(Cost(flops=100, dot_flops=(("int8", 100.0),)), rates) == 0.25
    assert seconds(Cost(flops=100, dot_flops=(("int4", 100.0),)), rates) == 1.0
    assert seconds(Cost(flops=20, bytes=80), rates) == 10.0
    assert seconds(Cost(nodes=2, iterations=4), rates) == 2.0


# Targets


def test_targets_are_found_by_name() -> None:
    assert get_target("cpu") is CPU and set(TARGETS) == {"cpu", "gpu", "tpu"}
    assert get_target().name == "cpu"
    assert all(get_target(name).platform == name for name in TARGETS)
    with pytest.raises(ValueError, match="no target is called 'npu'; there are cpu, gpu, tpu"):
        get_target("npu")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_rates_say_what_was_measured(name: str) -> None:
    rates = get_target(name)
    assert rates.flops["int8"] > rates.flops["bfloat16"] > rates.flops["float32"]
    assert hash(rates) is not None
    # A chain of matrices is best multiplied from its thin end.
    left = graph_cost(trace(lambda a, b, v: (a @ b) @ v, f32(512, 512), f32(512, 512), f32(512)))
    right = graph_cost(trace(lambda a, b, v: a @ (b @ v), f32(512, 512), f32(512, 512), f32(512)))
    assert seconds(right, rates) < seconds(left, rates)
