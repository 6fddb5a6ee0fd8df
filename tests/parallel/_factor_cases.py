"""Functions with one node of a primitive, arguments, the primitive's rule in letters, and its linear sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.parallel._factor_arrays import (
    DEPTH,
    IMAGE,
    INTS,
    MASK,
    ONE_ARRAY,
    ROWS,
    TABLE,
    Case,
    V,
    X,
    Y,
    real,
    whole,
)
from tests.parallel._pointwise_cases import made, other_pointwise, pointwise


def movement() -> list[Case]:
    """Elements that only go elsewhere."""
    cube, image = real(4, 6, 2), real(2, 6, 4)
    return [
        ("transpose", lambda x: lax.transpose(x, (2, 0, 1)), (cube,), "(abc) -> (cab)", [{0}]),
        ("rev", lambda x: lax.rev(x, (0,)), (X,), "(ab) -> (ab) whole a", [{0}]),
        ("broadcast_in_dim", lambda v: lax.broadcast_in_dim(v, (6, 4, 2), (1,)), (V,), "(b) -> (abc)", [{0}]),
        (
            "broadcast_in_dim",
            lambda x: lax.broadcast_in_dim(x, (4, 6), (0, 1)),
            (real(4, 1),),
            "(a-) -> (ab)",
            [{0}],
        ),
        ("squeeze", lambda x: lax.squeeze(x, (1,)), (real(4, 1, 6),), "(a-b) -> (ab)", [{0}]),
        ("reshape", lambda x: x.reshape(24), (X,), "(ab) -> ([ab])", [{0}]),
        ("reshape", lambda x: x.reshape(2, 2, 1, 6), (X,), "([ab]c) -> (ab-c)", [{0}]),
        ("reshape", lambda x: x.reshape(3, 8), (real(6, 4),), "([ab]c) -> (a[bc])", [{0}]),
        ("reshape", lambda x: x.reshape(6, 2), (real(4, 3),), "([ab]c) -> ([ad]e) whole bcde", [{0}]),
        ("reshape", lambda x: x.reshape(3, 4), (real(4, 3),), "(ab) -> (cd) whole abcd", [{0}]),
        ("reshape", lambda x: x.reshape(2, 24), (image,), "(abc) -> (a[bc])", [{0}]),
        ("tile", lambda x: lax.tile(x, (2, 1)), (X,), "(bc) -> ([ab]c)", [{0}]),
        ("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, np.int32), (X,), ONE_ARRAY, []),
        (
            "bitcast_convert_type",
            lambda x: lax.bitcast_convert_type(x, np.int16),
            (X,),
            "(ab) -> (abc) whole c",
            [],
        ),
    ]


def products() -> list[Case]:
    """Dots and convolutions."""

    def conv(**options: Any) -> Callable[..., Any]:
        return lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", **options)

    batched = (((2,), (1,)), ((0,), (0,)))
    counts = np.array([1, 3, 4], np.int32)
    both = [{0}, {1}]
    return [
        ("dot_general", lax.dot, (X, real(6, 2)), "(ac, cb) -> (ab) add c", both),
        ("dot_general", lax.dot, (V, V), "(a, a) -> (()) add a", both),
        (
            "dot_general",
            lambda x, y: lax.dot_general(x, y, batched),
            (real(2, 4, 6), real(2, 6, 8)),
            "(abd, adc) -> (abc) add d",
            both,
        ),
        (
            "ragged_dot_general",
            lax.ragged_dot,
            (real(8, 4), real(3, 4, 6), counts),
            "(ad, bdc, e) -> (ac) add d whole abe",
            both,
        ),
        (
            "conv_general_dilated",
            conv(),
            (IMAGE, DEPTH),
            "(acdg, bceh) -> (abfi) add c whole defghi",
            both,
        ),
        ("conv_general_dilated", conv(), (IMAGE, real(8, 4, 1, 1)), "(acde, bc--) -> (abde) add c", both),
        (
            "conv_general_dilated",
            conv(feature_group_count=2),
            (IMAGE, real(8, 2, 3, 1)),
            "(b[ad]eh, [ac]df-) -> (b[ac]gh) add d whole efg",
            both,
        ),
        (
            "conv_general_dilated",
            conv(batch_group_count=2),
            (IMAGE, real(8, 4, 1, 1)),
            "([ab]def, [ac]d--) -> (b[ac]ef) add d",
            both,
        ),
    ]


def reductions() -> list[Case]:
    """Reductions, and what goes along a dimension."""
    window = ((1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, *window)

    def product(x: Any) -> Any:
        return lax.reduce(x, np.float32(1), lambda a, b: a * b + 0 * a, (1,))

    return [
        ("reduce_sum", lambda x: x.sum(1), (X,), "(ab) -> (a) add b", [{0}]),
        ("reduce_prod", lambda x: x.prod(1), (X,), "(ab) -> (a) mul b", []),
        ("reduce_max", lambda x: x.max(1), (X,), "(ab) -> (a) max b", []),
        ("reduce_min", lambda x: x.min(0), (X,), "(ab) -> (b) min a", []),
        ("reduce_and", lambda x: x.all(1), (MASK,), "(ab) -> (a) and b", []),
        ("reduce_or", lambda x: x.any(1), (MASK,), "(ab) -> (a) or b", []),
        ("argmax", lambda x: lax.argmax(x, 1, np.int32), (X,), "(ab) -> (a) whole b", []),
        ("reduce", product, (X,), "(ab, ()) -> (a) whole b", []),
        ("cumsum", lambda x: lax.cumsum(x, 1), (X,), "(ab) -> (ab) whole b", [{0}]),
        ("cummax", lambda x: lax.cummax(x, 0), (X,), "(ba) -> (ba) whole b", []),
        ("sort", lambda x, i: lax.sort((x, i), dimension=1), (X, INTS), "(ab, ab) -> (ab, ab) whole b", []),
        ("top_k", lambda x: lax.top_k(x, 2), (X,), "(ab) -> (ac, ac) whole bc", []),
        ("fft", lambda x: jnp.fft.fft(x), (X + 0j,), "(ab) -> (ab) whole b", [{0}]),
        ("fft", lambda x: jnp.fft.rfft(x), (X,), "(ab) -> (ac) whole bc", [{0}]),
        (
            "reduce_window_sum",
            lambda x: lax.reduce_window(x, np.float32(0), lax.add, *window),
            (IMAGE,),
            "(abcd) -> (abef) whole cdef",
            [{0}],
        ),
        ("reduce_window_max", pool, (IMAGE,), "(abcd) -> (abef) whole cdef", []),
        (
            "select_and_scatter_add",
            lambda x, g: jax.vjp(pool, x)[1](g)[0],
            (IMAGE, real(4, 4, 3, 3)),
            "(abcd, abef) -> (abef) whole cdef",
            [{0}],
        ),
    ]


def slicing() -> list[Case]:
    """Parts of arrays."""
    zeros = jnp.zeros
    return [
        ("slice", lambda x: x[1:3], (X,), "(ac) -> (bc) whole ab", [{0}]),
        (
            "slice",
            lambda x: lax.slice(x, (0, 0), (1, 6), (1, 2)),
            (real(1, 6),),
            "(-a) -> (-b) whole ab",
            [{0}],
        ),
        (
            "dynamic_slice",
            lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 6)),
            (X, 1),
            "(ac, (), ()) -> (bc) whole ab",
            [{0}],
        ),
        (
            "dynamic_update_slice",
            lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 0)),
            (X, real(2, 6), 1),
            "(ac, bc, (), ()) -> (ac) whole ab",
            [{0, 1}],
        ),
        (
            "dynamic_update_slice",
            lambda u, i: lax.dynamic_update_slice(zeros((4, 6)), u, (i, 0)),
            (real(2, 6), 1),
            "(ac, bc, (), ()) -> (ac) whole ab",
            [{0, 1}, {1}],
        ),
        (
            "pad",
            lambda x: lax.pad(x, 0.0, ((1, -1, 1), (0, 0, 0))),
            (X,),
            "(ac, ()) -> (bc) whole ab",
            [{0, 1}, {0}],
        ),
        (
            "pad",
            lambda x: lax.pad(x, 2.0, ((0, 0, 0), (1, 0, 0))),
            (X,),
            "(ab, ()) -> (ac) whole bc",
            [{0, 1}],
        ),
        (
            "concatenate",
            lambda x, y: lax.concatenate((x, y), 0),
            (X, Y),
            "(ba, ca) -> (da) whole bcd",
            [{0, 1}],
        ),
        (
            "concatenate",
            lambda x: lax.concatenate((x, zeros((2, 6))), 0),
            (X,),
            "(ba, ca) -> (da) whole bcd",
            [{0, 1}, {0}],
        ),
        ("split", lambda x: lax.split(x, (2, 4), 1), (X,), "(ab) -> (ac, ad) whole bcd", [{0}]),
    ]


def indexing() -> list[Case]:
    """Gather and scatter: tables, rows of batches, windows."""

    def take(mode: str, **options: Any) -> Callable[..., Any]:
        return lambda t, i: t.at[i].get(mode=mode, wrap_negative_indices=False, **options)

    def put(how: str, base: Any = None) -> Callable[..., Any]:
        def fun(*args: Any) -> Any:
            table, rows, new = args if base is None else (base(), *args)
            return getattr(table.at[rows], how)(new, wrap_negative_indices=False, mode="drop")

        return fun

    def each(x: Any, i: Any) -> Any:
        return jax.vmap(lambda row, at: row.at[at].get(mode="clip", wrap_negative_indices=False))(x, i)

    def each_added(x: Any, i: Any, new: Any) -> Any:
        return jax.vmap(lambda row, at, v: row.at[at].add(v, wrap_negative_indices=False))(x, i, new)

    updates = real(4, 3, 6)
    add = "(cd, ab-, abd) -> (cd) add ab"
    window = lax.GatherDimensionNumbers((1, 2), (), (0,))
    return [
        ("gather", take("clip"), (TABLE, ROWS), "(cd, ab-) -> (abd) add c", [{0}]),
        ("gather", take("fill"), (TABLE, ROWS), "(cd, ab-) -> (abd) add c", [{0}]),
        ("gather", take("fill", fill_value=2.0), (TABLE, ROWS), "(cd, ab-) -> (abd) add c", []),
        ("gather", each, (X, whole(4, 3, high=6)), "(ac, ab-) -> (ab) add c", [{0}]),
        (
            "gather",
            lambda t, i: lax.gather(t, i, window, (2, 6), mode="clip"),
            (TABLE, whole(4, 1, high=6)),
            "(bd, a-) -> (acd) whole bc",
            [{0}],
        ),
        ("scatter-add", put("add"), (jnp.asarray(TABLE), ROWS, updates), add, [{0, 2}]),
        ("scatter-add", put("add", lambda: jnp.zeros((8, 6))), (ROWS, updates), add, [{0, 2}, {2}]),
        ("scatter-mul", put("mul"), (jnp.asarray(TABLE), ROWS, updates), add.replace("add", "mul"), [{0}]),
        ("scatter-max", put("max"), (jnp.asarray(TABLE), ROWS, updates), add.replace("add", "max"), []),
        (
            "scatter",
            put("set"),
            (jnp.asarray(TABLE), np.arange(4), real(4, 6)),
            "(bc, a-, ac) -> (bc) whole a",
            [{0, 2}],
        ),
        (
            "scatter-add",
            each_added,
            (X, whole(4, 3, high=6), real(4, 3)),
            "(ac, ab-, ab) -> (ac) add b",
            [{0, 2}],
        ),
    ]


FAMILIES: dict[str, Callable[[], list[Case]]] = {
    "pointwise": pointwise,
    "other pointwise": other_pointwise,
    "movement": movement,
    "products": products,
    "reductions": reductions,
    "slicing": slicing,
    "indexing": indexing,
    "made": made,
}
