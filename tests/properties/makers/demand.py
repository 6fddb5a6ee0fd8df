"""Parts and sums of products."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from tests.properties._draw import SIMPLIFIED, Draw, Makers, P, Program

PASS: Final = "demand"

_NEAR: Final = "sums of the factors may overflow where the products do not, as documented"
_DROPS: Final = "what is not read is not computed"


def _pair(d: Draw, square: bool = False, least: int = 1) -> tuple[Any, Any]:
    m, k, n = d.size(least), d.size(least), d.size(least)
    return d.wide((m, k)), d.wide((k, m if square else n))


def _summed(d: Draw) -> Program:
    axes = d.pick((0,), (1,), (0, 1))
    return P(lambda a, b: lax.reduce_sum(a @ b, axes), *_pair(d), overflows=_NEAR)


def _summed_batches(d: Draw) -> Program:
    b, m, k, n = (d.size(2) for _ in range(4))
    axes = d.pick((0,), (1,), (0, 2), (0, 1, 2))
    return P(lambda x, y: lax.reduce_sum(x @ y, axes), d.wide((b, m, k)), d.wide((b, k, n)), overflows=_NEAR)


def _summed_shifted(d: Draw) -> Program:
    axes, op = d.pick((0,), (1,), (0, 1)), d.pick(jnp.add, jnp.subtract)
    a, b = _pair(d)
    shift = d.like((a.shape[0], b.shape[1]), a.dtype)
    return P(lambda a, b, c: lax.reduce_sum(d.either(op, a @ b, c), axes), a, b, shift, overflows=_NEAR)


def _diagonal(d: Draw) -> Program:
    k = d.pick(0, 0, 1, -1)
    return P(lambda a, b: jnp.diagonal(a @ b, k), *_pair(d, True, 3), prepare=SIMPLIFIED, drops=_DROPS)


def _trace(d: Draw) -> Program:
    k = d.pick(0, 0, 1, -1)
    return P(lambda a, b: jnp.trace(a @ b, k), *_pair(d, True, 3), prepare=SIMPLIFIED, drops=_DROPS)


def _image(d: Draw) -> tuple[Any, Any]:
    channels, width = d.size(1, 3), d.size(1, 3)
    return d.wide((d.size(1, 3), channels, d.size(5, 8))), d.wide((d.size(1, 3), channels, width))


def _summed_convolution(d: Draw) -> Program:
    axes, padding = d.pick((0,), (1,), (2,), (0, 2), (0, 1, 2)), d.pick("SAME", "VALID")
    return P(
        lambda x, w: lax.reduce_sum(lax.conv_general_dilated(x, w, (1,), padding), axes),
        *_image(d),
        overflows=_NEAR,
    )


def _entries(d: Draw) -> Program:
    a, b = _pair(d)
    places = d.places((a.shape[0], 1), b.shape[1])
    return P(
        lambda a, b, i: jnp.take_along_axis(a @ b, i, 1, mode="clip"),
        a,
        b,
        jnp.asarray(places),
        prepare=SIMPLIFIED,
        drops=_DROPS,
    )


def _lines(d: Draw) -> Program:
    n, m, k = d.size(2), d.size(2), d.size(1)
    a, b = d.wide((3, n, k)), d.wide((3, k, m))
    shared = d.pick(True, False)
    forms = (lambda a, b, i: (a @ b)[i], lambda a, b, i: (a @ b)[:, i], lambda a, b, i: (b.T @ a.T)[:, i])
    form = forms[0] if shared else d.pick(*forms)
    places = jnp.asarray(d.places((3,), n if form is not forms[1] else m, outside=True))
    over = (0, None, 0) if shared else 0
    args = (a, d.wide((k, m))) if shared else (a, b)
    return P(jax.vmap(form, over), *args, places, prepare=SIMPLIFIED, drops=_DROPS)


def _rows_of_each(d: Draw) -> Program:
    b, n, k, m = d.size(2), d.size(2), d.size(1), d.size(2)
    h, w = d.wide((b, 4 * n, k)), d.wide((k, m))
    forms = (
        lambda h, w, i: jnp.take_along_axis(h @ w, i[:, None, None], 1),
        lambda h, w, i: jnp.take_along_axis(h @ w, i[:, None, None], 1, mode="fill", fill_value=2.0),
        lambda h, w, i: (h @ w)[jnp.arange(b), i],
    )
    return P(d.pick(*forms), h, w, jnp.asarray(d.places((b,), 4 * n)), prepare=SIMPLIFIED, drops=_DROPS)


def _summed_scaled(d: Draw) -> Program:
    a, b = _pair(d, least=2)
    rows, columns = d.like((a.shape[0], 1), a.dtype), d.like((1, b.shape[1]), a.dtype)
    forms = (
        lambda a, b, r, c: lax.reduce_sum(r * (a @ b), (0,)),
        lambda a, b, r, c: lax.reduce_sum((a @ b) * c * 3, (0, 1)),
        lambda a, b, r, c: lax.reduce_sum(-((a @ b) * r * c), (1,)),
    )
    return P(d.pick(*forms), a, b, rows, columns, prepare=SIMPLIFIED, overflows=_NEAR)


LEVELS: Final[Any] = {"rows-by-number": "reassociate"}

MAKERS: Final[Makers] = {
    "rows-by-number": (_lines, _lines, _rows_of_each, _rows_of_each),
    "sum-of-scaled-dot": (_summed_scaled, _summed_scaled),
    "sum-of-dot": (_summed, _summed_batches),
    "sum-of-shifted-dot": (_summed_shifted,),
    "diagonal-of-dot": (_diagonal,),
    "trace-of-dot": (_trace,),
    "sum-of-convolution": (_summed_convolution,),
    "entries-of-dot": (_entries,),
}

ALIKE: Final[Makers] = {
    "rows-by-number": (
        lambda d: P(
            jax.vmap(lambda a, b, i: (lambda y: (y[i], y))(a @ b)),
            *(d.wide((3, 4, 5)), d.wide((3, 5, 6)), jnp.array([0, 1, 2])),
            prepare=SIMPLIFIED,
        ),
        lambda d: P(
            jax.vmap(lambda a, i: jnp.tanh(a)[i]), d.wide((3, 4, 5)), jnp.array([0, 1, 2]), prepare=SIMPLIFIED
        ),
    ),
    "sum-of-dot": (
        lambda d: P(lambda a, b: (lambda y: (jnp.sum(y, 0), y))(a @ b), *_pair(d)),
        lambda d: P(
            lambda a, b: jnp.sum(a @ b, 0), d.floats((2, 3), "bfloat16"), d.floats((3, 4), "bfloat16")
        ),
        lambda d: P(lambda a, b: jnp.max(a @ b, 0), *_pair(d)),
    ),
    "sum-of-scaled-dot": (
        lambda d: P(lambda a, b: jnp.sum((a @ b) * (a @ b), 0), *_pair(d, least=2)),
        lambda d: P(lambda a, b: (lambda y: (jnp.sum(2 * y, 0), y))(a @ b), *_pair(d)),
    ),
    "sum-of-shifted-dot": (lambda d: P(lambda a, b: jnp.sum(a @ b * b[0], 0), *_pair(d)),),
    "diagonal-of-dot": (
        lambda d: P(lambda a, b: (lambda y: (jnp.diagonal(y), y))(a @ b), *_pair(d, True, 2)),
    ),
    "trace-of-dot": (lambda d: P(lambda a, b: jnp.sum(jnp.tril(a @ b)), *_pair(d, True, 2)),),
    "sum-of-convolution": (
        lambda d: P(lambda x, w: jnp.max(lax.conv_general_dilated(x, w, (1,), "SAME"), 0), *_image(d)),
        lambda d: P(
            lambda x, w: (lambda y: (jnp.sum(y, 0), y))(lax.conv_general_dilated(x, w, (1,), "SAME")),
            *_image(d),
        ),
    ),
    "entries-of-dot": (
        lambda d: P(
            lambda a, b, i: (lambda y: (jnp.take_along_axis(y, i, 1), y))(a @ b),
            d.wide((3, 2)),
            d.wide((2, 5)),
            jnp.asarray(d.places((3, 1), 5)),
            prepare=SIMPLIFIED,
        ),
    ),
}
