"""Schemes, and the scales that they give: their shapes, and the ranges that they cover."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import (
    FORMATS,
    Scheme,
    decode,
    expand,
    extremes,
    fake_quantize,
    padding,
    quantize,
    scale_of,
    scale_of_range,
    scale_shape,
)


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_shapes_of_scales() -> None:
    shape = (100, 6, 5)
    table = {
        Scheme(): (1, 1, 1),
        Scheme(shared=(0, 2)): (1, 6, 1),
        Scheme(shared=(-1,)): (100, 6, 1),
        Scheme(shared=(0,), group=32): (4, 6, 5),
        Scheme(shared=(0, 2), group=32, group_axis=0): (4, 6, 1),
        Scheme(group=1000, group_axis=0): (1, 6, 5),
        Scheme("mxfp8", group_axis=-1): (100, 6, 1),
        Scheme(group=(32, 4), group_axis=(0, 1)): (4, 2, 5),
    }
    x = normal(*shape)

    @jax.jit
    def scales(x: jax.Array) -> Any:
        found = [scale_of(x, scheme)[0] for scheme in table]
        return found, [expand(scale, scheme, shape) for scale, scheme in zip(found, table, strict=True)]

    for (scheme, expected), scale, wide in zip(table.items(), *scales(x), strict=True):
        assert scale_shape(shape, scheme) == scale.shape == expected, scheme
        wide = np.broadcast_to(wide, shape).astype(np.float32)
        largest = np.zeros(expected)
        sizes = scheme.block_sizes(shape)
        for at in np.ndindex(*expected):
            block = x[tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, sizes, strict=True))]
            largest[at] = np.abs(block).max()
            inside = wide[tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, sizes, strict=True))]
            assert (inside == np.float32(np.asarray(scale)[at])).all()
        if not scheme.fmt.block:
            np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
    assert padding(shape, Scheme(shared=(0,), group=32)) == (28, 0, 0)
    assert padding(shape, Scheme("mxfp8", group_axis=-1)) == (0, 0, 27)
    assert Scheme("int8") == Scheme(FORMATS["int8"]) and hash(Scheme("int8")) == hash(Scheme(FORMATS["int8"]))


def test_percentiles_are_those_of_numpy() -> None:
    x = normal(3, 70)
    hostile = x.copy()
    hostile[0, 0] = np.inf
    schemes = [
        Scheme("int8", symmetric=symmetric, group=32, group_axis=1, percentile=90.0)
        for symmetric in (True, False)
    ]

    @jax.jit
    def all_(x: jax.Array, hostile: jax.Array) -> Any:
        return [extremes(x, scheme) for scheme in schemes], extremes(hostile, Scheme("int8", percentile=90.0))

    found, poisoned = jax.tree.map(np.asarray, all_(x, hostile))
    for scheme, (lower, upper) in zip(schemes, found, strict=True):
        for row, group in np.ndindex(3, 3):
            part = x[row, 32 * group : 32 * group + 32]
            part = np.abs(part) if scheme.symmetric else part
            assert upper[row, group] == np.percentile(part, 90, method="nearest")
            low = np.percentile(part, 10, method="nearest")
            assert lower[row, group] == (-upper[row, group] if scheme.symmetric else low)
    assert np.isnan(poisoned[1]).all()


def test_search_finds_the_least_error() -> None:
    """No shrinking of the range beats the one found, and outliers make it shrink."""
    x = normal(256, 3)
    x[0] = 20.0

    @partial(jax.jit, static_argnums=1)
    def errors(x: jax.Array, symmetric: bool) -> Any:
        plain = Scheme("int4", symmetric=symmetric, shared=(0,))
        found = Scheme("int4", symmetric=symmetric, shared=(0,), search="mse")
        lower, upper = extremes(x, plain)

        def error(ratio: Any) -> jax.Array:
            scale, zero = scale_of_range(lower * ratio, upper * ratio, plain)
            return jnp.sum((fake_quantize(x, plain, scale, zero) - x) ** 2, 0)

        return jnp.sum((fake_quantize(x, found) - x) ** 2, 0), jax.lax.map(error, np.linspace(1, 0.2, 41))

    for symmetric in (True, False):
        best, tried = map(np.asarray, errors(x, symmetric))
        assert (best <= tried * 1.0001).all(), symmetric
        assert (best < tried[0]).all(), symmetric  # the whole range


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "int1"}, "no number format 'int1'"),
        ({"search": "best"}, "search is one of absmax, mse"),
        ({"scale_dtype": "float16"}, "scale_dtype is one of float32, bfloat16"),
        ({"percentile": 101.0}, "at most 100, not 101"),
        ({"format": "nf4", "symmetric": False}, "nf4 has no affine form"),
        ({"format": "mxint8", "symmetric": False, "group_axis": 0}, "mxint8 has no affine form"),
        ({"format": "mxfp4", "group": 16, "group_axis": 0}, "mxfp4 has blocks of 32 by definition"),
        ({"group": 16}, "along which axis"),
        ({"group": 0, "group_axis": 0}, "at least one element, not 0"),
        ({"group": (4, 4), "group_axis": 0}, "2 group sizes for 1 group axes"),
    ],
)
def test_wrong_schemes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheme(**settings)


def test_wrong_axes() -> None:
    with pytest.raises(ValueError, match="an array of rank 1 has no axis 1"):
        quantize(jnp.ones(3), Scheme("int8", shared=(1,)))
    with pytest.raises(ValueError, match="has no axis -2"):
        scale_shape((3,), Scheme("int8", group=2, group_axis=-2))
    codes = jnp.array([1], jnp.int8)
    assert decode(codes, jnp.ones(1), None, Scheme("int8")).tolist() == [1.0]
