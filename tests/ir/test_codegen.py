from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import to_callable, trace
from lepton_jax.ir.codegen import CodegenError, bind, identifier, to_python

X = np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(4, 5)
SQUARE = X[:4, :4] + 3 * np.eye(4, dtype=np.float32)
BIG = np.arange(100, dtype=np.float32)


def key() -> jax.Array:
    return jax.random.key(7)


@jax.custom_vjp
def doubled(x: jax.Array) -> jax.Array:
    return x * 2


doubled.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 2,))


def nested(x: jax.Array) -> Any:
    def row(carry: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = lax.fori_loop(0, 3, lambda i, t: t + lax.cond(i > 1, jnp.sin, jnp.cos, t), carry)
        return total, jax.checkpoint(lambda a: jnp.exp(a) * BIG[:5])(r) + total

    return lax.scan(row, x[0], x, reverse=True, unroll=2)


def add_and_count(a: Any, b: Any) -> Any:
    return a[0] + b[0] * b[0], a[1] + b[1]


# Programs that give the same graph when written and traced again.
SAME: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "arithmetic": (lambda x: jnp.tanh(x) * 2.0 - jnp.exp2(x) / 3 + x**3, (X,)),
    "literals": (lambda x: (x * 1j, 3, 3.5, True, np.int8(3), jnp.float32(jnp.nan), -0.0 * x), (X,)),
    "infinities": (lambda x: jnp.where(x > 0, jnp.inf, x) + lax.max(x, np.float32(-np.inf)), (X,)),
    "bfloat16": (lambda x: x.astype(jnp.bfloat16) * 2.5 + jnp.ones(5, jnp.bfloat16), (X,)),
    "float8": (lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32), (X,)),
    "int4": (lambda x: x.astype(jnp.int4) * np.asarray([1, -3, 2, 0, 1], jnp.int4), (X,)),
    "constants": (lambda x: x @ BIG.reshape(5, 20) + np.float32(1) + BIG[:20] + BIG[:20], (X,)),
    "weak literals": (lambda p, x: jnp.where(p, 1e-5, 0) + x, (X > 0, X)),
    "key constant": (lambda x: x + jax.random.normal(jax.random.key(3), (5,)), (X,)),
    "random": (lambda k: jax.random.normal(jax.random.fold_in(jax.random.split(k)[1], 2), (3,)), (key(),)),
    "seeds": (lambda s: jax.vmap(jax.random.key)(s), (np.arange(3),)),
    "rbg": (lambda s: jax.random.bits(jax.random.key(s, impl="rbg")), (np.int32(3),)),
    "key data": (lambda k: jax.random.wrap_key_data(jax.random.key_data(k)), (key(),)),
    "gather": (lambda x, i: x[i] + x[:, 1:2], (X, np.array([0, 3, 3, 1]))),
    "scatter": (lambda x: x.at[0].set(1.0).at[1, 2].add(2.0).at[2].max(x[0]).at[3].multiply(2.0), (X,)),
    "scatter apply": (lambda x: x.at[jnp.array([1, 2])].apply(jnp.sin), (X,)),
    "dynamic slice": (
        lambda x, i: lax.dynamic_update_slice(x, lax.dynamic_slice(x, (i, 0), (1, 2)), (0, i)),
        (X, 1),
    ),
    "convolution": (
        lambda x, w: lax.conv_general_dilated(x, w, (1, 2), "SAME", precision="highest"),
        (np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)),
    ),
    "dot": (lambda x: lax.dot_general(x, x, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST), (X,)),
    "dot algorithm": (lambda x: lax.dot(x, x.T, precision=lax.DotAlgorithmPreset.F32_F32_F32), (X,)),
    "ragged dot": (lambda x: lax.ragged_dot(x, jnp.ones((2, 5, 3)), jnp.array([2, 2])), (X,)),
    "accuracy": (lambda x: lax.exp(x, accuracy=lax.Tolerance(atol=1e-5, rtol=0.0, ulps=2)), (X,)),
    "accuracy mode": (lambda x: lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST), (X,)),
    "fft": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 1j), (X,)),
    "sort": (lambda x: (jnp.sort(x), jnp.argsort(x, axis=0), lax.top_k(x, 2), jnp.argmax(x)), (X,)),
    "windows": (
        lambda x: (
            lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "SAME"),
            lax.reduce_window(x, 0.0, lambda a, b: a + 2 * b, (2, 2), (1, 1), "SAME"),
        ),
        (X,),
    ),
    "window gradient": (
        jax.grad(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "SAME").sum()),
        (X,),
    ),
    "cumulative": (lambda x: (jnp.cumsum(x, 1), lax.cumlogsumexp(x, reverse=True), lax.cummax(x)), (X,)),
    "shapes": (
        lambda x: lax.pad(jnp.concatenate([x.T, lax.rev(x, (0,)).T], 1), 0.0, ((-1, 0, 0), (1, 1, 2)))[::2],
        (X,),
    ),
    "bits": (lambda x: lax.bitcast_convert_type(x, jnp.int32) & 7 | lax.population_count(jnp.int32(5)), (X,)),
    "precision": (lambda x: lax.reduce_precision(lax.round(x), 5, 10), (X,)),
    "empty": (lambda x: jnp.concatenate([x[:0], jnp.zeros((0, 5))]) * np.zeros((0, 5), np.float32), (X,)),
    "no inputs": (lambda: jnp.arange(3) + 1, ()),
    "no equations": (lambda x: (x, x), (X,)),
    "scan": (lambda x: lax.scan(lambda c, a: (c + a, c * BIG[0]), x[0], x), (X,)),
    "scan of constants": (lambda x, y: lax.scan(lambda c, _: (c * y, None), x, None, length=3), (X, X)),
    "while": (
        lambda x, n: lax.while_loop(lambda s: s[1] < n, lambda s: (s[0] * x, s[1] + 1), (x, 0)),
        (X, 3),
    ),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, lambda: x + 1, lambda: x * 2), (X,)),
    "switch": (lambda x, i: lax.switch(i, [jnp.sin, jnp.cos, lambda a: a + BIG[:5]], x), (X, 1)),
    "jit": (
        lambda x: jax.jit(lambda a: a + 1)(x) + jax.jit(jnp.sin, donate_argnums=0, keep_unused=True)(x),
        (X,),
    ),
    "inline jit": (lambda x: jax.jit(lambda a: a + 1, inline=True)(x), (X,)),
    "checkpoint": (lambda x: jax.checkpoint(jnp.sin, prevent_cse=False)(x), (X,)),
    "policy": (jax.checkpoint(jnp.sin, policy=jax.checkpoint_policies.dots_saveable), (X,)),
    "custom_jvp": (lambda x: jax.nn.relu(x) + jax.nn.silu(x), (X,)),
    "custom_vjp": (lambda x: doubled(x), (X,)),
    "nested": (nested, (X,)),
    "gradient": (jax.grad(lambda x: jax.nn.logsumexp(jnp.tanh(x)) ** 2), (X,)),
    "remat gradient": (jax.grad(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)).sum())), (X,)),
    "batched": (jax.vmap(lambda r: lax.cond(r[0] > 0, jnp.sum, jnp.max, r)), (X,)),
    "linear algebra": (
        lambda a: (jnp.linalg.cholesky(a @ a.T), jnp.linalg.eigh(a), jnp.linalg.qr(a)),
        (SQUARE,),
    ),
    "device_put": (lambda x: jax.device_put(x) + 1, (X,)),
    "barrier": (lambda x: lax.optimization_barrier((x, x * 2)), (X,)),
    "composition": (lambda x: lax.associative_scan(jnp.multiply, x), (X,)),
}

