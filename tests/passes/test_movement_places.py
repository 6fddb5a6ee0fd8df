"""Movement: pads, dynamic slices and updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._check import bitwise
from tests.passes._movement import Case, Lookalike, array, body, check_case, check_lookalike, check_meaning

V = ((8,),)
M = ((4, 3),)


def at(number: int) -> np.int32:
    """A start that is not Python's, so that JAX does not add to it what it knows of the size."""
    return np.int32(number)


def update_twice(x: jax.Array, i: jax.Array) -> Any:
    start = i.astype(jnp.int32)
    first = lax.dynamic_update_slice_p.bind(x, 2 * x[:2], start)
    return lax.dynamic_update_slice_p.bind(first, 3 * x[:2], start)


def read_back(x: jax.Array, i: jax.Array) -> Any:
    start = i.astype(jnp.int32)
    written = lax.dynamic_update_slice_p.bind(x, 2 * x[:2], start)
    return lax.dynamic_slice_p.bind(written, start, slice_sizes=(2,))


CASES = [
    Case("pad-with-nothing", lambda x: lax.pad(x, 1.0, ((0, 0, 0),)), V, ("return %0",)),
    Case("pad-with-nothing", lambda x: lax.pad(x, 1.0, ((0, 0, 2),)), ((1,),), ("return %0",)),
    Case(
        "pad-that-cuts",
        lambda x: lax.pad(x, 1.0, ((-1, -2, 0),)),
        V,
        ("%1: f32[5] = slice[limit_indices=(6,) start_indices=(1,)] %0", "return %1"),
    ),
    Case(
        "pad-of-empty",
        lambda x: lax.pad(x, 1.0, ((1, 2, 0), (0, 0, 0))),
        ((0, 3),),
        ("%1: f32[3,3] = broadcast_in_dim[broadcast_dimensions=() shape=(3,3)] 1.0", "return %1"),
    ),
    Case(
        "pad-of-pad",
        lambda x: lax.pad(lax.pad(x, 1.0, ((1, 2, 0),)), 1.0, ((3, 4, 0),)),
        V,
        ("%1: f32[18] = pad[padding_config=((4,6,0),)] %0 1.0", "return %1"),
    ),
    Case(
        "pad-of-pad",
        lambda x, v: lax.pad(lax.pad(x, v, ((0, 0, 1), (0, 0, 0))), v, ((0, 0, 0), (2, -1, 1))),
        (*M, ()),
        ("%2: f32[7,6] = pad[padding_config=((0,0,1),(2,-1,1))] %0 %1", "return %2"),
    ),
    Case(
        "dynamic-slice-of-everything",
        lambda x, i: lax.dynamic_slice(x, (i.astype(int),), (8,)),
        (*V, ()),
        ("return %0",),
    ),
    Case(
        "dynamic-slice-at-constant",
        lambda x: lax.dynamic_slice_p.bind(x, at(2), slice_sizes=(3,)),
        V,
        ("%1: f32[3] = slice[limit_indices=(5,) start_indices=(2,)] %0", "return %1"),
    ),
    Case(
        "dynamic-slice-at-constant",
        lambda x: lax.dynamic_slice_p.bind(x, at(7), slice_sizes=(3,)),
        V,
        ("%1: f32[3] = slice[limit_indices=(8,) start_indices=(5,)] %0", "return %1"),
    ),
    Case(
        "dynamic-slice-at-constant",
        lambda x: lax.dynamic_slice_p.bind(x, at(-3), slice_sizes=(3,)),
        V,
        ("%1: f32[3] = slice[limit_indices=(3,) start_indices=(0,)] %0", "return %1"),
    ),
    Case(
        "update-of-everything",
        lambda x, y: lax.dynamic_update_slice_p.bind(x, y, at(5)),
        (*V, *V),
        ("return %1",),
    ),
    Case(
        "update-of-everything",
        lambda x, y: lax.dynamic_update_slice_p.bind(x, y, at(5)),
        (*V, (0,)),
        ("return %0",),
    ),
    Case(
        "slice-of-update",
        read_back,
        (*V, ()),
        (
            "%2: f32[2] = slice[limit_indices=(2,) start_indices=(0,)] %0",
            "%3: f32[2] = mul 2.0 %2",
            "return %3",
        ),
    ),
    Case(
        "update-of-update",
        update_twice,
        (*V, ()),
        (
            "%2: i32[] = convert_element_type[new_dtype=int32 weak_type=False] %1",
            "%3: f32[2] = slice[limit_indices=(2,) start_indices=(0,)] %0",
            "%4: f32[2] = mul 3.0 %3",
            "%5: f32[8] = dynamic_update_slice %0 %4 %2",
            "return %5",
        ),
    ),
]

