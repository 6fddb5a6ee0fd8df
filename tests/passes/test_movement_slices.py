"""Movement: slices."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from jax import lax

from tests.passes._movement import Case, Lookalike, check_case, check_lookalike, check_meaning

V = ((8,),)
M = ((4, 3),)

CASES = [
    Case(
        "slice-of-everything",
        lambda x: lax.slice_p.bind(x, start_indices=(0,), limit_indices=(8,), strides=None),
        V,
        ("return %0",),
    ),
    Case("slice-of-everything", lambda x: lax.slice(x, (0, 0), (1, 3), (2, 1)), ((1, 3),), ("return %0",)),
    Case(
        "slice-of-slice",
        lambda x: x[1:7][2:4],
        V,
        ("%1: f32[2] = slice[limit_indices=(5,) start_indices=(3,)] %0", "return %1"),
    ),
    Case(
        "slice-of-slice",
        lambda x: x[1::2][::2],
        ((11,),),
        ("%1: f32[3] = slice[limit_indices=(10,) start_indices=(1,) strides=(4,)] %0", "return %1"),
    ),
    Case(
        "slice-of-slice",
        lambda x: x[1:5:3][2:],
        V,
        ("%1: f32[0] = slice[limit_indices=(7,) start_indices=(7,)] %0", "return %1"),
    ),
    Case(
        "slice-of-slice",
        lambda x: lax.split(x, (3, 5))[1][1:3],
        V,
        ("%1: f32[2] = slice[limit_indices=(6,) start_indices=(4,)] %0", "return %1"),
    ),
    Case(
        "slice-of-broadcast",
        lambda x: jnp.broadcast_to(x, (5, 8))[1:3],
        V,
        ("%1: f32[2,8] = broadcast_in_dim[broadcast_dimensions=(1,) shape=(2,8)] %0", "return %1"),
    ),
    Case(
        "slice-of-broadcast",
        lambda x: jnp.broadcast_to(x, (5, 8))[1:3, 2:6:2],
        V,
        (
            "%1: f32[2] = slice[limit_indices=(6,) start_indices=(2,) strides=(2,)] %0",
            "%2: f32[2,2] = broadcast_in_dim[broadcast_dimensions=(1,) shape=(2,2)] %1",
            "return %2",
        ),
    ),
    Case(
        "slice-of-broadcast",
        lambda x: lax.broadcast_in_dim(x, (8, 2), (0,))[:, :1],
        V,
        ("%1: f32[8,1] = broadcast_in_dim[broadcast_dimensions=(0,) shape=(8,1)] %0", "return %1"),
    ),
    Case("slice-of-pad", lambda x: lax.pad(x, 1.0, ((2, 3, 0),))[2:10], V, ("return %0",)),
    Case(
        "slice-of-pad",
        lambda x: lax.pad(x, 1.0, ((2, 3, 0),))[4:6],
        V,
        ("%1: f32[2] = slice[limit_indices=(4,) start_indices=(2,)] %0", "return %1"),
    ),
    Case(
        "slice-of-pad",
        lambda x: lax.pad(x, 1.0, ((2, 3, 0),))[1:6],
        V,
        (
            "%1: f32[4] = slice[limit_indices=(4,) start_indices=(0,)] %0",
            "%2: f32[5] = pad[padding_config=((1,0,0),)] %1 1.0",
            "return %2",
        ),
    ),
    Case(
        "slice-of-pad",
        lambda x: lax.pad(x, 1.0, ((2, 3, 0),))[1:12],
        V,
        ("%1: f32[11] = pad[padding_config=((1,2,0),)] %0 1.0", "return %1"),
    ),
    Case(
        "slice-of-pad",
        lambda x, v: lax.pad(x, v, ((2, 3, 0), (0, 1, 0)))[:2],
        (*M, ()),
        ("%2: f32[2,4] = broadcast_in_dim[broadcast_dimensions=() shape=(2,4)] %1", "return %2"),
    ),
]

LOOKALIKES = [
    Lookalike("slice-of-everything", "one element is left out", lambda x: x[1:], V),
    Lookalike("slice-of-slice", "an addition stands between", lambda x: (x[1:] + 1)[2:4], V),
    Lookalike(
        "slice-of-broadcast",
        "x would be sliced and the broadcast is read elsewhere",
        lambda x: (lambda y: (y[:, 1:], y))(jnp.broadcast_to(x, (2, 8))),
        V,
    ),
    Lookalike(
        "slice-of-pad",
        "the pad is read elsewhere",
        lambda x: (lambda y: (y[1:6], y))(lax.pad(x, 1.0, ((2, 3, 0),))),
        V,
    ),
    Lookalike("slice-of-pad", "the pad has an interior", lambda x: lax.pad(x, 1.0, ((0, 0, 1),))[2:5], V),
    Lookalike("slice-of-pad", "the pad cuts", lambda x: lax.pad(x, 1.0, ((-1, 3, 0),))[2:5], V),
    Lookalike("slice-of-pad", "the slice has strides", lambda x: lax.pad(x, 1.0, ((1, 3, 0),))[2:9:2], V),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fires(case: Case) -> None:
    check_case(case)


def test_what_fires_keeps_the_meaning() -> None:
    check_meaning(CASES)


@pytest.mark.parametrize("case", LOOKALIKES, ids=lambda case: f"{case.rule}: {case.why}")
def test_does_not_fire(case: Lookalike) -> None:
    check_lookalike(case)
