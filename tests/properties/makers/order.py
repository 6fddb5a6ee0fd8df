"""Order statistics."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program, on

PASS: Final = "order"


def _rows(d: Draw, kind: str = "floats", least: int = 2) -> Any:
    return getattr(d, kind)((*d.shape(0, 2, 1), d.size(least)))


def _reversed_sort(d: Draw, x: Any) -> Any:
    n = x.shape[-1]
    turned = lax.rev(lax.sort(x), (x.ndim - 1,))
    return lax.slice_in_dim(turned, d.whole(0, n // 2), d.whole(n // 2 + 1, n), axis=x.ndim - 1)


def _running_entry(d: Draw, x: Any, *ops: Any) -> Any:
    axis = d.axis(x.shape)
    op = d.pick(*ops)
    place = d.whole(0, x.shape[axis] - 1)
    return lax.slice_in_dim(op(x, axis=axis, reverse=d.pick(True, False)), place, place + 1, axis=axis)


def _rising(d: Draw, x: Any) -> Any:
    even = jnp.sum(x, -1, keepdims=True)
    steps = (
        jnp.exp,
        jnp.sinh,
        jnp.negative,
        lambda y: y - jnp.broadcast_to(even, y.shape),
        lambda y: y * d.of(y, 2.0),
        lambda y: y / jnp.broadcast_to(jnp.exp(even), y.shape),
        jax.nn.softmax,
    )
    return d.pick(*steps)(x)


def _distinct(d: Draw) -> jax.Array:
    """Rows of numbers that lie well apart."""
    shape = (d.size(1), d.size(2))
    return jnp.asarray(np.stack([d.rng.permutation(shape[1]) for _ in range(shape[0])]) * 0.25, "float32")


def _chosen(d: Draw) -> Program:
    choose = d.pick(lax.argmax, lax.argmin)
    return P(lambda x: choose(_rising(d, x), 1, np.int32), _distinct(d))


def _top_places(d: Draw) -> Program:
    return P(lambda x: lax.top_k(jax.nn.softmax(x), d.whole(1, x.shape[1]))[1], _distinct(d))


def _entry_of_sort(d: Draw) -> Program:
    x = d.like((40, d.size(1)), d.pick("float32", "int32", "bfloat16"))
    place = d.pick(0, 1, 38, 39)
    return P(
        lambda x: jnp.take(lax.sort(x, dimension=0), np.array([place]), axis=0, mode="clip"),
        x,
        prepare=SIMPLIFIED,
    )


def _ends_of_sort(d: Draw, x: Any) -> Any:
    n = x.shape[-1]
    few = d.whole(1, max(n // 2, 1))
    return d.pick(lambda s: s[..., :few], lambda s: s[..., n - few :])(lax.sort(x))


def _middle_of_sort(d: Draw, x: Any) -> Any:
    place = d.whole(0, x.shape[-1] - 1)
    return lax.slice_in_dim(lax.sort(x), place, place + 1, axis=x.ndim - 1)


def _by_permutation(d: Draw) -> Program:
    x = d.reals((d.size(1), d.size(1)))
    axis = d.axis(x.shape)
    forms = (
        lambda x: jnp.argsort(jnp.argsort(x, axis), axis),
        lambda x: lax.sort((lax.rev(jnp.argsort(x, axis), (axis,)), x), dimension=axis, num_keys=1),
    )
    return P(d.pick(*forms), x, prepare=SIMPLIFIED)


LEVELS: Final[Any] = {"part-of-sort": "reassociate", "entry-by-bisection": "reassociate"}

MAKERS: Final[Makers] = {
    "slice-of-reversed-sort": (on(lambda d: _rows(d, "reals"), _reversed_sort),),
    "entry-of-sort": (_entry_of_sort,),
    "entry-of-running": (
        on(lambda d: d.wide(d.shape(1, 2, 2)), lambda d, x: _running_entry(d, x, lax.cumsum, lax.cumprod)),
        on(
            lambda d: d.wide(d.shape(1, 2, 2)),
            lambda d, x: _running_entry(d, x, lax.cummax, lax.cummin),
            kinks="between equals JAX shares derivatives of running maxima pair by pair, of maxima evenly",
        ),
        on(
            lambda d: d.ints(d.shape(1, 2, 2)),
            lambda d, x: _running_entry(d, x, lax.cumsum, lax.cumprod, lax.cummax),
        ),
    ),
    "choice-of-rising": (_chosen, _chosen),
    "top-of-rising": (_top_places,),
    "sort-by-permutation": (_by_permutation, _by_permutation),
    "top-of-top": (
        on(_rows, lambda d, x: lax.top_k(lax.top_k(x, x.shape[-1] - 1)[0], d.whole(1, x.shape[-1] - 1))),
    ),
    "part-of-sort": (
        on(
            lambda d: _rows(d, "reals"),
            _ends_of_sort,
            prepare=SIMPLIFIED,
            kinks="between equals a sort gives the derivative to one, a maximum shares it evenly",
        ),
    ),
    "entry-by-bisection": (
        on(lambda d: _rows(d, "floats", 3), _middle_of_sort, prepare=SIMPLIFIED),
        on(lambda d: d.ints((d.size(1), d.size(3)), "int32", "int8"), _middle_of_sort, prepare=SIMPLIFIED),
    ),
}

ALIKE: Final[Makers] = {
    "slice-of-reversed-sort": (on(lambda d: d.floats((4,)), lambda d, x: lax.rev(x, (0,))[1:3]),),
    "entry-of-sort": (
        on(lambda d: d.wide((40,)), lambda d, x: jnp.take(x, np.array([0]), axis=0, mode="clip")),
    ),
    "entry-of-running": (
        on(lambda d: d.wide((5,)), lambda d, x: lax.cumsum(x)[1:4]),
        on(lambda d: d.floats((5,), "bfloat16", "float16"), lambda d, x: lax.cumsum(x)[4:]),
    ),
    "choice-of-rising": (
        on(lambda d: d.wide((3, 4)), lambda d, x: lax.argmax(jnp.square(x), 1, np.int32)),
        on(lambda d: d.wide((3, 4)), lambda d, x: lax.argmax(jnp.tanh(x), 1, np.int32)),
        on(lambda d: d.wide((3, 4)), lambda d, x: lax.argmax(jnp.log(x), 1, np.int32)),
    ),
    "top-of-rising": (on(lambda d: d.wide((3, 4)), lambda d, x: lax.top_k(jax.nn.softmax(x), 2)),),
    "sort-by-permutation": (
        on(lambda d: d.ints((6,), "int32"), lambda d, n: jnp.argsort(n), prepare=SIMPLIFIED),
        on(lambda d: d.wide((3, 4)), lambda d, x: jnp.argsort(jnp.argsort(x, 0), 1), prepare=SIMPLIFIED),
    ),
    "top-of-top": (on(lambda d: d.wide((3, 4)), lambda d, x: lax.top_k(-lax.top_k(x, 3)[0], 2)),),
    "entry-by-bisection": (on(lambda d: d.wide((8,)), lambda d, x: lax.sort(x)[2:5]),),
}
