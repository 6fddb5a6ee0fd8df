"""Sums of products of one activation, as one product: low-rank adapters into the weight beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._absorb.known import Known, wide
from lepton_jax.passes.simplify._absorb.product import Layout, Product, product_of

_RULE: Final = "sum-of-products-into-weight"
_MOST_TERMS: Final = 16

Contract = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class _Term:
    """A product of an activation with one weight, or with one after the other.

    Attributes:
        product: the last product.
        late: the activation.
        weights: one or two.
        contracts: of each product, the axes that it sums over.
    """

    product: Product
    late: Value
    weights: tuple[Value, ...]
    contracts: tuple[Contract, ...]

    @property
    def axes(self) -> list[int]:
        """The summed axes of the activation."""
        return sorted(self.contracts[0][0])


def absorb_sum(root: Node, known: Known) -> bool:
    """Put one product in place of a sum of products of the same activation.

    x @ W + b + (x @ A) @ B → x @ (W + A @ B) + b

    Returns:
        Whether it was done.
    """
    if root.op != "add" or known.is_early(root.result) or known.misplaced(root):
        return False
    values = list(_terms(root))
    terms = {value: term for value in values if (term := _term(value, root, known)) is not None}
    pair = _mergeable(terms, known)
    if pair is None or not known.ctx.fire(_RULE, root):
        return False
    direct, other = pair
    rest = [v for v in values if v not in (direct.product.node.result, other.product.node.result)]
    known.write(
        _RULE,
        root,
        _merged,
        direct.late,
        *direct.weights,
        *other.weights,
        *rest,
        layout=direct.product.layout,
        first=direct.contracts[0],
        others=other.contracts,
    )
    return True


def _terms(root: Node) -> Iterator[Value]:
    """What a tree of additions adds up."""
    stack = [*reversed(root.operands)]
    count = 0
    while stack:
        value = stack.pop()
        count += 1
        inner = value.node
        is_inner = inner is not None and inner.op == "add" and len(value.uses) == 1
        if inner is not None and is_inner and value.shape == root.result.shape and count < _MOST_TERMS:
            stack += [*reversed(inner.operands)]
        else:
            yield value


def _term(value: Value, root: Node, known: Known) -> _Term | None:
    outer = _plain_product(value, root, known)
    if outer is None:
        return None
    contract = outer.node.params["dimension_numbers"][0]
    own: Contract = (tuple(contract[0]), tuple(contract[1]))
    inner = _plain_product(outer.late, root, known)
    if inner is not None:
        contract = inner.node.params["dimension_numbers"][0]
        start = inner.late.ndim - len(contract[0])
        if sorted(own[0]) == list(range(start, outer.late.ndim)):
            before: Contract = (tuple(contract[0]), tuple(contract[1]))
            shifted: Contract = (tuple(axis - start for axis in own[0]), own[1])
            return _Term(outer, inner.late, (inner.weight, outer.weight), (before, shifted))
    return _Term(outer, outer.late, (outer.weight,), (own,))


def _plain_product(value: Value, root: Node, known: Known) -> Product | None:
    """A dot with a weight on the right, without batch axes, that nothing else reads."""
    node = value.node
    if node is None or node.op != "dot_general" or len(value.uses) != 1 or node.context is not root.context:
        return None
    product = product_of(node, known)
    if product is None or product.side != 1 or node.params["dimension_numbers"][1] != ((), ()):
        return None
    return product


def _mergeable(terms: dict[Value, _Term], known: Known) -> tuple[_Term, _Term] | None:
    """Two products of the same activation along the same axes, the first with one weight."""
    for direct in terms.values():
        for other in terms.values():
            if other is direct or len(direct.weights) != 1 or other.late is not direct.late:
                continue
            if other.axes != direct.axes or not known.from_params(*direct.weights, *other.weights):
                continue
            reason = known.why_not(direct.weights[0], direct.product.node)
            if reason is None:
                return direct, other
            known.ctx.miss(_RULE, direct.product.node, reason)
    return None


def _merged(
    late: Any, weight: Any, *values: Any, layout: Layout, first: Contract, others: tuple[Contract, ...]
) -> Any:
    added = values[: len(others)]
    delta = _canonical(added[0], others[0])
    if len(added) == 2:
        left = _inner_last(added[0], others[0], others[1][0])
        right = _canonical_by(added[1], others[1][1])
        count = len(others[1][1])
        dtype = wide(left, right)
        delta = jnp.tensordot(left.astype(dtype), right.astype(dtype), count, precision=lax.Precision.HIGHEST)
    order = _order(weight.ndim, first)
    back = [order.index(axis) for axis in range(weight.ndim)]
    dtype = wide(weight, delta)
    total = (weight.astype(dtype) + jnp.transpose(delta, back).astype(dtype)).astype(weight.dtype)
    result = layout.multiply(late, total)
    for value in values[len(others) :]:
        result = result + value
    return result


def _order(rank: int, contract: Contract) -> list[int]:
    """A weight's axes: those that go with the activation's, in their order, then the others."""
    summed = [mine for _, mine in sorted(zip(*contract, strict=True))]
    return [*summed, *(axis for axis in range(rank) if axis not in summed)]


def _canonical(weight: Any, contract: Contract) -> Any:
    return jnp.transpose(weight, _order(weight.ndim, contract))


def _canonical_by(weight: Any, first: tuple[int, ...]) -> Any:
    return jnp.transpose(weight, [*first, *(axis for axis in range(weight.ndim) if axis not in first)])


def _inner_last(weight: Any, contract: Contract, free: tuple[int, ...]) -> Any:
    """The first of two weights: its other axes last, in the order in which the second sums over them."""
    order = _order(weight.ndim, contract)
    count = len(contract[0])
    return jnp.transpose(weight, [*order[:count], *(order[count:][place] for place in free)])
