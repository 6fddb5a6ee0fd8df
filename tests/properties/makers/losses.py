"""Logarithms of softmax and logistic, and reads of one class of each row."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program, on

PASS: Final = "losses{stable=true}"


def _rows(d: Draw) -> Any:
    return d.floats((d.size(2), d.size(2)))


def _labels(d: Draw, rows: int, classes: int) -> jax.Array:
    return jnp.asarray(d.places((rows,), classes, outside=True))


def _sum_of_exp(d: Draw, x: Any) -> Any:
    return jnp.log(jnp.sum(jnp.exp(x), d.pick(0, 1, (0, 1)), keepdims=d.pick(True, False)))


def _of_row(d: Draw) -> Program:
    x = d.anything((d.size(2), d.size(2)))
    n = x.shape[0]
    return P(lambda x, i: x[jnp.arange(n), i], x, _labels(d, *x.shape), prepare=SIMPLIFIED)


def _into_row(d: Draw) -> Program:
    x = d.numbers((d.size(2), d.size(2)))
    n = x.shape[0]
    return P(
        lambda x, i, v: x.at[jnp.arange(n), i].add(v),
        x,
        _labels(d, *x.shape),
        d.like((n,), x.dtype),
        prepare=SIMPLIFIED,
    )


def _arithmetic(d: Draw) -> Program:
    x = d.floats((d.size(2), d.pick(5, 8)))
    forms = (
        lambda x, i: jnp.take_along_axis(x - jnp.sum(x, 1, keepdims=True), i[:, None], 1),
        lambda x, i: jnp.take_along_axis(x * 2.0, i[:, None], 1),
        lambda x, i: jnp.take_along_axis(-x, i[:, None], 1),
    )
    return P(d.pick(*forms), x, _labels(d, *x.shape), prepare=SIMPLIFIED)


def _summed_labels(d: Draw) -> Program:
    x = d.wide((d.size(2), d.size(2)))

    def fun(x: Any, i: Any, g: Any) -> Any:
        (placed,) = jax.vjp(lambda x: jnp.take_along_axis(x, i[:, None], 1), x)[1](g)
        return jnp.sum(placed, 1)

    return P(fun, x, _labels(d, *x.shape), d.like((x.shape[0], 1), x.dtype), prepare=SIMPLIFIED)


def _exp_of_log(d: Draw, x: Any) -> Any:
    axis = d.pick(0, 1, (0, 1))
    forms = (
        lambda x: x - jax.nn.logsumexp(x, axis, keepdims=True),
        lambda x: x - jnp.expand_dims(jax.nn.logsumexp(x, axis), axis),
        lambda x: jax.nn.log_softmax(x, axis),
    )
    return jnp.exp(d.pick(*forms)(x))


MAKERS: Final[Makers] = {
    "exp-of-log-softmax": (on(_rows, _exp_of_log, along=1.0, prepare=SIMPLIFIED),) * 2,
    "log-of-softmax": (
        on(_rows, lambda d, x: jnp.log(jax.nn.softmax(x, d.pick(0, 1))), along=1.0, prepare=SIMPLIFIED),
    ),
    "log-of-sum-of-exp": (on(lambda d: d.wide((d.size(1), d.size(1))), _sum_of_exp, along=1.0),),
    "log-of-logistic": (on("floats", lambda d, x: jnp.log(jax.nn.sigmoid(x)), along=1.0),),
    "log-of-one-minus-logistic": (
        on("floats", lambda d, x: jnp.log(1.0 - jax.nn.sigmoid(x)), along=1.0),
        on("floats", lambda d, x: jnp.log1p(-jax.nn.sigmoid(x)), along=1.0),
    ),
    "softplus-written-out": (
        on("floats", lambda d, x: jnp.log(d.either(jnp.add, 1.0, jnp.exp(x))), along=1.0),
        on("floats", lambda d, x: jnp.log1p(jnp.exp(x)), along=1.0),
    ),
    "pick-with-units": (
        lambda d: (lambda x: P(jax.vmap(lambda x, i: x[i]), x, _labels(d, *x.shape), prepare=SIMPLIFIED))(
            d.anything((d.size(2), d.size(2)))
        ),
    ),
    "pick-by-row-number": (_of_row,),
    "add-by-row-number": (_into_row,),
    "pick-of-arithmetic": (_arithmetic, _arithmetic),
    "sum-of-labels": (_summed_labels,),
}

ALIKE: Final[Makers] = {
    "exp-of-log-softmax": (
        on(lambda d: d.wide((4, 4)), lambda d, x: jnp.exp(x - jax.nn.logsumexp(x, 1)), prepare=SIMPLIFIED),
        on(_rows, lambda d, x: jnp.exp(x - jnp.log(jnp.sum(jnp.exp(x), 1, keepdims=True)))),
        on(_rows, lambda d, x: jnp.exp(2 * x - jax.nn.logsumexp(x, 1, keepdims=True)), prepare=SIMPLIFIED),
    ),
    "log-of-softmax": (
        on(
            _rows,
            lambda d, x: jnp.log(jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True)),
            prepare=SIMPLIFIED,
        ),
        on(_rows, lambda d, x: jnp.log(jax.nn.softmax(x) + 1e-3)),
    ),
    "log-of-sum-of-exp": (
        on(_rows, lambda d, x: jnp.log(jnp.sum(jnp.exp2(x), 1))),
        on(_rows, lambda d, x: jax.nn.logsumexp(x, 1)),
    ),
    "log-of-logistic": (on("floats", lambda d, x: jnp.log1p(jax.nn.sigmoid(x))),),
    "log-of-one-minus-logistic": (on("floats", lambda d, x: jnp.log(2.0 - jax.nn.sigmoid(x))),),
    "softplus-written-out": (
        on("floats", lambda d, x: jnp.log1p(jnp.exp(-jnp.abs(x)))),
        on("floats", lambda d, x: jnp.log(2.0 + jnp.exp(x))),
    ),
    "pick-with-units": (
        lambda d: P(jax.vmap(lambda x, i: x[i]), d.floats((3, 5, 2)), _labels(d, 3, 5), prepare=SIMPLIFIED),
    ),
    "pick-by-row-number": (
        lambda d: P(
            lambda x, i: x[jnp.arange(3)[::-1], i], d.floats((3, 5)), _labels(d, 3, 5), prepare=SIMPLIFIED
        ),
    ),
    "add-by-row-number": (
        lambda d: P(
            lambda x, i: x.at[jnp.arange(2), i[:2]].add(1),
            d.floats((3, 5)),
            _labels(d, 3, 5),
            prepare=SIMPLIFIED,
        ),
    ),
    "pick-of-arithmetic": (
        lambda d: P(
            lambda x, i: jnp.take_along_axis(jnp.sort(x, 1), i[:, None], 1),
            d.floats((3, 5)),
            _labels(d, 3, 5),
            prepare=SIMPLIFIED,
        ),
        lambda d: P(
            lambda x, i: jnp.take_along_axis(x - x[:1], np.zeros((3, 5), "int32"), 1),
            d.floats((3, 5)),
            _labels(d, 3, 5),
            prepare=SIMPLIFIED,
        ),
    ),
    "sum-of-labels": (
        lambda d: P(
            lambda x, i: jnp.sum(jnp.ones_like(x).at[jnp.arange(3), i].add(x[:, 0]), 1),
            d.floats((3, 5)),
            _labels(d, 3, 5),
            prepare=SIMPLIFIED,
        ),
    ),
}
