"""Stacked small products as one batched product."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.fuse._batching.alike import Alike, run_alike
from lepton_jax.passes.simplify._movement.common import is_free, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_FEWEST: Final = 4
_FEWEST_SHARED: Final = 8
"""How many products must be alike: of own operands or with large weights in common, and with small ones."""

_LEAST_WORK: Final = 2**12
_MOST_WORK_SHARED: Final = 2**16
_MOST_WORK: Final = 2**27
"""Multiplications: of all of them together at least, of one with a common operand that is copied for a
batched product, and of one at most."""

_MOST_ROWS: Final = 64
"""Rows from which on reading common weights once instead of each time saves nothing."""


@movement_rule("stack", "concatenate", level="reassociate", backends=("cpu", "gpu"))
def stacked_products(node: Node, ctx: PassContext) -> Outcome:
    """stack([f(x[i] @ w[i]) for i in range(k)]) → f of one batched product

    Where all k are computed alike from parts, side by side, of the same arrays, or from arrays that all
    share; whatever stands around the products is batched with them. Also for concatenations. Separate weights
    are not stacked for it: that takes longer than it saves. From four products on, of moderate size; with an
    operand in common from eight small ones. About 3× for 32 products of 16×64 with 64×64
    (`python benchmarks/rewrites.py --only batching`).
    """
    values = tuple(node.operands)
    if len(values) < _FEWEST or not is_free(node) or not _may_be_alike(values):
        return None
    alike = Alike(node.context)
    if alike.add(values) is None or not alike.products:
        return None
    reason = _why_not(alike, len(values), node)
    if reason is not None:
        ctx.miss("stacked-products", node, reason)
        return None
    axis = int(node.params["axis"] if node.op == "stack" else node.params["dimension"])
    return rewrite(
        _stacked, *alike.leaves, axis=axis, shape=node.result.shape, program=_program(alike, len(values))
    )


def _may_be_alike(values: tuple[Value, ...]) -> bool:
    first, second = values[0].node, values[1].node
    return first is not None and second is not None and first is not second and first.op == second.op


def _why_not(alike: Alike, count: int, node: Node) -> str | None:
    if not alike.is_private({node}):
        return "what they are made of is also read elsewhere"
    products = alike.products.values()
    if sum(product.work for product in products) * count < _LEAST_WORK:
        return "there is little work in the products"
    if any(product.work > _MOST_WORK for product in products):
        return "the products are large"
    shared = [product for product in products if product.rows]
    if count < _FEWEST_SHARED and any(product.work <= _MOST_WORK_SHARED for product in shared):
        return "small products with an operand in common are few"
    large = [product for product in shared if product.work > _MOST_WORK_SHARED]
    if any(product.is_left or product.rows > _MOST_ROWS for product in large):
        return "products with an operand in common are large and have many rows each"
    return None


def _program(alike: Alike, count: int) -> tuple[tuple[str, Any], ...]:
    return (
        ("steps", tuple(alike.steps)),
        ("parts", tuple(alike.parts)),
        ("sizes", tuple(alike.sizes)),
        ("spread", alike.spread(_MOST_WORK_SHARED)),
        ("count", count),
    )


def _stacked(*leaves: jax.Array, axis: int, shape: tuple[int, ...], program: Any) -> jax.Array:
    found = run_alike(*leaves, **dict(program))
    return lax.reshape(jnp.moveaxis(found, 0, axis), shape)


RULES: Final[tuple[Rule, ...]] = (stacked_products,)
