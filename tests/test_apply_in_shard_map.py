"""`prepare` and `apply` in a `shard_map`, whether it checks along which mesh axes values vary or not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from tests.passes._quantize import done, floats

MESH = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4], axis_types=(AxisType.Auto,) * 2)
SHAPES = {"table": (9, 8), "layers": (2, 8, 8), "odd": (8, 8), "even": (8, 8), "bias": (8,)}
PARAMS = {name: floats(*shape, scale=0.4) for name, shape in SHAPES.items()}
ROWS = jnp.asarray(np.arange(12).reshape(4, 3) % 9)


@jax.custom_vjp
def tripled(x: Any, y: Any) -> Any:
    """A product whose gradient is not its own, so that it shows which rule was taken."""
    return x * y


tripled.defvjp(lambda x, y: (x * y, (x, y)), lambda kept, g: (3 * g * kept[1], g * kept[0]))


def network(p: Any, rows: Any) -> Any:
    """Loops that start from zeros, branches, and functions with derivatives of their own."""
    h, _ = lax.scan(lambda h, w: (h + jax.nn.relu(h @ w), None), p["table"][rows], p["layers"])
    first = (0, jnp.zeros(h.shape))
    h = lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["odd"] + h)), first)[1] + h
    h = lax.cond(rows[0, 0] > 3, lambda h: h @ p["odd"], lambda h: jax.nn.silu(h @ p["even"]) + p["bias"], h)
    return tripled(h, jnp.broadcast_to(p["bias"], h.shape))


def smooth(p: Any, rows: Any) -> Any:
    """The same without the loop that has no gradient, and without the branch."""
    h, _ = lax.scan(lambda h, w: (h + jax.nn.relu(h @ w), None), p["table"][rows], p["layers"])
    return tripled(jax.nn.silu(h @ p["even"]), jnp.broadcast_to(p["bias"], h.shape))


WHOLE, SPREAD = P(), P("data")


def on_devices(fun: Any, *, check: bool = True, out: Any = SPREAD) -> Any:
    return jax.jit(jax.shard_map(fun, mesh=MESH, in_specs=(P(), P("data")), out_specs=out, check_vma=check))


def halves(fun: Any) -> Any:
    return np.concatenate([np.asarray(fun(half)) for half in (ROWS[:2], ROWS[2:])])


@pytest.mark.parametrize("check", [True, False])
def test_what_was_prepared_outside(check: bool) -> None:
    for options in ("activations=dynamic", "weights=int4,method=hqq,symmetric=false,group=4"):
        f = lepton.optimize(network, f"default,quantize{{{options}}}", params="p", strict=True)
        prepared = f.prepare(PARAMS, ROWS[:2])
        assert sum(map(bool, done(f.report.sites).values())) >= 4
        expected = halves(lambda half, f=f, prepared=prepared: f.apply(prepared, half))
        found = on_devices(f.apply, check=check)(prepared, ROWS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients() -> None:
    """Of floats that are kept, which are the same on all devices: they are added up over these."""
    f = lepton.optimize(smooth, "default,quantize", params="p", strict=True)
    prepared = f.prepare(PARAMS, ROWS[:2])
    is_float = [jnp.issubdtype(array.dtype, jnp.floating) for array in prepared.arrays]

    def loss(kept: Any, rows: Any) -> Any:
        left = iter(kept)
        arrays = [next(left) if one else a for one, a in zip(is_float, prepared.arrays, strict=True)]
        return (f.apply(prepared.with_arrays(arrays), rows) ** 2).sum()

    kept = [a for one, a in zip(is_float, prepared.arrays, strict=True) if one]
    expected = jax.grad(lambda kept: loss(kept, ROWS[:2]) + loss(kept, ROWS[2:]))(kept)
    inside = on_devices(
        lambda kept, rows: jax.grad(lambda kept: lax.psum(loss(kept, rows), "data"))(kept), out=WHOLE
    )
    summed = on_devices(lambda kept, rows: lax.psum(loss(kept, rows), "data"), out=WHOLE)
    for found in (inside(kept, ROWS), jax.jit(jax.grad(summed))(kept, ROWS)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("check", [True, False])
def test_prepared_inside_where_the_function_adds_up_over_devices(check: bool) -> None:
    """Each device has rows of a weight; the result is the same on all of them."""

    def rows_apart(p: Any, x: Any) -> Any:
        return lax.psum(x @ p["odd"], "model") + p["bias"]

    f = lepton.optimize(rows_apart, "default,quantize{activations=dynamic}", params="p", strict=True)
    specs = ({"odd": P("model"), "bias": P()}, P("data", "model"))
    given = {"odd": PARAMS["odd"], "bias": PARAMS["bias"]}
    x = floats(4, 8)

    def inside(p: Any, x: Any) -> Any:
        return f.apply(f.prepare(p, x), x)

    how: Any = {"mesh": MESH, "in_specs": specs, "out_specs": P("data"), "check_vma": check}
    found = jax.jit(jax.shard_map(inside, **how))(given, x)
    parts = [lepton.optimize(lambda p, x: x @ p, "default,quantize{activations=dynamic}", params="p")] * 2
    expected = sum(part(given["odd"][4 * i :][:4], x[:, 4 * i :][:, :4]) for i, part in enumerate(parts))
    np.testing.assert_allclose(found, expected + given["bias"], rtol=1e-4, atol=1e-5)
