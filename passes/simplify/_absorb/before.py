"""Scales and shifts in front of products, into the weights of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import jax.numpy as jnp

from lepton_jax.ir.graph import RETURN, Node, Value
from lepton_jax.passes.simplify._absorb.after import chain_after, compacted
from lepton_jax.passes.simplify._absorb.known import Known, compact_shape, is_float, wide
from lepton_jax.passes.simplify._absorb.product import Layout, Product, product_of
from lepton_jax.passes.simplify._absorb.steps import Shape, Step, moved, moved_shape, step_of
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.driver import erase_dead
from lepton_jax.rewrite.replacement import write_before

_RULE: Final = "scale-and-shift-into-readers"
_OPS: Final = frozenset({"mul", "div", "add", "sub"})
_MOST_READERS: Final = 64

Path = tuple[Step, ...]


@dataclass
class _Readers:
    """The products that read a value, with what moves its elements on the way to each.

    Attributes:
        scales: whether what is absorbed is a scale, which passes through other factors.
        found: the products and the ways to them.
        seen: the operations that were passed: each may be reached once.
        is_near: whether a product with a weight was reached.
        bare: products without a bias behind them that could take a shift in: one gets the addition that the
            others save.
    """

    known: Known
    scales: bool
    found: list[tuple[Product, Path]] = field(default_factory=list)
    seen: set[Node] = field(default_factory=set)
    is_near: bool = False
    bare: int = 0

    def why_not(self, value: Value, shape: Shape, path: Path) -> str | None:
        """Why a coefficient cannot go into all that reads a value, or None."""
        for user, position in list(value.uses):
            if user in self.seen or len(self.seen) > _MOST_READERS:
                return f"{user.op} reads it more than once"
            self.seen.add(user)
            reason = self._why_not(user, position, shape, path)
            if reason is not None:
                return reason
        return None

    def _why_not(self, user: Node, position: int, shape: Shape, path: Path) -> str | None:
        if user.op == RETURN:
            return "it is a result itself"
        if user.op in ("dot_general", "conv_general_dilated"):
            return self._product(user, position, shape, path)
        step = step_of(user)
        if step is not None:
            return self.why_not(user.result, moved_shape(shape, step), (*path, step))
        is_factor = user.op in ("mul", "neg") or (user.op == "div" and position == 0)
        if self.scales and is_factor and user.result.ndim == len(shape):
            return self.why_not(user.result, shape, path)
        return f"{user.op} reads it"

    def _product(self, user: Node, position: int, shape: Shape, path: Path) -> str | None:
        product = product_of(user, self.known)
        if product is None or product.side == position:
            return f"{user.op} reads it with something that is not a weight"
        self.is_near = True
        if not product.takes_inside(shape):
            return f"it varies along axes that {user.op} does not sum over"
        if not self.scales and not product.sees_all():
            return f"{user.op} pads it"
        self.found.append((product, path))
        stays = self.known.why_not(product.weight, user)
        if self.scales:
            return stays
        links = chain_after(product, self.known).links
        if links and (links[0][0] in ("add", "sub", "from") or stays is None):
            return None
        self.bare += 1
        if self.bare > 1:
            return f"no bias follows {user.op} that could take it in"
        return None


def absorb_before(node: Node, known: Known) -> bool:
    """Take a scale or shift off a value, and into the weight and bias of each product that reads it.

    (x * s) @ W → x @ (s * W);  (x + b) @ W → x @ W + b @ W

    Returns:
        Whether it was done.
    """
    if node.op not in _OPS or known.is_early(node.result) or known.misplaced(node):
        return False
    left, right = node.operands
    swapped = known.is_early(left)
    value, coefficient = (right, left) if swapped else (left, right)
    if not known.is_early(coefficient) or not is_float(value) or (swapped and node.op in ("div", "sub")):
        return False
    is_scale = node.op in ("mul", "div")
    shape = compact_shape(coefficient, node.result.ndim)
    readers = _Readers(known, is_scale)
    reason = readers.why_not(node.result, shape, ())
    if reason is None and readers.bare == len(readers.found) > 0:
        reason = "no bias follows that could take it in"
    if reason is not None or not readers.found:
        if readers.is_near:
            known.ctx.miss(_RULE, node, reason or "nothing reads it")
        return False
    weights = [product.weight for product, _ in readers.found]
    if not known.from_params(coefficient, *weights) or not known.ctx.fire(_RULE, node):
        return False
    for product, path in readers.found:
        known.write(
            _RULE,
            product.node,
            _taken_in,
            *(product.late, product.weight, coefficient),
            layout=product.layout,
            kind=node.op,
            shape=shape,
            path=path,
        )
    _take_off(node, value)
    return True


def _taken_in(
    late: Any, weight: Any, coefficient: Any, *, layout: Layout, kind: str, shape: Shape, path: Path
) -> Any:
    dtype = wide(weight, coefficient)
    each = compacted(coefficient.astype(dtype), shape)
    for step in path:
        each = moved(each, step)
    each = layout.inside(each, weight)
    scaled = weight.astype(dtype) / each if kind == "div" else weight.astype(dtype) * each
    if kind in ("mul", "div"):
        return layout.multiply(late, scaled.astype(weight.dtype))
    result = layout.multiply(late, weight)
    shift = layout.summed(scaled, result.ndim).astype(result.dtype)
    return result + shift if kind == "add" else result - shift


def _take_off(node: Node, value: Value) -> None:
    """Let what read a scaled or shifted value read the value itself."""
    if value.shape != node.result.shape:
        for user, position in list(node.result.uses):
            full = user.op == "mul" and user.operands[1 - position].shape == user.result.shape
            if full and value.ndim in (0, user.result.ndim):
                user.set_operand(position, value)
    if node.result.uses and value.shape != node.result.shape:
        (value,) = write_before(rewrite(_spread, value, shape=node.result.shape), node, _RULE)
    node.result.replace_uses(value)
    erase_dead(node)


def _spread(value: Any, *, shape: Shape) -> Any:
    return jnp.broadcast_to(value, shape)