# Programs that JAX's public functions write a little differently the second time.
SAME_NUMBERS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "linear solve": (lambda a: jnp.linalg.solve(a, a[:, :2]), (SQUARE,)),
    "conjugate gradients": (lambda a: jax.scipy.sparse.linalg.cg(lambda v: a @ a.T @ v, a[0])[0], (SQUARE,)),
    "reduce": (lambda x: lax.reduce((x, x), (0.0, 1.0), add_and_count, (0,)), (X,)),
}


def rewritten(fun: Callable[..., Any], args: Any) -> Callable[..., list[Any]]:
    """`fun` on flat arguments, written as Python and read back."""
    arrays: dict[str, np.ndarray] = {}
    source = to_python(trace(fun, *args), arrays, "program")
    scope: dict[str, Any] = {"ARRAYS": arrays}
    exec(compile(source, "generated.py", "exec"), scope)
    made: Callable[..., list[Any]] = scope["program"]
    made.__name__ = getattr(fun, "__name__", "f")
    return made


def bits(tree: Any) -> list[Any]:
    """The leaves of a tree as numpy arrays, PRNG keys as their data."""
    leaves = jax.tree.leaves(tree)
    data = [
        jax.random.key_data(x) if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key) else x
        for x in leaves
    ]
    return [np.asarray(x) for x in data]


