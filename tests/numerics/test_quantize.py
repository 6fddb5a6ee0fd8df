"""Scales, codes and what they stand for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lepton_jax as lepton
from lepton_jax.numerics import (
    FORMATS,
    Quantized,
    Scheme,
    dequantize,
    encode,
    fake_quantize,
    has_nonfinite,
    quantize,
    scale_of,
    scale_of_range,
    scale_shape,
)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def schemes() -> dict[str, Scheme]:
    """One of each kind, for weights that are contracted over axis 0."""
    found = {name: Scheme(form, shared=(0,)) for name, form in FORMATS.items()}
    found |= {f"{name} affine": Scheme(name, symmetric=False, shared=(0,)) for name in ("int8", "int4")}
    found["int8 full"] = Scheme("int8", shared=(0,), narrow=False)
    found["int4 groups"] = Scheme("int4", shared=(0,), group=48)  # does not divide 128
    found["int2 narrow"] = Scheme("int2", shared=(0,), narrow=True)
    found["int8 bf16 scales"] = Scheme("int8", shared=(0,), scale_dtype="bfloat16")
    found["int8 blocks"] = Scheme("int8", group=(32, 24), group_axis=(0, 1))
    found["int3 affine mse"] = Scheme("int3", symmetric=False, shared=(0,), group=48, search="mse")
    found["mxfp4 mse"] = Scheme("mxfp4", shared=(0,), search="mse")
    return found


OP_BY_OP = {"xla_disable_hlo_passes": "algsimp,fusion"}
BY_PARTS = ("int4 affine", "mxfp4")
TWICE = ("int8", "int2 narrow", "fp8_e4m3", "fp6_e2m3", "nf4", "mxfp4", "mxint8")
"""Symmetric schemes whose extremes have a code."""


@jax.jit
def all_formats(x: jax.Array) -> dict[str, tuple[Quantized, jax.Array, jax.Array, jax.Array | None]]:
    """Codes, what they stand for, the codes of that under the same scales, and under scales of its own."""
    found = {}
    for name, scheme in schemes().items():
        q = quantize(x, scheme)
        back = dequantize(q, scheme)
        twice = quantize(back, scheme).codes if name in TWICE else None
        found[name] = q, back, encode(back, q.scale, q.zero, scheme), twice
    return found


def by_parts(x: jax.Array) -> Any:
    """Scales, then codes, then values, each by a call of its own."""
    found = {}
    for name in BY_PARTS:
        scheme = schemes()[name]
        scale, zero = scale_of(x, scheme)
        found[name] = scale, encode(x, scale, zero, scheme), fake_quantize(x, scheme, scale, zero)
    return found


def decibels(x: Any, approximation: Any) -> float:
    x, off = (np.asarray(array, np.float64) for array in (x, np.asarray(approximation) - x))
    return float(10 * np.log10((x * x).sum() / (off * off).sum()))


def same_codes(left: Any, right: Any, name: str) -> None:
    left, right = (np.asarray(codes).view(np.uint8) for codes in (left, right))
    np.testing.assert_array_equal(left, right, err_msg=name)


# Decibels on normal numbers, 128 to a scale unless there are groups: floors a little below what is measured.
FLOORS = {
    "int8": 43.8,
    "int7": 37.7,
    "int6": 31.5,
    "int5": 25.4,
    "int4": 19.1,
    "int3": 12.4,
    "int2": 5.1,
    "fp8_e4m3": 31.5,
    "fp8_e5m2": 25.6,
    "fp6_e2m3": 31.3,
    "fp6_e3m2": 25.6,
    "fp4_e2m1": 19.1,
    "nf4": 20.2,
    "mxfp8_e4m3": 30.2,
    "mxfp8_e5m2": 25.2,
    "mxfp6_e2m3": 30.6,
    "mxfp6_e3m2": 25.2,
    "mxfp4": 18.6,
    "mxint8": 41.5,
}


def test_every_format() -> None:
    x = normal(128, 50)
    found = all_formats(x)
    measured = {name: decibels(x, back) for name, (_, back, _, _) in found.items()}
    for name, scheme in schemes().items():
        (q, _, again, twice), form = found[name], scheme.fmt
        assert q.codes.shape == x.shape and q.codes.dtype == form.dtype, name
        assert q.scale.shape == scale_shape(x.shape, scheme), name
        assert (q.zero is None) == scheme.symmetric, name
        same_codes(q.codes, again, name)
        if name in TWICE:
            same_codes(q.codes, twice, name)
    apart = jax.jit(by_parts, compiler_options=OP_BY_OP)(x)  # every operation compiled alone
    for name, parts in apart.items():
        q, back, _, _ = found[name]
        for one, two in zip((q.scale, q.codes, back), parts, strict=True):
            np.testing.assert_array_equal(one, two, err_msg=name)
    assert set(FLOORS) == set(FORMATS)
    assert {name: measured[name] for name, floor in FLOORS.items() if not measured[name] >= floor} == {}
    assert measured["int4 groups"] > measured["int4"] - 0.1
    assert measured["int8 full"] >= measured["int8"] - 0.1
    assert measured["int3 affine mse"] > measured["int3"] + 2
    assert measured["mxfp4 mse"] >= measured["mxfp4"]


def test_integers_by_hand() -> None:
    """Against the formulas in numpy, ties included."""
    x = np.array([[-1.0, 0.5, 2.54], [1.27, -0.005, 0.015]], np.float32)
    affine_int4 = Scheme("int4", symmetric=False)

    @jax.jit
    def all_(x: jax.Array) -> Any:
        found = quantize(x, Scheme("int8", shared=(1,))), quantize(x, Scheme("int4", narrow=False))
        affine = [quantize(y, Scheme("int8", symmetric=False)) for y in (x, jnp.abs(x) + 1)]
        half = encode(jnp.array([0.0, 1.0]), jnp.ones((1,)), jnp.array([0.5]), affine_int4)
        return *found, *affine, half

    q, full, affine, positive, half = all_(x)
    np.testing.assert_allclose(q.scale, [[0.02], [0.01]], rtol=1e-6)
    np.testing.assert_array_equal(q.codes, [[-50, 25, 127], [127, 0, 2]])  # halves go to the even code
    np.testing.assert_allclose(full.scale, [[2.54 / 7.5]], rtol=1e-6)
    np.testing.assert_array_equal(full.codes, [[-3, 1, 7], [4, 0, 0]])
    assert affine.zero is not None and affine.zero.dtype == jnp.int8
    scale = 3.54 / 255
    np.testing.assert_allclose(affine.scale, [[scale]], rtol=1e-6)
    zero = -128 - round(-1.0 / scale)
    np.testing.assert_array_equal(affine.zero, [[zero]])
    np.testing.assert_array_equal(affine.codes, np.clip(np.round(x / scale) + zero, -128, 127))
    assert positive.zero is not None and int(positive.zero[0, 0]) == -128  # the range takes zero in
    np.testing.assert_array_equal(half, [0, 2])  # a fractional zero is added before rounding


def test_microscaling_by_hand() -> None:
    x = np.zeros(64, np.float32)
    x[:4] = [7.0, -1.3, 0.26, 1e-3]
    scheme = Scheme("mxfp4", group_axis=0)
    reach = np.array([1.0, 3.9, 4.0, 1e30, 1e-37, 0.0], np.float32)

    @jax.jit
    def all_(x: jax.Array, reach: jax.Array) -> Any:
        q = quantize(x, scheme)
        return q, dequantize(q, scheme), scale_of_range(0.0, reach, scheme)[0]

    q, back, scale = all_(x, reach)
    np.testing.assert_array_equal(np.asarray(q.scale, np.float32), [1.0, 1.0])
    np.testing.assert_array_equal(back[:4], [6.0, -1.5, 0.5, 0.0])
    assert scale.dtype == jnp.float8_e8m0fnu
    expected = 2.0 ** np.array([-2, -1, 0, 99 - 2, -125, 0])
    np.testing.assert_array_equal(np.log2(np.asarray(scale).astype(np.float64)), np.log2(expected))


def test_hostile_arrays() -> None:
    """Zeros, nothing at all, what is not finite, the largest and the smallest numbers."""
    names = ["int8", "int4", "fp8_e4m3", "nf4", "mxfp4", "mxfp8_e4m3"]
    found = [Scheme(name, shared=(1,)) for name in names] + [
        Scheme("int8", symmetric=False, shared=(1,)),
        Scheme("int4", shared=(1,), group=3, search="mse"),
        Scheme("int8", shared=(1,), percentile=99.0),
    ]
    rows = normal(6, 8)
    rows[0] = 0.0
    rows[1, 2], rows[2, 3] = np.nan, np.inf
    rows[3] *= 2e38 / np.abs(rows[3]).max()
    rows[4] *= 1e-41
    many = normal(256, 64)  # long enough for XLA's other way to find a maximum
    many[3, 5] = np.nan
    empty = jnp.zeros((0, 4)), jnp.zeros((3, 0))
    beyond = np.array([np.inf, -np.inf, np.nan], np.float32)
    ends = {
        "int8": (127, -127, 0),
        "nf4": (1, -1, 0),
        "fp4_e2m1": (6, -6, 0),
        "fp8_e4m3": (448, -448, np.nan),
    }

    @jax.jit
    def all_(x: jax.Array, many: jax.Array, beyond: jax.Array) -> Any:
        q = [quantize(x, scheme) for scheme in found]
        none = [fake_quantize(nothing, scheme) for scheme in found for nothing in empty]
        fast = quantize(x[1:3].T, Scheme("int8", shared=(0,), keep_nan=False))
        seen = [scale_of(many, Scheme("int8", symmetric=s, shared=(0,)))[0] for s in (True, False)]
        saturated = [fake_quantize(beyond, Scheme(name), jnp.ones((1,))) for name in ends]
        decoded = [dequantize(one, scheme) for one, scheme in zip(q, found, strict=True)]
        return q, decoded, none, fast, seen, saturated, (has_nonfinite(x), has_nonfinite(x[5]))

    q, decoded, none, fast, seen, saturated, nonfinite = jax.tree.map(np.asarray, all_(rows, many, beyond))
    assert [x.shape for x in none] == [(0, 4), (3, 0)] * len(found)
    for one, back, scheme in zip(q, decoded, found, strict=True):
        name = str(scheme)
        assert (back[0] == 0).all() and np.isfinite(np.float32(one.scale[0])).all(), name
        assert np.isnan(back[1, 2]) and np.isnan(back[2, 3]), name
        assert scheme.group_sizes or (np.isnan(back[1]).all() and np.isnan(back[2]).all()), name
        floor = 5 if scheme.fmt.name == "nf4" else 10  # scales end at 2¹²⁶, and nf4 at one of them
        assert decibels(rows[3], back[3]) > floor, name
        assert np.abs(back[4]).max() < 1e-36, name
        assert np.isfinite(back[5]).all(), name
    assert np.isnan(fast.scale[0, 1]) and fast.codes[2, 0] == 0  # infinity is still seen
    for scales in map(np.isnan, seen):
        assert scales[0, 5] and scales.sum() == 1
    assert nonfinite == (True, False)
    for (name, expected), end in zip(ends.items(), saturated, strict=True):
        np.testing.assert_array_equal(end, expected, err_msg=name)


def test_dtypes() -> None:
    """Computed in float32 whatever comes in; out comes what came in."""
    found = (Scheme("int8", shared=(0,)), Scheme("fp8_e5m2"), Scheme("mxfp6", shared=(0,)))

    dtypes = (jnp.bfloat16, jnp.float16)

    @jax.jit
    def all_(narrow: list[jax.Array]) -> Any:
        wide = [x.astype(jnp.float32) for x in narrow]
        return [
            (quantize(x, s), q := quantize(y, s), fake_quantize(x, s), dequantize(q, s, x.dtype))
            for x, y in zip(narrow, wide, strict=True)
            for s in found
        ]

    for i, (q, wide, out, back) in enumerate(all_([normal(16, 4, dtype=dtype) for dtype in dtypes])):
        dtype, name = dtypes[i // len(found)], str(found[i % len(found)])
        same_codes(q.codes, wide.codes, name)
        np.testing.assert_array_equal(q.scale, wide.scale, err_msg=name)
        np.testing.assert_array_equal(out, back, err_msg=name)
        assert out.dtype == dtype, name
    scale, _ = jax.eval_shape(lambda x: scale_of(x, Scheme("int8", scale_dtype="bfloat16")), normal(8))
    assert scale.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = jax.eval_shape(lambda x: fake_quantize(x, Scheme("int4")), np.ones((2, 2)))
        codes = jax.eval_shape(lambda x: quantize(x, Scheme("int4")), np.ones((2, 2)))
    assert wide.dtype == np.float64 and codes.scale.dtype == np.float32


def test_under_transformations() -> None:
    """vmap and scan over layers give each layer its own scales; a gradient reaches scales alone."""
    x = normal(3, 40, 6)
    scheme = Scheme("int4", symmetric=False, shared=(0,), group=16)

    @jax.jit
    def both(x: jax.Array) -> Any:
        mapped = jax.vmap(lambda one: quantize(one, scheme))(x)
        scanned = jax.lax.scan(lambda c, one: (c, quantize(one, scheme)), 0, x)[1]
        back = jax.vmap(lambda q: dequantize(q, scheme))(mapped)
        alone = [quantize(layer, scheme) for layer in x]
        slope = jax.grad(lambda x: fake_quantize(x, Scheme("int8")).sum())(jnp.array([0.3, -0.7, 1.0]))
        return mapped, scanned, back, alone, [dequantize(q, scheme) for q in alone], slope

    mapped, scanned, back, alone, values, slope = jax.tree.map(np.asarray, both(x))
    for layer in range(3):
        for one, two, three in zip(mapped, scanned, alone[layer], strict=True):
            np.testing.assert_array_equal(one[layer], three)
            np.testing.assert_array_equal(two[layer], three)
        np.testing.assert_array_equal(back[layer], values[layer])
    np.testing.assert_allclose(slope, [0, 0, (38 - 89 + 127) / 127], rtol=1e-5)
    static = jax.jit(quantize, static_argnums=1).trace(x, Scheme("int8"))  # a scheme is hashable
    assert static.out_info.codes.shape == x.shape


def test_rewriting_keeps_every_bit() -> None:
    """What Lepton's own passes make of this arithmetic has the same codes and scales."""
    found = [schemes()[name] for name in ("int8", "int4 affine", "nf4", "mxfp4")]
    found.append(Scheme("int4", shared=(0,), percentile=99.0))

    def all_(x: jax.Array) -> Any:
        return [(quantize(x, scheme), fake_quantize(x, scheme)) for scheme in found]

    rewritten = jax.jit(lambda x: (lepton.optimize(all_)(x), all_(x)))
    jax.tree.map(np.testing.assert_array_equal, *rewritten(normal(100, 6)))


def test_symbolic_sizes() -> None:
    """Per row, and in blocks of a row, an array of any number of rows can be exported."""
    (rows,) = jax.export.symbolic_shape("b")
    found = [Scheme("int8", shared=(1,)), Scheme("mxfp8", shared=(1,)), Scheme("int8", symmetric=False)]
    spec = jax.ShapeDtypeStruct((rows, 40), jnp.float32)
    plain = jax.jit(lambda x: [fake_quantize(x, scheme) for scheme in found])
    exported = jax.export.export(plain)(spec)
    both = jax.jit(lambda x: (exported.call(x), plain(x)))
    for one, two in zip(*both(normal(3, 40)), strict=True):
        np.testing.assert_array_equal(one, two)
