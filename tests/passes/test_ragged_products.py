"""Ragged products on CPUs: each group's rows with its own matrix, under every transformation."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lepton_jax as lepton
from lepton_jax.rewrite import Pipeline
from lepton_jax.targets.kernels.ragged import pays
from tests.passes._check import run
from tests.passes._quantize import floats

PASS = "inline,dce,ragged-products"
ROWS, WIDTH, OUT, GROUPS = 256, 32, 48, 8

X, W = floats(ROWS, WIDTH), floats(GROUPS, WIDTH, OUT)
EVEN = jnp.full(GROUPS, ROWS // GROUPS)
UNEVEN = jnp.array([32, 0, 100, 3, 1, 0, 80, 20])
TURNED = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))


def product(x: Any, w: Any, sizes: Any) -> Any:
    return lax.ragged_dot(x, w, sizes)


def turned(x: Any, w: Any, sizes: Any) -> Any:
    return lax.ragged_dot_general(x, w.transpose(0, 2, 1), sizes, TURNED)


def loss(x: Any, w: Any, sizes: Any) -> Any:
    return jnp.sum(jnp.sin(product(x, w, sizes)))


def fired(fun: Any, *args: Any, **given: Any) -> dict[str, int]:
    return dict(run(fun, *args, passes=PASS, **given)[1].rules)


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(each, np.float64) for each in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1))


SIZES = {
    "even": EVEN,
    "uneven": UNEVEN,
    "all in one": jnp.array([0, 0, ROWS, 0, 0, 0, 0, 0]),
    "all in the last": jnp.array([0, 0, 0, 0, 0, 0, 0, ROWS]),
    "none": jnp.zeros(GROUPS, jnp.int32),
    "too few": jnp.array([3, 0, 1, 0, 5, 0, 0, 1]),
    "too many": jnp.array([150, 20, 150, 9, 9, 9, 9, 9]),
}


def test_values_and_gradients_whatever_the_sizes_are() -> None:
    """One program for all sizes; rows without a group are zeros, and so are the slopes of empty groups."""
    for fun in (product, turned):
        f = jax.jit(lepton.optimize(fun, PASS))
        assert "while" in f.lower(X, W, EVEN).as_text()
        for sizes in SIZES.values():
            close(f(X, W, sizes), fun(X, W, sizes))
    inside = lepton.optimize(jax.value_and_grad(loss, (0, 1)), PASS)
    outside = jax.jit(jax.value_and_grad(lepton.optimize(loss, PASS), (0, 1)))
    assert outside.lower(X, W, EVEN).as_text().count("stablehlo.while") == 6  # three, each of two loops
    for sizes in SIZES.values():
        expected = jax.value_and_grad(loss, (0, 1))(X, W, sizes)
        close(inside(X, W, sizes), expected)
        close(outside(X, W, sizes), expected)
    assert dict(inside.report.rules) == {"rows-by-group": 2, "sums-by-group": 1}


def test_derivatives_of_derivatives() -> None:
    f = lepton.optimize(product, PASS)

    def second(fun: Any) -> Any:
        def slope(x: Any, w: Any) -> Any:
            return jax.jvp(lambda x, w: jnp.cos(fun(x, w, UNEVEN)), (x, w), (x + 1, w * 2))[1]

        return jax.jit(lambda x, w: jax.jvp(slope, (x, w), (x * 2, w + 1)))(X, W)

    def curved(fun: Any) -> Any:
        slopes = jax.grad(lambda x, w: jnp.sum(jnp.sin(fun(x, w, UNEVEN))), (0, 1))
        return jax.jit(lambda x, w: jax.jvp(slopes, (x, w), (x + 1, w * 2)))(X, W)

    close(second(f), second(product), 1e-3)
    close(curved(f), curved(product), 1e-3)

    def by_one_hot(x: Any, w: Any, sizes: Any) -> Any:
        mine = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(ROWS), side="right")
        return jnp.einsum("mg,mk,gkn->mn", jax.nn.one_hot(mine, GROUPS), x, w)

    def twice(fun: Any) -> Any:  # which JAX's own product has no rule for
        slope = jax.grad(lambda x, w: jnp.sum(jnp.sin(fun(x, w, UNEVEN))), 1)
        return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.cos(slope(x, w))), (0, 1)))(X, W)

    close(twice(f), twice(by_one_hot), 1e-3)


def test_under_vmap_scan_and_checkpoint() -> None:
    f = lepton.optimize(product, PASS)
    several = jnp.stack([X, X + 1]), jnp.stack([W, W * 2]), jnp.stack([EVEN, UNEVEN])
    each = [product(*args) for args in zip(*several, strict=True)]
    close(jax.vmap(f)(*several), jnp.stack(each))
    close(
        jax.vmap(f, (0, None, None))(several[0], W, UNEVEN),
        jnp.stack([product(x, W, UNEVEN) for x in several[0]]),
    )

    with jax.disable_jit():
        close(f(X, W, UNEVEN), product(X, W, UNEVEN))

    def layers(x: Any, stack: Any, sizes: Any) -> Any:
        @jax.checkpoint
        def layer(x: Any, w: Any) -> Any:
            return jnp.tanh(product(x, w, sizes) / 8), None

        return jnp.sum(lax.scan(layer, x, stack)[0])

    stack = floats(3, GROUPS, WIDTH, WIDTH)
    g = lepton.optimize(jax.value_and_grad(layers, (0, 1)))
    close(g(X, stack, UNEVEN), jax.value_and_grad(layers, (0, 1))(X, stack, UNEVEN))
    assert g.report.rules["rows-by-group"] >= 2 and g.report.rules["sums-by-group"] == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_halves_are_summed_as_by_xla(dtype: Any) -> None:
    x, w = X.astype(dtype), W.astype(dtype)
    for wanted in (None, jnp.float32):
        fun = partial(lax.ragged_dot, group_sizes=UNEVEN, preferred_element_type=wanted)
        f = lepton.optimize(lambda x, w, fun=fun: fun(x, w), PASS)
        exact = fun(x.astype(jnp.float32), w.astype(jnp.float32)).astype(wanted or dtype)
        close(f(x, w), exact, 1e-5 if wanted else 1e-2)
        assert f.report.rules == {"rows-by-group": 1}
    slopes = jax.value_and_grad(lambda x, w: jnp.sum(product(x, w, UNEVEN).astype(jnp.float32) ** 2), (0, 1))
    close(lepton.optimize(slopes, PASS)(x, w), jax.jit(slopes)(x, w), 2e-2)


def test_codes_are_the_same_integers() -> None:
    x, w = (jnp.asarray(a * 40, jnp.int8) for a in (X, W))
    fun = partial(lax.ragged_dot, group_sizes=UNEVEN, preferred_element_type=jnp.int32)
    graph, report = run(fun, x, w, passes=PASS, level="exact")
    assert dict(report.rules) == {"int8-rows-by-group": 1}
    np.testing.assert_array_equal(lepton.ir.to_callable(graph)(x, w)[0], fun(x, w))
    assert fired(product, x, w, UNEVEN) == {}  # summed in int8


def test_what_a_group_does_not_read_does_not_reach_it() -> None:
    """XLA multiplies the others' matrices with zeros, which makes NaN of infinities."""
    f = lepton.optimize(product, PASS)
    found = f(X.at[0].set(jnp.nan), W.at[1].set(jnp.inf), UNEVEN)
    close(found[1:], product(X, W, UNEVEN)[1:])
    assert jnp.isnan(found[0]).all()


