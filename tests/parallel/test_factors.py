"""Factors: each operation done in parts, as its rule says, gives its results, or what joins to them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir import _jax, trace
from lepton_jax.ir._facts.registry import TRANSFERS
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.dimensions.walk import RULES as DIMENSION_RULES
from lepton_jax.ir.graph import Node
from lepton_jax.ir.regions import CALLS
from lepton_jax.parallel.factors import Factors, dims_axes, factor_axes, factor_rule, factors_of
from lepton_jax.parallel.factors.rule import RULES
from tests.corpus import programs
from tests.parallel._factor_arrays import X
from tests.parallel._factor_cases import FAMILIES
from tests.parallel._parts import Trial, at_once, plain, run_all, trials_of
from tests.parallel._pointwise_cases import SLOW

REGIONS = {
    "shard_map",
    "cond",
    "custom_jvp_call",
    "custom_vjp_call",
    "scan",
    "while",
    "remat2",
    "checkpoint",
} | CALLS


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_give_the_whole(family: str) -> None:
    every = FAMILIES[family]()
    # What works on elements has one rule in common: of these every fourth is done in parts.
    shared = {op for i, (op, *_) in enumerate(every) if family == "pointwise" and i % 4}
    slow = [case for case in every if case[0] in SLOW | shared]
    cases = [case for case in every if case[0] not in SLOW | shared]
    found = at_once([(fun, op, args) for op, fun, args, _, _ in cases])
    trials: list[Trial] = []
    expected: list[list[Any]] = []
    for (op, _, _, text, linear), (node, operands, whole) in zip(cases, found, strict=True):
        factors = factors_of(node)
        assert (op, str(factors)) == (op, text)
        assert [set(each) for each in factors.linear] == linear, op
        mine = trials_of(node, factors, operands, 1 if "pointwise" in family else 9)
        trials += mine
        expected += [whole] * len(mine)
    for trial, made, whole in zip(trials, run_all(trials), expected, strict=True):
        for joined, at_last in zip(made, whole, strict=True):
            np.testing.assert_allclose(plain(joined), plain(at_last), 2e-5, 2e-5, err_msg=trial.node.op)
    for op, fun, args, text, linear in slow:
        (node,) = (node for node in inline_calls(trace(fun, *args)) if node.op == op)
        factors = factors_of(node)
        assert (op, str(factors)) == (op, text)
        assert [set(each) for each in factors.linear] == linear, op


def test_what_stands_without_a_rule() -> None:
    known = {*DIMENSION_RULES, *TRANSFERS}
    assert sorted(known - {*RULES, *REGIONS}) == [], "primitives that other analyses know"
    left = {name for name in _jax.primitive_table() if name not in {*RULES, *REGIONS}}
    assert left <= {"get", "swap", "eval_jaxpr", "stage", "call"}, (
        "of what jax.lax has: references, and programs in programs"
    )


def test_programs_of_all_kinds_have_factors_that_multiply() -> None:
    ruleless: set[str] = set()
    for program in programs()[3::30]:
        graph = inline_calls(trace(program.fun, *program.make_args()))
        for node in graph.walk():
            if not node.regions and node.op not in RULES:
                ruleless.add(node.op)
            factors = factors_of(node)
            arrays = zip((*node.operands, *node.results), (*factors.operands, *factors.results), strict=True)
            for value, dims in arrays:
                sizes = [math.prod(factors.sizes[i] for i in parts) for parts in dims]
                assert sizes == list(value.shape), (program.name, node.op)
            assert not factors.whole & {*factors.reduced} or node.op == "ragged_dot_general"
            assert all(0 <= i < len(node.operands) for each in factors.linear for i in each)
    assert ruleless <= {"get", "swap", "new_ref", "eval_jaxpr", "call_hi_primitive", "jit", "scan"}, ruleless


def only(fun: Any, *args: Any) -> Node:
    (node,) = trace(fun, *args)
    return node


def test_what_is_not_known_stays_whole() -> None:
    def seen(x: Any) -> Any:
        jax.debug.print("{}", x)
        return x

    assert str(factors_of(only(lambda x: jax.lax.cond(True, jnp.sin, jnp.cos, x), X))).endswith("whole abcd")
    assert (
        str(factors_of(only(lambda x: jax.pure_callback(lambda a: a, x, x), X))) == "(ab) -> (cd) whole abcd"
    )
    assert str(factors_of(only(seen, X))) == "(ab) -> () whole ab"
    (rows,) = jax.export.symbolic_shape("n")
    symbolic = only(jnp.sin, jax.ShapeDtypeStruct((rows, 4), "float32"))
    assert str(factors_of(symbolic)) == "(ab) -> (cd) whole abcd"
    assert factors_of(only(lambda x: x.reshape(0, 3), np.zeros((3, 0), np.float32))).reduced == {}


def test_random_numbers_are_made_in_parts_where_each_has_its_own() -> None:
    def drawn(kind: str) -> str:
        graph = inline_calls(trace(lambda key: jax.random.bits(key, (4, 6)), jax.random.key(0, impl=kind)))
        return next(str(factors_of(node)) for node in graph if node.op == "random_bits")

    assert drawn("threefry2x32") == "(()) -> (ab)"
    assert drawn("rbg") == "(()) -> (ab) whole ab"


def test_two_rules_for_one_operation() -> None:
    with pytest.raises(ValueError, match="dot_general has a factor rule"):
        factor_rule("dot_general")(factors_of)


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        (((), ("x", "y")), {1: ("x", "y")}),
        ((("y",), ()), {0: ("y",)}),
        ((("y", "x"), ()), {0: ("y",), 2: ("x",)}),
        ((("z",), ()), {}),
        ((("x",), ("y",)), {0: ("x",), 1: ("y",)}),
    ],
)
def test_layouts_as_factors_and_back(
    layout: tuple[tuple[str, ...], ...], axes: dict[int, tuple[str, ...]]
) -> None:
    """A [16, 16] array whose first dimension is made of the factors 0, of size 4, and 2, of size 4."""
    sizes = {"x": 2, "y": 4, "z": 8}
    dims = ((0, 2), (1,))
    factors = Factors((4, 16, 4), (dims,), (dims,))
    assert factor_axes(dims, layout, factors, sizes) == axes
    back = dims_axes(dims, axes, factors, sizes)
    assert back == (layout if axes else ((), ()))


def test_a_minor_factor_waits_for_the_major_one() -> None:
    factors = Factors((4, 4), (((0, 1),),), (((0,), (1,)),))
    assert dims_axes(((0, 1),), {1: ("x",)}, factors, {"x": 2}) == ((),)
    assert dims_axes(((0, 1),), {0: ("x",), 1: ("y",)}, factors, {"x": 2, "y": 2}) == (("x",),)
    assert dims_axes(((0,), (1,)), {0: ("x",), 1: ("x",)}, factors, {"x": 2}) == (("x",), ())
    held = Factors((4,), (((0,),),), (((0,),),), whole=frozenset({0}))
    assert factor_axes(((0,),), (("x",),), held, {"x": 2}) == {}
    assert dims_axes(((0,),), {0: ("x",)}, held, {"x": 2}) == ((),)
