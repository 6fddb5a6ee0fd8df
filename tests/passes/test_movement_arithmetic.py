"""Movement: reductions and matrix products that take transposes and broadcasts in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._check import bitwise, fired, same
from tests.passes._movement import Case, Lookalike, array, body, check_case, check_lookalike

X = ((2, 3, 4),)
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
        "reduction-of-transpose",
        lambda x: jnp.max(x.transpose(2, 0, 1), axis=0),
        X,
        ("%1: f32[2,3] = reduce_max[axes=(2,)] %0", "return %1"),
    ),
    Case(
        "reduction-of-transpose",
        lambda x: jnp.min(x.transpose(1, 0, 2), axis=0),
        X,
        ("%1: f32[2,4] = reduce_min[axes=(1,)] %0", "return %1"),
    ),
    Case(
        "reduction-of-transpose",
        lambda x: jnp.argmax(x.transpose(1, 0, 2), axis=0),
        X,
        ("%1: i32[2,4] = argmax[axes=(1,) index_dtype=int32] %0", "return %1"),
    ),
    Case(
        "reduction-of-transpose",
        lambda x: jnp.any((x > 0).T, axis=1),
        ((2, 3),),
        ("%1: bool[2,3] = gt %0 0.0", "%2: bool[3] = reduce_or[axes=(0,)] %1", "return %2"),
    ),
    Case(
        "reduction-of-transpose",
        lambda x: jnp.sum((x > 0).astype(jnp.int32).T),
        ((2, 3),),
        (
            "%1: bool[2,3] = gt %0 0.0",
            "%2: i32[2,3] = convert_element_type[new_dtype=int32 weak_type=False] %1",
            "%3: i32[] = reduce_sum[axes=(0,1)] %2",
            "return %3",
        ),
    ),
    Case(
        "float-reduction-of-transpose",
        lambda x: jnp.sum(x.transpose(2, 0, 1), axis=0),
        X,
        ("%1: f32[2,3] = reduce_sum[axes=(2,)] %0", "return %1"),
        "reassociate",
    ),
    Case(
        "float-reduction-of-transpose",
        lambda x: jnp.max(x.transpose(2, 1, 0)),
        X,
        ("%1: f32[] = reduce_max[axes=(0,1,2)] %0", "return %1"),
        "reassociate",
    ),
    Case(
        "float-reduction-of-transpose",
        lambda x: jnp.prod(x.T, axis=1),
        ((2, 3),),
        ("%1: f32[3] = reduce_prod[axes=(0,)] %0", "return %1"),
        "reassociate",
    ),
    Case(
        "selection-of-broadcast",
        lambda x: jnp.max(jnp.broadcast_to(x, (5, 3)), axis=0),
        ((3,),),
        ("return %0",),
    ),
    Case(
        "selection-of-broadcast",
        lambda x: jnp.max(jnp.broadcast_to(x, (5, 3))),
        ((3,),),
        ("%1: f32[] = reduce_max[axes=(0,)] %0", "return %1"),
    ),
    Case(
        "selection-of-broadcast",
        lambda x: jnp.min(jnp.broadcast_to(x, (5, 3)), axis=0),
        ((1, 3),),
        ("%1: f32[3] = squeeze[dimensions=(0,)] %0", "return %1"),
    ),
    Case(
        "selection-of-broadcast",
        lambda x: jnp.max(jnp.broadcast_to(x, (5, 3)), axis=1),
        ((5, 1),),
        ("%1: f32[5] = squeeze[dimensions=(1,)] %0", "return %1"),
    ),
    Case(
        "selection-of-broadcast",
        lambda x: jnp.all(jnp.broadcast_to(x > 0, (5, 3)), axis=0),
        ((3,),),
        ("%1: bool[3] = gt %0 0.0", "return %1"),
    ),
    Case(
        "integer-sum-of-broadcast",
        lambda x: jnp.sum(jnp.broadcast_to((x > 0).astype(jnp.int32), (5, 3)), axis=0),
        ((3,),),
        (
            "%1: bool[3] = gt %0 0.0",
            "%2: i32[3] = convert_element_type[new_dtype=int32 weak_type=False] %1",
            "%3: i32[3] = mul %2 5",
            "return %3",
        ),
    ),
    Case(
        "sum-of-broadcast",
        lambda x: jnp.sum(jnp.broadcast_to(x, (5, 3)), axis=0),
        ((3,),),
        ("%1: f32[3] = mul %0 5.0", "return %1"),
        "reassociate",
    ),
    Case(
        "sum-of-broadcast",
        lambda x: jnp.sum(jnp.broadcast_to(x, (5, 3))),
        ((3,),),
        ("%1: f32[] = reduce_sum[axes=(0,)] %0", "%2: f32[] = mul %1 5.0", "return %2"),
        "reassociate",
    ),
    Case(
        "sum-of-broadcast",
        lambda x: jnp.sum(jnp.broadcast_to(x, (5, 3)), axis=0),
        ((),),
        (
            "%1: f32[] = mul %0 5.0",
            "%2: f32[3] = broadcast_in_dim[broadcast_dimensions=() shape=(3,)] %1",
            "return %2",
        ),
        "reassociate",
    ),
    Case(
        "reduction-over-units",
        lambda x: jnp.max(x, axis=(0, 2)),
        ((1, 3, 1),),
        ("%1: f32[3] = squeeze[dimensions=(0,2)] %0", "return %1"),
    ),
    Case("reduction-over-units", lambda x: lax.reduce_max(x, ()), ((3,),), ("return %0",)),
    Case(
        "reduction-over-units",
        lambda x: jnp.prod(x, axis=0),
        ((1, 3),),
        ("%1: f32[3] = squeeze[dimensions=(0,)] %0", "return %1"),
    ),
    Case(
        "sum-over-units",
        lambda x: jnp.sum(x, axis=0),
        ((1, 3),),
        ("%1: f32[3] = squeeze[dimensions=(0,)] %0", "return %1"),
        "reassociate",
    ),
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
        "reduction-of-transpose",
        "the result would have to be transposed",
        lambda x: jnp.max(x.transpose(2, 1, 0), axis=0),
        X,
    ),
    Lookalike("reduction-of-transpose", "there is no transpose", lambda x: jnp.max(x, axis=0), X),
    Lookalike(
        "float-reduction-of-transpose",
        "the result would have to be transposed",
        lambda x: jnp.sum(x.transpose(2, 1, 0), axis=0),
        X,
    ),
    Lookalike(
        "selection-of-broadcast",
        "x is reduced along dimensions of its own only",
        lambda x: jnp.max(jnp.broadcast_to(x, (5, 3)), axis=1),
        ((3,),),
    ),
    Lookalike(
        "selection-of-broadcast",
        "a sum counts",
        lambda x: jnp.sum(jnp.broadcast_to(x, (5, 3)), axis=0),
        ((3,),),
    ),
    Lookalike(
        "selection-of-broadcast",
        "more would be done than is saved",
        lambda x: (lambda y: (y, jnp.max(y, axis=(0, 1))))(lax.broadcast_in_dim(x, (5, 3, 4), (1,))),
        ((3,),),
    ),
    Lookalike(
        "sum-of-broadcast",
        "a product is a power",
        lambda x: jnp.prod(jnp.broadcast_to(x, (5, 3)), axis=0),
        ((3,),),
    ),
    Lookalike(
        "sum-of-broadcast",
        "the axis is x's own",
        lambda x: jnp.sum(jnp.broadcast_to(x, (5, 3)), axis=1),
        ((3,),),
    ),
    Lookalike("sum-over-units", "the axis has two elements", lambda x: jnp.sum(x, axis=0), ((2, 3),)),
    Lookalike(
        "reduction-over-units", "one axis has three elements", lambda x: jnp.max(x, axis=(0, 1)), ((1, 3),)
    ),
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


@pytest.mark.parametrize("case", LOOKALIKES, ids=lambda case: f"{case.rule}: {case.why}")
def test_does_not_fire(case: Lookalike) -> None:
    check_lookalike(case)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_the_sum_of_copies_of_an_integer_wraps_around_alike(dtype: str) -> None:
    def fun(x: jax.Array) -> jax.Array:
        return lax.reduce_sum(lax.broadcast_in_dim(x, (300, 6), (1,)), (0,))

    x = jnp.asarray(np.array([-128, -7, 0, 1, 100, 127]).astype(dtype))
    assert fired(fun, x, passes="movement", level="exact") == {"integer-sum-of-broadcast": 1}
    bitwise(fun, x, passes="movement")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_sum_of_copies_in_a_narrow_type(dtype: str) -> None:
    def fun(x: jax.Array) -> jax.Array:
        return lax.reduce_sum(lax.broadcast_in_dim(x, (6, 3), (1,)), (0,))

    assert fired(fun, array((3,), dtype), passes="movement") == {"sum-of-broadcast": 1}
    same(fun, array((3,), dtype), passes="movement")


def test_more_copies_than_the_type_can_count_are_left() -> None:
    def fun(x: jax.Array) -> jax.Array:
        return lax.reduce_sum(lax.broadcast_in_dim(x, (70_000, 3), (1,)), (0,))

    assert fired(fun, array((3,), "float16"), passes="movement") == {}
    assert fired(fun, array((3,), "bfloat16"), passes="movement") == {"sum-of-broadcast": 1}


def test_the_maximum_of_no_copies_is_left() -> None:
    def fun(x: jax.Array) -> jax.Array:
        return lax.reduce_max(lax.broadcast_in_dim(x, (0, 3), (1,)), (0,))

    assert fired(fun, array((3,)), passes="movement") == {}


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
