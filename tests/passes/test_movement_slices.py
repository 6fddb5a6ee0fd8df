"""Movement: slices, concatenations, pads, dynamic slices and updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.passes._check import bitwise
from tests.passes._movement import Case, Lookalike, array, body, check_case, check_lookalike

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
    Case("slice-of-stack", lambda x, y: jnp.stack([x, y], axis=1)[:, 1], (*M, *M), ("return %1",)),
    Case(
        "slice-of-stack",
        lambda x, y: jnp.stack([x, y])[:1, 1:3],
        (*M, *M),
        (
            "%2: f32[2,3] = slice[limit_indices=(3,3) start_indices=(1,0)] %0",
            "%3: f32[1,2,3] = broadcast_in_dim[broadcast_dimensions=(1,2) shape=(1,2,3)] %2",
            "return %3",
        ),
    ),
    Case("concatenate-of-empty", lambda x: lax.concatenate_p.bind(x, dimension=0), M, ("return %0",)),
    Case(
        "concatenate-of-empty",
        lambda x, y: lax.concatenate([x, y, x], 0),
        (*M, (0, 3)),
        ("%2: f32[8,3] = concatenate[dimension=0] %0 %0", "return %2"),
    ),
    Case("concatenate-of-empty", lambda x, y: lax.concatenate([x, y, y], 0), (*M, (0, 3)), ("return %0",)),
    Case("concatenate-of-empty", lambda y: lax.concatenate([y, y], 0), ((0, 3),), ("return %0",)),
    Case(
        "concatenate-of-concatenate",
        lambda x, y: lax.concatenate([y, lax.concatenate([x, y], 0), x], 0),
        (*M, *M),
        ("%2: f32[16,3] = concatenate[dimension=0] %1 %0 %1 %0", "return %2"),
    ),
    Case("concatenate-of-adjacent", lambda x: lax.concatenate([x[:3], x[3:]], 0), V, ("return %0",)),
    Case(
        "concatenate-of-adjacent",
        lambda x: lax.concatenate([x[1:3], x[3:6], x[:1]], 0),
        V,
        (
            "%1: f32[1] = slice[limit_indices=(1,) start_indices=(0,)] %0",
            "%2: f32[5] = slice[limit_indices=(6,) start_indices=(1,)] %0",
            "%3: f32[6] = concatenate[dimension=0] %2 %1",
            "return %3",
        ),
    ),
    Case(
        "concatenate-of-adjacent",
        lambda x: lax.concatenate([x[1:3, :2], x[1:3, 2:]], 1),
        M,
        ("%1: f32[2,3] = slice[limit_indices=(3,3) start_indices=(1,0)] %0", "return %1"),
    ),
    Case("concatenate-of-adjacent", lambda x: lax.concatenate(lax.split(x, (1, 3)), 0), M, ("return %0",)),
    Case("slice-of-concatenate", lambda x, y: lax.concatenate([x, y], 0)[:8], (*V, *V), ("return %0",)),
    Case(
        "slice-of-concatenate",
        lambda x, y: lax.concatenate([x, y], 0)[9:15:2],
        (*V, *V),
        ("%2: f32[3] = slice[limit_indices=(7,) start_indices=(1,) strides=(2,)] %1", "return %2"),
    ),
    Case(
        "slice-of-concatenate",
        lambda x, y: lax.concatenate([x, y], 1)[1:, 3:5],
        (*M, *M),
        ("%2: f32[3,2] = slice[limit_indices=(4,2) start_indices=(1,0)] %1", "return %2"),
    ),
    Case(
        "slice-of-concatenate",
        lambda x, y, z: lax.concatenate([x, y, z], 0)[:10],
        (*V, *V, *V),
        (
            "%3: f32[2] = slice[limit_indices=(2,) start_indices=(0,)] %1",
            "%4: f32[10] = concatenate[dimension=0] %0 %3",
            "return %4",
        ),
    ),
    Case(
        "split-of-concatenate",
        lambda x, y: lax.split(lax.concatenate([x, y], 0), (8, 3)),
        (*V, (3,)),
        ("return %0, %1",),
    ),
    Case("split-in-one", lambda x: lax.split_p.bind(x, sizes=(8,), axis=0)[0], V, ("return %0",)),
    Case(
        "unstack-of-stack",
        lambda x, y: jnp.unstack(jnp.stack([x, y], 1), axis=1),
        (*M, *M),
        ("return %0, %1",),
    ),
    Case("stack-of-unstack", lambda x: jnp.stack(jnp.unstack(x, axis=1), axis=1), M, ("return %0",)),
    Case("tile-once", lambda x: jnp.tile(x, (1, 1)), M, ("return %0",)),
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
    Lookalike("slice-of-stack", "it takes two", lambda x, y: jnp.stack([x, y, x])[:2], (*M, *M)),
    Lookalike("concatenate-of-empty", "no piece is empty", lambda x: lax.concatenate([x, x], 0), M),
    Lookalike(
        "concatenate-of-concatenate",
        "the axes differ",
        lambda x: lax.concatenate([lax.concatenate([x, x], 1)] * 2, 0),
        M,
    ),
    Lookalike(
        "concatenate-of-concatenate",
        "the inner one is read twice",
        lambda x: (lambda y: lax.concatenate([y, y], 0))(lax.concatenate([x, -x], 0)),
        M,
    ),
    Lookalike("concatenate-of-adjacent", "they overlap", lambda x: lax.concatenate([x[:3], x[2:]], 0), V),
    Lookalike(
        "concatenate-of-adjacent",
        "they are in the wrong order",
        lambda x: lax.concatenate([x[3:], x[:3]], 0),
        V,
    ),
    Lookalike(
        "concatenate-of-adjacent",
        "they differ along another axis",
        lambda x: lax.concatenate([x[:2, :2], x[2:, 1:]], 0),
        M,
    ),
    Lookalike(
        "concatenate-of-adjacent", "the axis is another", lambda x: lax.concatenate([x[:2], x[2:]], 1), M
    ),
    Lookalike(
        "concatenate-of-adjacent",
        "the arrays differ",
        lambda x, y: lax.concatenate([x[:3], y[3:]], 0),
        (*V, *V),
    ),
    Lookalike(
        "concatenate-of-adjacent",
        "a stride leaves elements out",
        lambda x: lax.concatenate([x[:4:2], x[4:]], 0),
        V,
    ),
    Lookalike(
        "slice-of-concatenate",
        "it touches every piece",
        lambda x, y: lax.concatenate([x, y], 0)[5:10],
        (*V, *V),
    ),
    Lookalike(
        "slice-of-concatenate",
        "the concatenation is read elsewhere",
        lambda x, y: (lambda c: (c, c[:18]))(lax.concatenate([x, y, x], 0)),
        (*V, *V),
    ),
    Lookalike(
        "slice-of-concatenate",
        "two pieces would be cut",
        lambda x, y: lax.concatenate([x, y, x], 0)[4:12],
        (*V, *V),
    ),
    Lookalike(
        "slice-of-concatenate",
        "every piece would be sliced",
        lambda x, y: lax.concatenate([x, y, x], 0)[:8, 1:],
        (*M, *M),
    ),
    Lookalike(
        "split-of-concatenate",
        "the cut is elsewhere",
        lambda x, y: lax.split(lax.concatenate([x, y], 0), (6, 10)),
        (*V, *V),
    ),
    Lookalike(
        "split-of-concatenate",
        "the axis is another",
        lambda x: lax.split(lax.concatenate([x, x], 0), (3, 3), axis=1),
        ((3, 6),),
    ),
    Lookalike(
        "unstack-of-stack",
        "the axis is another",
        lambda x, y: jnp.unstack(jnp.stack([x, y], 1), axis=0),
        ((2, 3), (2, 3)),
    ),
    Lookalike("stack-of-unstack", "the order is another", lambda x: jnp.stack(jnp.unstack(x)[::-1]), M),
    Lookalike("stack-of-unstack", "one is left out", lambda x: jnp.stack(jnp.unstack(x)[:3]), M),
    Lookalike("tile-once", "it tiles twice", lambda x: jnp.tile(x, (2, 1)), M),
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


def test_a_long_chain_of_concatenations_is_not_flattened_without_end() -> None:
    def chain(x: jax.Array) -> jax.Array:
        y = x
        for _ in range(200):
            y = lax.concatenate([y, x], 0)
        return y

    lines = body(chain, array((1,)))
    assert len(lines) < 12
    assert max(line.count("%") for line in lines) <= 67
    bitwise(chain, array((1,)), passes="movement")