LOOKALIKES = [
    Lookalike(
        "pad-with-nothing",
        "what is added is cut again, but not the same",
        lambda x: lax.pad(x, 1.0, ((1, -1, 0),)),
        V,
    ),
    Lookalike("pad-that-cuts", "it adds too", lambda x: lax.pad(x, 1.0, ((1, -2, 0),)), V),
    Lookalike(
        "pad-of-pad",
        "the numbers differ",
        lambda x: lax.pad(lax.pad(x, 1.0, ((1, 2, 0),)), 2.0, ((3, 4, 0),)),
        V,
    ),
    Lookalike(
        "pad-of-pad",
        "the zeros' signs differ",
        lambda x: lax.pad(lax.pad(x, 0.0, ((1, 2, 0),)), -0.0, ((3, 4, 0),)),
        V,
    ),
    Lookalike(
        "pad-of-pad",
        "the first cuts",
        lambda x: lax.pad(lax.pad(x, 1.0, ((-1, 2, 0),)), 1.0, ((3, 4, 0),)),
        V,
    ),
    Lookalike(
        "pad-of-pad",
        "the interiors mix",
        lambda x: lax.pad(lax.pad(x, 1.0, ((1, 2, 0),)), 1.0, ((0, 0, 1),)),
        V,
    ),
    Lookalike(
        "dynamic-slice-of-everything",
        "it is a part",
        lambda x, i: lax.dynamic_slice(x, (i.astype(int),), (7,)),
        (*V, ()),
    ),
    Lookalike(
        "dynamic-slice-at-constant",
        "the start is not known",
        lambda x, i: lax.dynamic_slice(x, (i.astype(int),), (7,)),
        (*V, ()),
    ),
    Lookalike(
        "update-of-everything",
        "it updates a part",
        lambda x, y: lax.dynamic_update_slice(x, y, (2,)),
        (*V, (3,)),
    ),
    Lookalike(
        "slice-of-update",
        "the places differ",
        lambda x, i: lax.dynamic_slice(lax.dynamic_update_slice(x, x[:2], (i.astype(int),)), (1,), (2,)),
        (*V, ()),
    ),
    Lookalike(
        "update-of-update",
        "the second is smaller",
        lambda x: lax.dynamic_update_slice_p.bind(
            lax.dynamic_update_slice_p.bind(x, x[:3], at(2)), -x[:2], at(2)
        ),
        V,
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


@pytest.mark.parametrize("start", range(-10, 11))
def test_a_constant_start_is_clamped_as_jax_does(start: int) -> None:
    def fun(x: jax.Array) -> Any:
        return lax.dynamic_slice_p.bind(x, at(start), at(0), slice_sizes=(3, 2))

    x = array((8, 2))
    assert "dynamic_slice" not in " ".join(body(fun, x))
    bitwise(fun, x, passes="movement")


def test_a_start_of_a_small_type_is_read_as_its_own_type() -> None:
    def fun(x: jax.Array) -> Any:
        return lax.dynamic_slice_p.bind(x, np.uint8(250), slice_sizes=(3,))

    x = array((300,))
    assert body(fun, x)[0].startswith("%1: f32[3] = slice[limit_indices=(253,)")
    bitwise(fun, x, passes="movement")
