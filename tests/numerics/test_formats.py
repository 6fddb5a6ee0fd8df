"""Number formats against ml_dtypes, the OCP specification and the QLoRA paper."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lepton_jax.numerics import FORMATS, Scheme, decode, encode, get_format, unpack
from lepton_jax.numerics.quantize import values_of

TYPES: dict[str, Any] = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
INTEGERS: dict[str, Any] = {"int4": ml_dtypes.int4, "int2": ml_dtypes.int2}


def all_values(name: str) -> np.ndarray[Any, Any]:
    """The value of each bit pattern, by numpy."""
    codes = np.arange(2 ** get_format(name).bits, dtype=np.uint8)
    values: np.ndarray[Any, Any] = codes.view(TYPES[name]).astype(np.float32)
    return values


def hostile(levels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Levels, ties, the neighbours of both, subnormals, overflow and random numbers; float32."""
    ties = (levels[1:] + levels[:-1]) / 2
    exact = np.concatenate([levels, ties])
    near = np.concatenate([np.nextafter(exact, np.float32(to)) for to in (-np.inf, np.inf)])
    near = near[np.abs(near) > 2.0**-126]
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(2000) * levels[-1] * 2.0 ** rng.integers(-12, 2, 2000)
    special = [0.0, -0.0, 2.0**-126, levels[-1] * 1.01, levels[0] * 1.01, 1e30, -1e30, np.inf, -np.inf]
    return np.concatenate([exact, near, spread, special]).astype(np.float32)


def test_float_formats_are_those_of_ml_dtypes() -> None:
    inputs = {name: hostile(FORMATS[name].levels) for name in TYPES}

    @jax.jit
    def both(inputs: Any) -> Any:
        codes = {
            name: encode(x, jnp.ones((1,)), None, Scheme(name, shared=(0,))) for name, x in inputs.items()
        }
        every = {name: jnp.arange(2 ** FORMATS[name].bits, dtype=jnp.uint8) for name in TYPES}
        bits = {
            name: jax.lax.bitcast_convert_type(all_, FORMATS[name].dtype) if FORMATS[name].bits == 8 else all_
            for name, all_ in every.items()
        }
        return codes, {name: values_of(code, FORMATS[name]) for name, code in bits.items()}

    codes, values = both(inputs)
    for name, kind in TYPES.items():
        form = FORMATS[name]
        saturated = np.clip(inputs[name], form.low, form.high)
        expected = saturated.astype(kind).view(np.uint8)
        np.testing.assert_array_equal(np.asarray(codes[name]).view(np.uint8), expected, err_msg=name)
        np.testing.assert_array_equal(values[name], all_values(name), err_msg=name)
        assert np.array_equal(np.signbit(values[name]), np.signbit(all_values(name))), name
        finite = all_values(name)[np.isfinite(all_values(name))]
        np.testing.assert_array_equal(form.levels, np.unique(finite), err_msg=name)


def test_integers_are_those_of_numpy_and_ml_dtypes() -> None:
    x = hostile(FORMATS["int8"].levels)
    forms = [FORMATS[f"int{bits}"] for bits in range(2, 9)]
    all_ = jax.jit(lambda x: [encode(x, jnp.float32(1), None, Scheme(form, narrow=False)) for form in forms])
    for form, codes in zip(forms, all_(x), strict=True):
        assert (form.low, form.high) == (-(2 ** (form.bits - 1)), 2 ** (form.bits - 1) - 1)
        expected = np.clip(np.round(x), form.low, form.high)
        np.testing.assert_array_equal(codes, expected.astype(np.int8), err_msg=form.name)
        if form.name in INTEGERS:
            info = ml_dtypes.iinfo(INTEGERS[form.name])
            assert (form.low, form.high) == (info.min, info.max)


def test_the_normal_float_is_that_of_the_paper() -> None:
    """QLoRA, appendix E: evenly spaced quantiles of the normal distribution, 8 above zero and 7 below."""
    levels = FORMATS["nf4"].levels.astype(np.float64)
    assert levels[0] == -1 and levels[-1] == 1 and levels[7] == 0 and len(levels) == 16
    # bitsandbytes makes the table so: offset is the mean of 1 - 1/30 and 1 - 1/32.
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    quantile = NormalDist().inv_cdf
    above = [quantile(at) for at in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(at) for at in np.linspace(offset, 0.5, 8)[:-1]]
    made = np.sort([*above, 0.0, *below])
    np.testing.assert_allclose(levels, made / made.max(), atol=1e-6)


def test_a_table_takes_the_nearest_value() -> None:
    form, scheme = FORMATS["nf4"], Scheme("nf4")
    x = np.clip(hostile(form.levels), -3, 3)
    codes = np.asarray(encode(x, jnp.ones((1,)), None, scheme))
    distance = np.abs(form.levels.astype(np.float64)[:, None] - np.clip(x, -1, 1).astype(np.float64))
    chosen = np.take_along_axis(distance, codes[None].astype(np.int64), 0)[0]
    assert (chosen <= distance.min(0) + 1e-7).all()
    back = decode(jnp.arange(16, dtype=jnp.uint8), jnp.ones((1,)), None, scheme)
    np.testing.assert_array_equal(back, form.levels)


def test_microscaling_formats_are_those_of_the_specification() -> None:
    """OCP MX 1.0, table 1: element types, their largest values and exponents, blocks of 32, e8m0 scales."""
    table = {
        "mxfp8_e5m2": (57344.0, 15),
        "mxfp8_e4m3": (448.0, 8),
        "mxfp6_e3m2": (28.0, 4),
        "mxfp6_e2m3": (7.5, 2),
        "mxfp4": (6.0, 2),
        "mxint8": (127.0, 6),  # in units of 2**-6: 1 + 63/64, with exponent 0
    }
    assert set(table) == {name for name in FORMATS if name.startswith("mx")}
    for name, (high, exponent) in table.items():
        form = FORMATS[name]
        assert (form.high, form.exponent, form.block) == (high, exponent, 32), name
        assert form.scale_dtype == ml_dtypes.float8_e8m0fnu, name
        assert len(str(form)) and form.signed_codes == (name == "mxint8")


def test_names() -> None:
    assert get_format("e4m3") is FORMATS["fp8_e4m3"] and get_format("e5m2") is FORMATS["fp8_e5m2"]
    assert get_format(FORMATS["nf4"]) is FORMATS["nf4"]
    with pytest.raises(ValueError, match=r"no number format 'int9'; there are int8, .*nf4"):
        get_format("int9")
    with pytest.raises(ValueError):
        FORMATS["int4"].levels[0] = 3
    assert unpack(jnp.zeros(2, jnp.uint8), FORMATS["int4"].bits, 4).dtype == FORMATS["int4"].dtype
