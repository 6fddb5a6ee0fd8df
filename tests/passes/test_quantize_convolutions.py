"""Convolutions of every kind in codes, activations static and dynamic; and their kernels without gaps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.numerics import packed_axis
from tests.passes._quantize import Case, check_codes, done, floats, joined, kept_of, reasons, sqnr

Layout = tuple[str, str, str]
NHWC: Layout = ("NHWC", "HWIO", "NHWC")


def convolution(layout: Layout, **how: Any) -> Any:
    def run(w: Any, x: Any) -> Any:
        strides = (1,) * (x.ndim - 2)
        return lax.conv_general_dilated(
            x, w, **({"window_strides": strides, "padding": "SAME"} | how), dimension_numbers=layout
        )

    return run


def upwards(w: Any, x: Any) -> Any:
    return lax.conv_transpose(x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def scanned(ws: Any, x: Any) -> Any:
    return lax.scan(lambda h, w: (jnp.tanh(convolution(NHWC)(w, h)), None), x, ws)[0]


def mapped(ws: Any, x: Any) -> Any:
    return jax.vmap(convolution(NHWC), (0, 0))(ws, jnp.stack([x, x * 0.5]))


HOLES = {"padding": ((1, 2), (0, 3)), "lhs_dilation": (2, 3), "feature_group_count": 2}

CASES = {
    "dilated": Case(convolution(NHWC, rhs_dilation=(2, 1)), floats(3, 3, 6, 8), floats(2, 7, 7, 6)),
    "volumes": Case(
        convolution(("NCDHW", "OIDHW", "NCDHW"), window_strides=(1, 2, 1)),
        floats(8, 4, 3, 2, 3),
        floats(1, 4, 4, 5, 4),
    ),
    "batch last": Case(convolution(("CHWN", "IHWO", "HWCN")), floats(6, 3, 3, 8), floats(6, 5, 5, 2)),
    "rows upwards": Case(upwards, floats(4, 6, 8), floats(2, 9, 6)),
    "holes and groups": Case(convolution(NHWC, **HOLES), floats(3, 3, 3, 8), floats(2, 5, 5, 6)),
    "scanned": Case(scanned, floats(3, 3, 3, 6, 6, scale=0.1), floats(2, 5, 5, 6)),
    "mapped": Case(mapped, floats(2, 3, 3, 6, 8), floats(1, 5, 5, 6)),
}
DEPTHWISE = Case(convolution(NHWC, feature_group_count=8), floats(3, 3, 1, 8), floats(2, 7, 7, 8))


def test_every_kind_with_static_and_dynamic_activations() -> None:
    """Before the other passes, so that depthwise ones are there too; also under vmap and export."""
    cases = CASES | {"depthwise": DEPTHWISE}
    fun, params, x = joined(cases)
    exact = jax.jit(fun)(params, x)
    for activations in ("static", "dynamic"):
        passes = f"cleanup,movement,quantize{{activations={activations}}}"
        calibration = [(x,)] if activations == "static" else None
        model = lepton.compile(fun, params, x, passes=passes, calibration=calibration, strict=True)
        assert not reasons(model.fun.report.sites)
        found = model(x)
        for name, case in cases.items():
            check_codes(model.params, case, name)
            assert sqnr(exact[name], found[name]) > (33 if name == "scanned" else 36), (name, activations)
    exported = jax.export.export(model.jit)(model.params, x)
    assert "xi8>" in exported.mlir_module()


def test_kernels_of_few_bits_are_packed_where_nothing_is_lost() -> None:
    layouts: dict[str, tuple[Layout, tuple[int, ...]]] = {
        "outputs first": (("NHWC", "OIHW", "NHWC"), (16, 24, 3, 3)),
        "outputs last": (NHWC, (3, 3, 24, 16)),
        "an odd number of outputs": (NHWC, (3, 3, 24, 5)),
    }
    x = floats(1, 6, 6, 24)
    for bits, floor in ((3, 10.0), (4, 16.0)):
        fun, params, inputs = joined(
            {name: Case(convolution(layout), floats(*shape), x) for name, (layout, shape) in layouts.items()}
        )
        model = lepton.compile(fun, params, inputs, passes=f"cleanup,quantize{{weights=int{bits}}}")
        exact, found = jax.jit(fun)(params, inputs), model(inputs)
        for name, (_, shape) in layouts.items():
            (packed,) = (array for array in kept_of(model.params, name) if array.dtype == jnp.uint8)
            assert packed.nbytes == np.prod(shape) * bits // 8, name
            assert sqnr(exact[name], found[name]) > floor, name
    assert packed_axis((16, 24, 3, 3), 3) == 1 and packed_axis((3, 3, 24, 5), 4) == 2
    assert packed_axis((7, 0), 4) == 1 and packed_axis((50, 49), 4) == 1 and packed_axis((5, 3), 8) == 1


@pytest.mark.parametrize("groups", [4, 8])
def test_groups_in_other_layouts_one_after_another(groups: int) -> None:
    """XLA's compiler for CPUs loses a grouped convolution of integers that reads what a call gives."""
    layout = ("NCHW", "OIHW", "NCHW")
    inner = convolution(layout, feature_group_count=groups, window_strides=(2, 2), padding=((0, 0), (0, 0)))
    params = {"a": floats(32, 32 // groups, 3, 3), "b": floats(16, 32, 3, 3)}
    x = floats(2, 32, 16, 16)

    def run(p: Any, x: Any) -> Any:
        return convolution(layout)(p["b"], jax.nn.relu(inner(p["a"], x)))

    model = lepton.compile(
        run, params, x, passes="cleanup,quantize{activations=dynamic}", target="cpu", strict=True
    )
    assert sqnr(run(params, x), model(x)) > 30
    slow = [site.name for site in model.report().passes.sites if "no faster" in site.reason]
    assert slow == ["p/a"]


def test_what_is_said_of_groups() -> None:
    """Few groups of many channels are convolved one by one, depthwise ones shifted: both in integers."""
    for groups, channels, said in (
        (2, 64, ""),
        (16, 16, ""),
        (4, 16, "such groups are convolved in float32"),
    ):
        fun = convolution(NHWC, feature_group_count=groups)
        run = lepton.optimize(fun, "cleanup,quantize{activations=dynamic}", params="w", target="cpu")
        run.trace(floats(3, 3, channels // groups, 32), floats(1, 9, 9, channels))
        (site,) = run.report.sites
        assert site.done and site.reason.startswith(said) and bool(site.reason) == bool(said), groups


@pytest.mark.parametrize(
    ("numbers", "shape", "kernel", "groups"),
    [
        (("NCHW", "OIHW", "NCHW"), (4, 6, 7, 7), (8, 6, 3, 3), 1),
        (("NHWC", "HWIO", "NHWC"), (4, 7, 7, 6), (3, 3, 3, 8), 2),
        (("NWC", "OWI", "NCW"), (4, 12, 6), (6, 9, 1), 6),
    ],
)
def test_one_kernel_for_all_examples(numbers: Any, shape: Any, kernel: Any, groups: int) -> None:
    """Branches that examples choose for themselves: their kernels are kept once, not for each example."""
    params = {"one": floats(*kernel, scale=0.3), "other": floats(*kernel, scale=0.3)}

    def convolve(x: Any, w: Any) -> Any:
        ones = (1,) * (x.ndim - 1)
        return lax.conv_general_dilated(
            x[None], w, ones, "SAME", dimension_numbers=numbers, feature_group_count=groups
        )[0]

    def program(p: Any, x: Any) -> Any:
        def one(x: Any) -> Any:
            return lax.cond(
                x.sum() > 0, lambda x: convolve(x, p["one"]), lambda x: convolve(2 * x, p["other"]), x
            )

        return jax.vmap(one)(x)

    x = floats(*shape)
    expected = jax.jit(program)(params, x)
    for options in ("", "activations=dynamic", "activations=static", "weights=int4,method=gptq"):
        batches = [x, -x] if "static" in options or "gptq" in options else None
        passes = f"cleanup,movement,quantize{{{options}}},default"
        model = lepton.compile(program, params, x, passes=passes, calibration=batches)
        assert model.nbytes <= 0.39 * sum(weight.nbytes for weight in params.values()), options
        assert sqnr(expected, model(x)) > (12 if "int4" in options else 32), options
        assert all(done(model.report().passes.sites).values())


def test_a_gpu_convolves_no_float8() -> None:
    """XLA for GPUs would widen the codes to float32: in bfloat16 they are decoded before."""
    w, x = floats(3, 3, 8, 8), floats(2, 5, 5, 8)
    for target, is_left in (("gpu", True), ("tpu", False)):
        model = lepton.compile(
            convolution(NHWC),
            w,
            x,
            passes="default,quantize{weights=fp8_e4m3,activations=dynamic}",
            target=target,
        )
        said = "activations stay in floats: a gpu convolves fp8_e4m3 as float32"
        assert (said in str(model.report())) == is_left
        assert sqnr(convolution(NHWC)(w, x), model(x)) > 25