def test_what_stays() -> None:
    few = X[:8], W[:4], EVEN[:4]
    tiny = X[:, :4], W[:, :4, :4], EVEN
    short = EVEN.astype(jnp.int8)
    whole = jnp.asarray(X * 9, jnp.int32), jnp.asarray(W * 9, jnp.int32), EVEN
    assert fired(product, X, W, EVEN) == {"rows-by-group": 1}
    for args in (few, tiny, (X, W[:2], EVEN[:2]), (X, W, short), whole, (X[:0], W, EVEN)):
        assert fired(product, *args) == {}
    assert fired(product, X, W, EVEN, target="gpu") == fired(product, X, W, EVEN, level="exact") == {}
    reasons = lepton.optimize(product, PASS).explain(*few)
    assert "take as long" in str(reasons)
    assert not pays((2048, 512), (2, 512, 512), 2, jnp.float32)  # half of the work is little to gain

    def batches(x: Any, w: Any, sizes: Any) -> Any:
        return jax.vmap(product)(x[None], w[None], sizes[None])

    assert fired(batches, X, W, EVEN) == {}


def test_symbolic_numbers_of_rows_stay() -> None:
    (rows,) = jax.export.symbolic_shape("rows")
    f = jax.jit(lepton.optimize(product))
    shapes = jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32), W, EVEN
    close(jax.export.export(f)(*shapes).call(X, W, UNEVEN), product(X, W, UNEVEN))


def test_exported_programs_have_the_form_of_their_platform() -> None:
    f = jax.jit(lepton.optimize(product))
    one = jax.export.export(f)(X, W, EVEN)
    assert "while" in one.mlir_module()
    several = jax.export.export(f, platforms=("cpu", "tpu"))(X, W, EVEN)
    assert "while" not in jax.export.export(f, platforms=("tpu",))(X, W, EVEN).mlir_module()
    for each in (one, several):
        close(each.call(X, W, UNEVEN), product(X, W, UNEVEN))


def test_on_several_devices_it_is_jax_s() -> None:
    """Whether Lepton knows of the mesh or not, and where the devices have a part each."""
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("one device")
    mesh = Mesh(np.array(devices), ("x",))
    f = lepton.optimize(product)
    spread = jax.device_put(W, NamedSharding(mesh, PartitionSpec("x")))
    jitted = jax.jit(f)
    assert "while" not in jitted.lower(X, spread, UNEVEN).as_text()
    close(jitted(X, spread, UNEVEN), product(X, W, UNEVEN))
    known = lepton.optimize(product, mesh=mesh, shard={"w": PartitionSpec("x")})
    close(known(X, W, UNEVEN), product(X, W, UNEVEN))
    assert "rows-by-group" not in known.report.rules
    each = jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x"))
    sizes = jnp.concatenate([UNEVEN // 2] * 2)
    args = X, jnp.concatenate([W, W + 1]), sizes
    half = ROWS // 2
    expected = [product(X[:half], W, UNEVEN // 2), product(X[half:], W + 1, UNEVEN // 2)]
    close(jax.jit(each)(*args), jnp.concatenate(expected))


def test_it_runs_after_all_others() -> None:
    """Passes on weights look for JAX's operation, which is quantised first."""
    names = [step.name for step in Pipeline.parse("default,quantize{activations=dynamic}").passes()]
    assert names[-2:] == ["quantize", "ragged-products"]
    assert "ragged-products" not in str(Pipeline.parse("default,-ragged-products"))
    model = lepton.compile(
        lambda params, x, sizes: product(x, params, sizes),
        W,
        X,
        UNEVEN,
        passes="default,quantize{activations=dynamic}",
    )
    assert model.report().passes.rules["int8-rows-by-group"] == 1
    close(model(X, UNEVEN), product(X, W, UNEVEN), 3e-2)
