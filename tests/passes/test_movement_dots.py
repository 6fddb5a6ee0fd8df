"""Movement: matrix products that take transposes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.passes._check import fired, same
from tests.passes._movement import Case, Lookalike, array, body, check_case, check_lookalike, check_meaning

AB = ((3, 4), (4, 5))
BATCHED = ((2, 3, 4), (2, 4, 5))


def product(
    contract: tuple[tuple[int, ...], tuple[int, ...]],
    batch: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    **params: Any,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda a, b: lax.dot_general(a, b, (contract, batch), **params)


PLAIN = product(((1,), (0,)))
IN_BATCHES = product(((2,), (1,)), ((0,), (0,)))

CASES = [
    Case(
        "dot-of-transpose",
        lambda a, b: PLAIN(a.T, b),
        ((4, 3), (4, 5)),
        ("%2: f32[3,5] = dot_general[dimension_numbers=(((0,),(0,)),((),()))] %0 %1", "return %2"),
    ),
    Case(
        "dot-of-transpose",
        lambda a, b: PLAIN(a, b.T),
        ((3, 4), (5, 4)),
        ("%2: f32[3,5] = dot_general[dimension_numbers=(((1,),(1,)),((),()))] %0 %1", "return %2"),
    ),
    Case(
        "dot-of-transpose",
        lambda a, b: PLAIN(a.T, b.T),
        ((4, 3), (5, 4)),
        ("%2: f32[3,5] = dot_general[dimension_numbers=(((0,),(1,)),((),()))] %0 %1", "return %2"),
    ),
    Case(
        "dot-of-transpose",
        lambda a, b: IN_BATCHES(a.transpose(0, 2, 1), b),
        ((2, 4, 3), (2, 4, 5)),
        ("%2: f32[2,3,5] = dot_general[dimension_numbers=(((1,),(1,)),((0,),(0,)))] %0 %1", "return %2"),
    ),
    Case(
        "dot-of-transpose",
        lambda a, b: IN_BATCHES(a.transpose(1, 0, 2), b),
        ((3, 2, 4), (2, 4, 5)),
        ("%2: f32[2,3,5] = dot_general[dimension_numbers=(((2,),(1,)),((1,),(0,)))] %0 %1", "return %2"),
    ),
    Case(
        "dot-of-transpose",
        lambda a, b: (PLAIN(a.T, b), PLAIN(a.T, 2 * b)),
        ((4, 3), (4, 5)),
        (
            "%2: f32[3,5] = dot_general[dimension_numbers=(((0,),(0,)),((),()))] %0 %1",
            "%3: f32[4,5] = mul 2.0 %1",
            "%4: f32[3,5] = dot_general[dimension_numbers=(((0,),(0,)),((),()))] %0 %3",
            "return %2, %4",
        ),
    ),
    Case(
        "transpose-of-dot",
        lambda a, b: PLAIN(a, b).T,
        AB,
        ("%2: f32[5,3] = dot_general[dimension_numbers=(((0,),(1,)),((),()))] %1 %0", "return %2"),
    ),
    Case(
        "transpose-of-dot",
        lambda a, b: IN_BATCHES(a, b).transpose(0, 2, 1),
        BATCHED,
        ("%2: f32[2,5,3] = dot_general[dimension_numbers=(((1,),(2,)),((0,),(0,)))] %1 %0", "return %2"),
    ),
    Case(
        "transpose-of-dot",
        lambda a, b: product(((3,), (2,)), ((0, 1), (0, 1)))(a, b).transpose(1, 0, 2, 3),
        ((2, 3, 4, 5), (2, 3, 5, 6)),
        ("%2: f32[3,2,4,6] = dot_general[dimension_numbers=(((3,),(2,)),((1,0),(1,0)))] %0 %1", "return %2"),
    ),
    Case(
        "transpose-of-dot",
        lambda a, b: product(((3,), (2,)), ((0, 1), (0, 1)))(a, b).transpose(1, 0, 3, 2),
        ((2, 3, 4, 5), (2, 3, 5, 6)),
        ("%2: f32[3,2,6,4] = dot_general[dimension_numbers=(((2,),(3,)),((1,0),(1,0)))] %1 %0", "return %2"),
    ),
    Case(
        "transpose-of-dot",
        lambda a, b: product(((2,), (0,)))(a, b).transpose(2, 0, 1),
        ((2, 3, 4), (4, 5)),
        ("%2: f32[5,2,3] = dot_general[dimension_numbers=(((0,),(2,)),((),()))] %1 %0", "return %2"),
    ),
    Case(
        "transpose-of-dot",
        lambda a, b: product(((1,), (0,)), precision=("default", "highest"))(a, b).T,
        AB,
        (
            "%2: f32[5,3] = dot_general[dimension_numbers=(((0,),(1,)),((),())) "
            "precision=(HIGHEST,DEFAULT)] %1 %0",
            "return %2",
        ),
    ),
    Case(
        "transpose-of-dot",
        lambda a, b: product(((1,), (0,)), precision="highest", preferred_element_type=jnp.float32)(a, b).T,
        AB,
        (
            "%2: f32[5,3] = dot_general[dimension_numbers=(((0,),(1,)),((),())) "
            "precision=(HIGHEST,HIGHEST) preferred_element_type=float32] %1 %0",
            "return %2",
        ),
    ),
]

LOOKALIKES = [
    Lookalike(
        "dot-of-transpose",
        "the free dimensions change places",
        lambda a, b: product(((2,), (0,)))(a.transpose(1, 0, 2), b),
        ((2, 3, 4), (4, 5)),
    ),
    Lookalike(
        "dot-of-transpose",
        "the transpose is read elsewhere",
        lambda a, b: (lambda t: (PLAIN(t, b), t))(a.T),
        ((4, 3), (4, 5)),
    ),
    Lookalike(
        "transpose-of-dot",
        "the product is read elsewhere",
        lambda a, b: (lambda c: (c, c.T))(PLAIN(a, b)),
        AB,
    ),
    Lookalike(
        "transpose-of-dot",
        "a batch dimension goes inward",
        lambda a, b: IN_BATCHES(a, b).transpose(1, 0, 2),
        BATCHED,
    ),
    Lookalike(
        "transpose-of-dot",
        "it parts a's free dimensions",
        lambda a, b: product(((2,), (0,)))(a, b).transpose(1, 2, 0),
        ((2, 3, 4), (4, 5)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fires(case: Case) -> None:
    check_case(case)


def test_what_fires_keeps_the_meaning() -> None:
    check_meaning(CASES)


@pytest.mark.parametrize("case", LOOKALIKES, ids=lambda case: f"{case.rule}: {case.why}")
def test_does_not_fire(case: Lookalike) -> None:
    check_lookalike(case)


@pytest.mark.parametrize(
    ("left", "right"), [("int8", "int8"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")]
)
def test_products_of_other_types_keep_their_result_type(left: str, right: str) -> None:
    def fun(a: jax.Array, b: jax.Array) -> jax.Array:
        kind = jnp.int32 if left == "int8" else jnp.float32
        return lax.dot_general(a.T, b, (((1,), (0,)), ((), ())), preferred_element_type=kind).T

    a, b = array((4, 3), left), array((4, 5), right, seed=1)
    rules = fired(fun, a, b, passes="movement", level="exact")
    assert rules == {"dot-of-transpose": 1, "transpose-of-dot": 1}
    same(fun, a, b, passes="movement", level="exact")


def test_a_product_with_a_pair_of_precisions_turns_the_pair_round() -> None:
    fun = product(((1,), (0,)), precision=("default", "highest"))
    lines = body(lambda a, b: fun(a, b).T, *(array(shape) for shape in AB))
    assert "precision=(HIGHEST,DEFAULT)" in lines[0]


def test_a_product_with_an_algorithm_is_not_swapped() -> None:
    fun = product(((1,), (0,)), precision=lax.DotAlgorithmPreset.F32_F32_F32)
    assert fired(lambda a, b: fun(a, b).T, *(array(shape) for shape in AB), passes="movement") == {}
    assert fired(lambda a, b: fun(a.T, b), array((4, 3)), array((4, 5)), passes="movement") == {
        "dot-of-transpose": 1
    }
