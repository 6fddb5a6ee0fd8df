"""Movement: reductions that take transposes and broadcasts in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._check import bitwise, fired, same
from tests.passes._movement import Case, Lookalike, array, check_case, check_lookalike, check_meaning

X = ((2, 3, 4),)

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
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fires(case: Case) -> None:
    check_case(case)


def test_what_fires_keeps_the_meaning() -> None:
    check_meaning(CASES)


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
