"""Movement: views, broadcasts, transposes and reversals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir.export import to_callable
from tests.passes._check import check, optimised
from tests.passes._movement import Case, Lookalike, check_case, check_lookalike, check_meaning

X = ((2, 3, 4),)

CASES = [
    Case(
        "view-to-same-shape",
        lambda x: lax.reshape_p.bind(x, new_sizes=(2, 3, 4), dimensions=None, sharding=None),
        X,
        ("return %0",),
    ),
    Case("view-to-same-shape", lambda x: lax.transpose_p.bind(x, permutation=(0, 1, 2)), X, ("return %0",)),
    Case("view-to-same-shape", lambda x: lax.squeeze_p.bind(x, dimensions=()), X, ("return %0",)),
    Case(
        "view-of-view",
        lambda x: x.reshape(6, 4).reshape(3, 8),
        X,
        ("%1: f32[3,8] = reshape[new_sizes=(3,8)] %0", "return %1"),
    ),
    Case("view-of-view", lambda x: x.reshape(6, 4).reshape(2, 3, 4), X, ("return %0",)),
    Case(
        "view-of-view",
        lambda x: x.reshape(6, 4).reshape(1, 2, 3, 4),
        X,
        ("%1: f32[1,2,3,4] = broadcast_in_dim[broadcast_dimensions=(1,2,3) shape=(1,2,3,4)] %0", "return %1"),
    ),
    Case(
        "view-of-view",
        lambda x: jnp.expand_dims(x, 1).reshape(2, 12),
        X,
        ("%1: f32[2,12] = reshape[new_sizes=(2,12)] %0", "return %1"),
    ),
    Case("view-of-view", lambda x: lax.squeeze(jnp.expand_dims(x, 1), (1,)), X, ("return %0",)),
    Case(
        "view-of-view",
        lambda x: lax.squeeze(lax.squeeze(x, (1,)), (2,)),
        ((2, 1, 3, 1),),
        ("%1: f32[2,3] = squeeze[dimensions=(1,3)] %0", "return %1"),
    ),
    Case(
        "view-of-view",
        lambda x: lax.squeeze(x.T, (0,)),
        ((3, 1),),
        ("%1: f32[3] = squeeze[dimensions=(1,)] %0", "return %1"),
    ),
    Case(
        "broadcast-of-broadcast",
        lambda x: jnp.broadcast_to(x[:, None], (5, 2, 7, 3, 4)),
        X,
        (
            "%1: f32[5,2,7,3,4] = broadcast_in_dim[broadcast_dimensions=(1,3,4) shape=(5,2,7,3,4)] %0",
            "return %1",
        ),
    ),
    Case(
        "view-of-view",
        lambda x: jnp.expand_dims(jnp.expand_dims(x, 0), 2),
        X,
        (
            "%1: f32[1,2,1,3,4] = broadcast_in_dim[broadcast_dimensions=(1,3,4) shape=(1,2,1,3,4)] %0",
            "return %1",
        ),
    ),
    Case(
        "broadcast-of-unit-view",
        lambda x: lax.broadcast_in_dim(lax.squeeze(x, (1,)), (2, 4), (0,)),
        ((2, 1),),
        ("%1: f32[2,4] = broadcast_in_dim[broadcast_dimensions=(0,1) shape=(2,4)] %0", "return %1"),
    ),
    Case(
        "broadcast-of-unit-view",
        lambda x: lax.broadcast_in_dim(x.reshape(3, 1, 4), (3, 5, 4), (0, 1, 2)),
        ((3, 4),),
        ("%1: f32[3,5,4] = broadcast_in_dim[broadcast_dimensions=(0,2) shape=(3,5,4)] %0", "return %1"),
    ),
    Case(
        "unit-view-of-broadcast",
        lambda x: lax.squeeze(lax.broadcast_in_dim(x, (5, 1, 3), (2,)), (1,)),
        ((3,),),
        ("%1: f32[5,3] = broadcast_in_dim[broadcast_dimensions=(1,) shape=(5,3)] %0", "return %1"),
    ),
    Case(
        "unit-view-of-broadcast",
        lambda x: jnp.broadcast_to(x, (2, 3, 4)).reshape(8, 3),
        ((),),
        ("%1: f32[8,3] = broadcast_in_dim[broadcast_dimensions=() shape=(8,3)] %0", "return %1"),
    ),
    Case(
        "unit-view-of-broadcast",
        lambda x: lax.broadcast_in_dim(x, (5, 3), (0, 1)).reshape(5, 1, 3),
        ((1, 3),),
        ("%1: f32[5,1,3] = broadcast_in_dim[broadcast_dimensions=(0,2) shape=(5,1,3)] %0", "return %1"),
    ),
    Case(
        "transpose-of-broadcast",
        lambda x: jnp.broadcast_to(x, (5, 3)).T,
        ((3,),),
        ("%1: f32[3,5] = broadcast_in_dim[broadcast_dimensions=(0,) shape=(3,5)] %0", "return %1"),
    ),
    Case(
        "transpose-of-broadcast",
        lambda x: lax.broadcast_in_dim(x, (5, 2, 3), (1, 2)).transpose(2, 0, 1),
        ((2, 3),),
        (
            "%1: f32[3,2] = transpose[permutation=(1,0)] %0",
            "%2: f32[3,5,2] = broadcast_in_dim[broadcast_dimensions=(0,2) shape=(3,5,2)] %1",
            "return %2",
        ),
    ),
    Case(
        "elementwise-with-broadcast-scalar",
        lambda x, s: x * jnp.broadcast_to(s, (2, 3, 4)),
        (*X, ()),
        ("%2: f32[2,3,4] = mul %0 %1", "return %2"),
    ),
    Case(
        "elementwise-with-broadcast-scalar",
        lambda x: lax.full((2, 3, 4), np.float32(2)) - x,
        X,
        ("%1: f32[2,3,4] = sub 2.0 %0", "return %1"),
    ),
    Case(
        "select-by-broadcast-scalar",
        lambda x, s: lax.select_n(jnp.broadcast_to(s > 0, (2, 3, 4)), x, -x),
        (*X, ()),
        (
            "%2: bool[] = gt %1 0.0",
            "%3: f32[2,3,4] = neg %0",
            "%4: f32[2,3,4] = select_n %2 %0 %3",
            "return %4",
        ),
    ),
    Case(
        "movement-of-splat",
        lambda x: x * jnp.concatenate([jnp.ones((1, 4)), jnp.ones((2, 4))]).T,
        ((4, 3),),
        ("%1: f32[4,3] = mul %0 1.0", "return %1"),
    ),
    Case(
        "movement-of-splat",
        lambda x: x * lax.pad(jnp.zeros((2, 2)), 0.0, ((1, 1, 0), (0, 0, 0))),
        ((4, 2),),
        ("%1: f32[4,2] = mul %0 0.0", "return %1"),
    ),
    Case(
        "transpose-of-transpose",
        lambda x: x.transpose(1, 2, 0).transpose(2, 1, 0),
        X,
        ("%1: f32[2,4,3] = transpose[permutation=(0,2,1)] %0", "return %1"),
    ),
    Case("transpose-of-transpose", lambda x: x.transpose(1, 2, 0).transpose(2, 0, 1), X, ("return %0",)),
    Case(
        "rev-of-rev",
        lambda x: lax.rev(lax.rev(x, (0, 1)), (1, 2)),
        X,
        ("%1: f32[2,3,4] = rev[dimensions=(0,2)] %0", "return %1"),
    ),
    Case("rev-of-rev", lambda x: x[::-1][::-1], X, ("return %0",)),
    Case(
        "rev-of-equals",
        lambda x: lax.rev(x, (0, 1)),
        ((1, 3),),
        ("%1: f32[1,3] = rev[dimensions=(1,)] %0", "return %1"),
    ),
    Case("rev-of-equals", lambda x: lax.rev(x, (0,)), ((1, 3),), ("return %0",)),
    Case(
        "rev-of-equals",
        lambda x: lax.rev(jnp.broadcast_to(x, (2, 3)), (0,)),
        ((3,),),
        ("%1: f32[2,3] = broadcast_in_dim[broadcast_dimensions=(1,) shape=(2,3)] %0", "return %1"),
    ),
]

LOOKALIKES = [
    Lookalike("view-to-same-shape", "the transpose of a square moves elements", lambda x: x.T, ((3, 3),)),
    Lookalike(
        "view-to-same-shape",
        "a reshape with an order moves elements",
        lambda x: lax.reshape(x, (3, 3), (1, 0)),
        ((3, 3),),
    ),
    Lookalike("view-of-view", "the transpose in it moves elements", lambda x: x.T.reshape(6), ((2, 3),)),
    Lookalike(
        "view-of-view",
        "the broadcast in it repeats elements",
        lambda x: lax.broadcast_in_dim(x, (2, 3), (1,)).reshape(6),
        ((3,),),
    ),
    Lookalike(
        "broadcast-of-unit-view",
        "the reshape in it splits a dimension",
        lambda x: jnp.broadcast_to(x.reshape(2, 3), (4, 2, 3)),
        ((6,),),
    ),
    Lookalike(
        "broadcast-of-unit-view",
        "the dropped dimension has no place",
        lambda x: lax.broadcast_in_dim(lax.squeeze(x, (0,)), (3, 2), (0,)),
        ((1, 3),),
    ),
    Lookalike(
        "unit-view-of-broadcast",
        "the reshape mixes copies",
        lambda x: jnp.broadcast_to(x, (2, 3)).reshape(3, 2),
        ((3,),),
    ),
    Lookalike(
        "transpose-of-broadcast",
        "the broadcast is read elsewhere, and x must be transposed",
        lambda x: (lambda y: (y, y.transpose(2, 0, 1)))(lax.broadcast_in_dim(x, (5, 2, 3), (1, 2))),
        ((2, 3),),
    ),
    Lookalike(
        "elementwise-with-broadcast-scalar",
        "what is broadcast is not a scalar",
        lambda x, y: x * jnp.broadcast_to(y, (2, 3)),
        ((2, 3), (3,)),
    ),
    Lookalike(
        "elementwise-with-broadcast-scalar",
        "clamp is not on the list",
        lambda x, s: lax.clamp(0.0, x, jnp.broadcast_to(s, (2, 3))),
        ((2, 3), ()),
    ),
    Lookalike(
        "select-by-broadcast-scalar",
        "only the predicate may be a scalar",
        lambda x, s: lax.select_n(x > 0, x, jnp.broadcast_to(s, (2, 3))),
        ((2, 3), ()),
    ),
    Lookalike(
        "movement-of-splat",
        "the padding is another number",
        lambda x: x + lax.pad(jnp.zeros((2,)), -0.0, ((1, 1, 0),)),
        ((4,),),
    ),
    Lookalike("transpose-of-transpose", "an addition stands between", lambda x: (x.T + 1).T, ((2, 3),)),
    Lookalike("rev-of-rev", "there is one", lambda x: lax.rev(x, (0, 1)), ((2, 3),)),
    Lookalike(
        "rev-of-equals",
        "the elements differ along it",
        lambda x: lax.rev(jnp.broadcast_to(x, (2, 3)), (1,)),
        ((3,),),
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


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "rem", "max", "min", "pow", "atan2"])
def test_a_scalar_operand_under_transformations_of_either_operand(op: str) -> None:
    elementwise = getattr(lax, op)

    def fun(x: jax.Array, s: jax.Array) -> Any:
        return elementwise(x, jnp.broadcast_to(s, x.shape)) + elementwise(jnp.broadcast_to(s, x.shape), x)

    x, s = jnp.array([0.5, 1.5, 2.5]), jnp.float32(1.25)
    flat = to_callable(optimised(fun, x, s, passes="movement"))

    def rewritten(x: jax.Array, s: jax.Array) -> Any:
        return flat(x, s)[0]

    many = jnp.array([1.25, 0.75])

    def views(f: Callable[..., Any]) -> list[Any]:
        cases = (((None, 0), (x, many)), ((0, None), (x, s)), ((0, 0), (x[:2], many)))
        batches = [jax.vmap(widened(f), axes)(*given) for axes, given in cases]
        return batches + [transform(f, (0, 1))(x, s) for transform in (jax.jacfwd, jax.jacrev, jax.hessian)]

    check(*jax.jit(lambda: (views(fun), views(rewritten)))())


def widened(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` of three copies of x, whatever shape x has left under vmap."""
    return lambda x, s: fun(jnp.broadcast_to(jnp.ravel(x)[:1], (3,)), s)