@pytest.mark.parametrize("name", SAME)
def test_written_and_traced_again_it_is_the_same_graph(name: str) -> None:
    fun, args = SAME[name]
    again = rewritten(fun, args)
    assert trace(again, *jax.tree.leaves(args)).to_text() == trace(fun, *args).to_text()


@pytest.mark.parametrize("name", SAME_NUMBERS)
def test_written_and_run_it_gives_the_same_numbers(name: str) -> None:
    fun, args = SAME_NUMBERS[name]
    got = jax.jit(rewritten(fun, args))(*jax.tree.leaves(args))
    for a, b in zip(bits(got), bits(jax.jit(fun)(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", ["nested", "literals", "scatter", "weak literals", "random", "int4"])
def test_numbers_of_the_generated_program_bit_for_bit(name: str) -> None:
    fun, args = SAME[name]
    got = jax.jit(rewritten(fun, args))(*jax.tree.leaves(args))
    want = jax.jit(to_callable(trace(fun, *args)))(*jax.tree.leaves(args))
    for a, b in zip(bits(got), bits(want), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_the_source_reads_like_a_program() -> None:
    def gate(x: jax.Array, n: jax.Array) -> Any:
        return lax.fori_loop(0, n, lambda _, c: jax.nn.relu(c) * x, x)

    source = to_python(trace(gate, np.ones(3, np.float32), np.int32(2)), {})
    assert source == GATE


GATE = """\
import numpy as np
from lepton_jax.ir.codegen import bind

def cond(v0, v1, v2):
    v3 = bind("lt", [v0, v1])
    return [v3]


def relu(v0):
    v1 = bind("max", [v0, np.float32(0.0)])
    return [v1]


def body_2(v0):
    [v1] = bind("jit", [v0], regions=[relu], name="relu")
    return [v1]


def body(v0, v1, v2, v3):
    v4 = bind("add", [v1, 1])
    [v5] = bind("custom_jvp_call", [v3], regions=[body_2])  # the derivative is that of the body
    v6 = bind("mul", [v5, v0], out_dtype=None)
    return [v4, v2, v6]


def gate(v0, v1):
    [_, _, v4] = bind("while", [v0, 0, v1, v0], regions=[cond, body], cond_nconsts=0, body_nconsts=1)
    return [v4]
"""


def test_a_weak_constant_stays_weak_and_a_constant() -> None:
    two = jnp.asarray(2.0)  # weak

    def scaled(x: jax.Array) -> Any:
        return two * x

    assert to_python(trace(scaled, X), {}).count('weak(2.0, "float32")') == 1
    assert trace(rewritten(scaled, (X,)), X).to_text() == trace(scaled, X).to_text()


def test_a_shared_call_is_written_once_and_stays_shared() -> None:
    step = jax.jit(lambda x: jnp.sin(x) * 2)

    def twice(x: jax.Array) -> Any:
        return step(step(x))

    arrays: dict[str, np.ndarray] = {}
    assert to_python(trace(twice, X), arrays).count('bind("sin"') == 1
    first, second = [node.regions[0] for node in trace(rewritten(twice, (X,)), X)]
    assert first is second


def test_large_constants_go_into_the_dictionary_and_each_array_once() -> None:
    table = np.asarray(np.arange(40), jnp.bfloat16)
    arrays: dict[str, np.ndarray] = {}
    source = to_python(trace(lambda x: x * table + table, table), arrays, "f")
    assert [(a.shape, str(a.dtype)) for a in arrays.values()] == [((40,), "uint16")]
    assert source.count("ARRAYS") == 1
    assert "array([0.0, 1.0]" in to_python(trace(lambda x: x * table[:2], table[:2]), {})


def test_names_that_python_or_the_file_needs_are_not_taken() -> None:
    def bind(x: jax.Array) -> jax.Array:
        return jnp.multiply(jax.jit(np_)(x), jnp.inf)

    def np_(x: jax.Array) -> jax.Array:
        return x + 1

    np_.__name__ = "np"
    source = to_python(trace(bind, X), {})
    assert "def np_2(v0):" in source
    assert identifier("<lambda>") == "f_lambda"
    assert identifier("a-b") == "a_b"
    assert identifier("1st") == "f_1st"


@pytest.mark.parametrize(
    ("fun", "message"),
    [
        (lambda x: jax.pure_callback(np.sin, x, x), "pure_callback"),
        (lambda x: jax.debug.print("{}", x), "debug_print"),
        (
            lambda x: lax.with_sharding_constraint(x, jax.sharding.SingleDeviceSharding(jax.devices()[0])),
            "sharding_constraint: parameter 'sharding'",
        ),
        (
            lambda x: jax.jit(jnp.sin, out_shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]))(x),
            "jit: parameters 'in_shardings'",
        ),
        (jax.checkpoint(jnp.sin, policy=lambda *_, **__: True), "remat2: parameter 'policy'"),
        (
            lambda x: jax.shard_map(
                jnp.sin, mesh=jax.make_mesh((1,), ("a",)), in_specs=jax.P(), out_specs=jax.P()
            )(x),
            "shard_map: parameter 'mesh'",
        ),
    ],
)
def test_what_cannot_be_written_is_named(fun: Callable[..., Any], message: str) -> None:
    with pytest.raises(CodegenError, match=message):
        to_python(trace(fun, X), {})


def test_a_tracer_as_constant_is_refused() -> None:
    def outer(x: jax.Array) -> jax.Array:
        with pytest.raises(CodegenError, match="mul: a constant belongs to a trace"):
            to_python(trace(lambda y: y * x, X), {})
        return x

    assert jax.make_jaxpr(outer)(X) is not None


def test_bind_runs_eagerly_under_jit_grad_and_vmap() -> None:
    def poly(x: Any) -> Any:
        return bind("add", [bind("mul", [x, x], out_dtype=None), np.float32(1)])

    assert float(poly(np.float32(3))) == 10.0
    assert float(jax.jit(poly)(np.float32(3))) == 10.0
    assert float(jax.grad(poly)(np.float32(3))) == 6.0
    np.testing.assert_array_equal(jax.vmap(poly)(np.arange(3, dtype=np.float32)), [1.0, 2.0, 5.0])


def test_bind_names_an_unknown_operation_and_refuses_useless_regions() -> None:
    with pytest.raises(KeyError, match="no_such_operation"):
        bind("no_such_operation", [1.0])
    with pytest.raises(TypeError, match="mul takes no regions"):
        bind("mul", [1.0, 2.0], regions=[lambda x: [x]])


def test_bind_goes_through_shard_map() -> None:
    mesh = jax.make_mesh((1,), ("a",), (jax.sharding.AxisType.Auto,))
    [total] = bind(
        "shard_map",
        [X],
        regions=[lambda x: [lax.psum(x, "a")]],
        mesh=mesh,
        in_specs=(jax.P("a"),),
        out_specs=[jax.P()],
    )
    np.testing.assert_array_equal(total, X)


@pytest.mark.parametrize("name", ["custom_jvp", "custom_vjp"])
def test_custom_rules_become_the_derivative_of_the_body(name: str) -> None:
    fun, args = SAME[name]
    again = rewritten(fun, args)
    got = jax.grad(lambda x: again(x)[0].sum())(X + 2)
    np.testing.assert_allclose(got, jax.grad(lambda x: fun(x).sum())(X + 2), rtol=1e-6)


def test_under_x64() -> None:
    def wide(x: jax.Array) -> Any:
        return x * 2.0 + np.float64(0.1) + jnp.arange(5, dtype=jnp.int64)

    with jax.enable_x64(True):
        x = np.ones(5, np.float64)
        again = rewritten(wide, (x,))
        assert trace(again, x).to_text() == trace(wide, x).to_text()
