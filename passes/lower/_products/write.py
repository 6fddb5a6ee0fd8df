"""Products in another form: the weight turned, on the left, or with more rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._products.sides import Ints, Product
from lepton_jax.passes.lower._products.unsigned import as_signed, as_unsigned, product_with_codes
from lepton_jax.targets.forms import Form


def arguments(product: Product, form: Form, node: Node, *, pin: Callable[..., Any] | None) -> dict[str, Any]:
    """The static arguments of `write_product`, for a dot_general read as a product."""
    x, precision = product.x, node.params["precision"]
    return {
        "batch": x.sizes(x.batch),
        "rows": x.sizes(x.free),
        "columns": product.weight.sizes(product.weight.free),
        "form": form,
        "x_first": product.x_first,
        "x_order": None if x.is_by_rows or x.is_by_columns else (*x.batch, *x.free, *x.summed),
        "x_by_rows": x.is_by_rows or not x.is_by_columns,
        "pin": pin,
        "precision": precision if product.x_first else _swapped(precision),
        "wide": node.params["preferred_element_type"],
        "dtype": node.result.dtype,
    }


def transposed(x: jax.Array, *, order: Ints, stored: bool, unsigned: bool) -> jax.Array:
    """The array with its dimensions in another order; marked as what is kept of parameters, if asked."""
    turned = lax.transpose(x, order)
    turned = as_unsigned(turned) if unsigned else turned
    kept: jax.Array = store(turned) if stored else turned
    return kept


def turned_and_back(x: jax.Array, *, order: Ints, back: Ints, unsigned: bool) -> jax.Array:
    """The array as it is, made of what is kept of it with its dimensions in another order."""
    kept = transposed(x, order=order, stored=True, unsigned=unsigned)
    return lax.transpose(as_signed(kept) if unsigned else kept, back)


def write_product(
    x: jax.Array,
    weight: jax.Array,
    *,
    batch: Ints,
    rows: Ints,
    columns: Ints,
    form: Form,
    x_first: bool,
    x_order: Ints | None,
    x_by_rows: bool,
    pin: Callable[[jax.Array], jax.Array] | None,
    precision: Any,
    wide: Any,
    dtype: Any,
) -> jax.Array:
    """The product in a form.

    Args:
        x: the activations, [batch, rows, summed] up to a reshape, or [batch, summed, rows].
        weight: the weight, [batch, columns, summed] up to a reshape; [batch, summed, columns] for `plain`;
            uint8 for `unsigned`.
        batch: the sizes of the batch dimensions.
        rows: the sizes of the dimensions that the result has of the activations.
        columns: the sizes of those that it has of the weight.
        form: the form.
        x_first: whether the result has the activations' dimensions first.
        x_order: the order to put the activations' dimensions in first; None: as they are.
        x_by_rows: whether the activations have what is summed over last.
        pin: puts the activations row-major in memory, where they must be.
        precision: of the product, the activations' first where there are two.
        wide: what is summed up in.
        dtype: of the result.
    """
    n = len(batch)
    count, width = math.prod(rows), math.prod(columns)
    inner = x.size // math.prod((*batch, count))
    if x_order is not None:
        x = lax.transpose(x, x_order)
    x = lax.reshape(x, (*batch, count, inner) if x_by_rows else (*batch, inner, count))
    if form.rows > count:
        more = [(0, 0, 0)] * x.ndim
        more[n if x_by_rows else n + 1] = (0, form.rows - count, 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), more)
    if pin is not None:
        x = pin(x)
    by_rows = form.weight_at != "plain"
    matrix = lax.reshape(weight, (*batch, width, inner) if by_rows else (*batch, inner, width))
    turned = form.weight_at in ("turned", "unsigned")
    pair, how = ((matrix, x), _swapped(precision)) if turned else ((x, matrix), precision)
    both = (tuple(range(n)),) * 2
    along = (n + 1 if x_by_rows else n, n + 1 if by_rows else n)
    numbers: Any = (tuple((d,) for d in (along[::-1] if turned else along)), both)
    if form.weight_at == "unsigned":
        y = product_with_codes(matrix, x, by_rows=x_by_rows)
    else:
        y = lax.dot_general(*pair, numbers, precision=how, preferred_element_type=wide)
    if turned and x_first:  # XLA would otherwise turn the product instead of its result
        y = lax.optimization_barrier(y)
    if form.rows > count:
        y = lax.slice_in_dim(y, 0, count, axis=n + turned)
    if turned == x_first:
        y = lax.transpose(y, (*range(n), n + 1, n))
    return lax.reshape(y, (*batch, *rows, *columns) if x_first else (*batch, *columns, *rows)).astype(dtype)


def _swapped(precision: Any) -> Any:
    return precision[::-1] if isinstance(precision, tuple) else precision
