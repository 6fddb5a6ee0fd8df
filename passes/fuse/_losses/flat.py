"""Rows in one dimension: products whose leading dimensions are merged right away, made flat."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import bind, changed, is_free
from lepton_jax.rewrite import PassContext, rewrite
from lepton_jax.rewrite.driver import erase_dead
from lepton_jax.rewrite.replacement import Rewrite, write

RULE: Final = "flat-rows"


def flatten_rows(root: Node, ctx: PassContext) -> list[Node]:
    """Let a product whose rows are flattened right away, work on flat rows; so the products of its gradient.

    reshape(h @ W) → reshape(h) @ W, for h of three and more dimensions. The same products and sums.

    Returns:
        The nodes that make the logits now.
    """
    shape = root.result.shape
    flat = (math.prod(shape[:-1]), shape[-1])
    views = root.result.users()
    plan = _on_flat_rows(root)
    if len(shape) < 3 or plan is None or not views:
        return [root]
    if not all(_is_view(view, root.result.shape, flat) for view in views) or not ctx.fire(RULE, root):
        return [root]
    graph = root.graph
    assert graph is not None
    fresh: list[Node] = []
    for view in views:
        fresh += [n for n in write(plan, view, RULE) if n.op == "dot_general"]
        erase_dead(view)
    for back in [n for n in graph if _is_view(n, flat, shape)]:
        for reader in back.result.users():
            _flatten_reader(reader, back, ctx)
    return fresh


def _is_view(node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    return node.op == "reshape" and node.operands[0].shape == before and node.result.shape == after


def _flatten_reader(node: Node, view: Node, ctx: PassContext) -> None:
    """Let a product read flat rows instead of a view of them."""
    made = _gradient_of_rows(node, view) or _gradient_of_weights(node, view)
    if made is not None and ctx.fire(RULE, node):
        write(made, node, RULE)
        erase_dead(node)


def _on_flat_rows(root: Node) -> Rewrite | None:
    """h @ W for flat rows."""
    (left, right), _ = root.params["dimension_numbers"]
    a, b = root.operands
    if a.ndim != root.result.ndim or b.ndim != 2 or left != (a.ndim - 1,) or not is_free(root):
        return None
    numbers = (((1,), tuple(right)), ((), ()))
    return rewrite(_flat_product, a, b, **changed(root, dimension_numbers=numbers))


def _gradient_of_rows(node: Node, view: Node) -> Rewrite | None:
    """g @ Wᵀ: its rows are reshaped instead of those of g."""
    if node.op != "dot_general" or node.operands[0] is not view.result or not is_free(node):
        return None
    (left, right), (batch, _) = node.params["dimension_numbers"]
    a, b = node.operands
    if batch or left != (a.ndim - 1,) or b.ndim != 2:
        return None
    numbers = (((1,), tuple(right)), ((), ()))
    params = changed(node, dimension_numbers=numbers)
    return rewrite(_reshaped_product, view.operands[0], b, shape=node.result.shape, **params)


def _gradient_of_weights(node: Node, view: Node) -> Rewrite | None:
    """hᵀ @ g over all rows: those of h are flattened."""
    if node.op != "dot_general" or view.result not in node.operands or not is_free(node):
        return None
    contract, (batch, _) = node.params["dimension_numbers"]
    rows = tuple(range(view.result.ndim - 1))
    if (
        batch
        or any(tuple(dims) != rows for dims in contract)
        or any(v.ndim != len(rows) + 1 for v in node.operands)
    ):
        return None
    params = changed(node, dimension_numbers=(((0,), (0,)), ((), ())))
    return rewrite(
        _flat_sums, *(view.operands[0] if v is view.result else v for v in node.operands), **params
    )


def _flat(x: jax.Array) -> jax.Array:
    return x if x.ndim == 2 else lax.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _flat_product(a: jax.Array, b: jax.Array, **params: Any) -> Any:
    return bind(_flat(a), b, **params)


def _reshaped_product(a: jax.Array, b: jax.Array, shape: tuple[int, ...], **params: Any) -> Any:
    return lax.reshape(bind(a, b, **params), shape)


def _flat_sums(a: jax.Array, b: jax.Array, **params: Any) -> Any:
    return bind(_flat(a), _flat(b), **params)
