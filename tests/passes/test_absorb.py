"""Scales, shifts and low-rank updates of parameters alone, taken into weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.ir import Graph
from lepton_jax.rewrite import Report
from tests.passes._absorb import (
    AFTER,
    BEFORE,
    SUM,
    apply_of,
    arithmetic,
    rewritten,
    to_callable_of,
)
from tests.passes._absorb_programs import LEFT, TAKEN


@functools.cache
def program(name: str) -> tuple[Graph, Report]:
    case = {**TAKEN, **LEFT}[name]
    return rewritten(case.fun, case.params, case.x)


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_what_is_taken_in_and_what_is_left(name: str) -> None:
    case = {**TAKEN, **LEFT}[name]
    graph, report = program(name)
    fired = {rule: count for rule, count in report.rules.items() if rule in (AFTER, BEFORE, SUM)}
    assert fired == case.rules
    assert arithmetic(apply_of(graph, case.params)) == case.ops
    assert not case.miss or any(case.miss in miss.reason for miss in report.misses)
    assert set(rewritten(to_callable_of(graph), case.params, case.x)[1].rules) <= {"early-value"}


def test_numbers_and_gradients_stay() -> None:
    graphs = {name: to_callable_of(program(name)[0]) for name in TAKEN}

    def total(fun: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(fun(*args)))

    @jax.jit
    def everything(given: Any) -> Any:
        found = {}
        for name, case in TAKEN.items():
            wanted = (0, 1) if name in ("depthwise", "layer norm", "adapter") else 1
            found[name] = [
                (jax.tree.leaves(fun(*given[name])), jax.grad(total(fun), wanted)(*given[name]))
                for fun in (case.fun, graphs[name])
            ]
        return found

    given = {name: (case.params, case.x) for name, case in TAKEN.items()}
    for name, (before, after) in everything(given).items():
        tolerance = 5e-2 if name == "mixed precision" else 2e-4
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * np.abs(a).max(), err_msg=name)


def test_batch_norm_leaves_a_convolution_and_a_bias() -> None:
    case = TAKEN["convolution"]
    assert apply_of(program("convolution")[0], case.params).to_text() == GOLDEN
    fun = to_callable_of(program("convolution")[0])
    assert jax.export.export(jax.jit(fun))(case.params, case.x).mlir_module_serialized
    many = jax.eval_shape(jax.vmap(fun, (None, 0)), case.params, case.x[None])
    assert [each.shape for each in many] == [(1, 2, 5, 5, 6)]
    with jax.numpy_dtype_promotion("strict"):
        for name in ("mixed precision", "adapter", "layer norm"):
            mixed = TAKEN[name]
            assert rewritten(mixed.fun, mixed.params, mixed.x)[1].rules == program(name)[1].rules


GOLDEN = """\
graph f(%0: f32[1,1,1,6], %1: f32[3,3,4,6], %2: f32[2,5,5,4]) {
  %3: f32[2,5,5,6] = conv_general_dilated[batch_group_count=1 dimension_numbers=\
ConvDimensionNumbers(lhs_spec=(0,3,1,2),rhs_spec=(3,2,0,1),out_spec=(0,3,1,2)) feature_group_count=1 \
lhs_dilation=(1,1) padding=((1,1),(1,1)) rhs_dilation=(1,1) window_strides=(1,1)] %2 %1
  %4: f32[2,5,5,6] = add %3 %0
  return %4
}"""


def test_nothing_happens_unless_parameters_are_known() -> None:
    case = TAKEN["convolution"]
    graph, report = rewritten(lambda _, x: case.fun(case.params, x), (), case.x)
    assert not report.rules.get(AFTER) and arithmetic(graph)["mul"] == 2
    _, report = rewritten(lambda _, *args: case.fun(*args), (), case.params, case.x)
    assert not report.rules.get(AFTER)


def test_nan_and_infinities_of_the_input_stay() -> None:
    case = TAKEN["hand-written batch norm"]
    x = np.array([[np.nan, 1, 1, 1, 1, 1], [np.inf, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, -0.0]], np.float32)
    after = to_callable_of(program("hand-written batch norm")[0])(case.params, x)[0]
    np.testing.assert_allclose(after, case.fun(case.params, x), rtol=1e-4)
    assert np.isfinite(np.asarray(after)).all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("passes", ["default,absorb", "cleanup,absorb,default"])
def test_other_passes_neither_hide_nor_undo_it(passes: str) -> None:
    for name in ("convolution", "hand-written batch norm", "layer norm", "adapter", "layers of a scan"):
        case = TAKEN[name]
        graph, report = rewritten(case.fun, case.params, case.x, passes=f"{passes},early,cse,dce")
        found = arithmetic(apply_of(graph, case.params))
        assert sum(found.values()) <= sum(case.ops.values()), name
        assert sum(report.rules.get(rule, 0) for rule in (AFTER, BEFORE, SUM)) == sum(case.rules.values()), (
            name
        )


def test_quantisation_takes_the_folded_weights() -> None:
    case = TAKEN["convolution"]
    model = lepton.compile(case.fun, case.params, case.x, passes="default,absorb,quantize")
    rules = model.report().passes.rules
    assert rules[AFTER] == 1 and rules["quantized-weight"] == 1
    assert model.nbytes < 0.5 * model.report().bytes_before
    expected = case.fun(case.params, case.x)
    np.testing.assert_allclose(model(case.x), expected, atol=0.03 * float(jnp.abs(expected).max()))
