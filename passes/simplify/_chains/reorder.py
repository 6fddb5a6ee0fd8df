"""The order of products, and where scalings go."""

from __future__ import annotations

import math
from typing import Final

from lepton_jax.ir.cost import node_cost
from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._chains.emit import multiply
from lepton_jax.passes.simplify._chains.labels import agrees, is_plain_dot
from lepton_jax.passes.simplify._chains.network import Network, collect, is_outer, is_shared
from lepton_jax.passes.simplify._chains.order import Order, best_order
from lepton_jax.passes.simplify._movement.common import bind, changed, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.profit import WORTH, is_fixed, trips_of, why_not_late
from lepton_jax.rewrite.replacement import Rewrite
from lepton_jax.rewrite.rule import Outcome

_MOST_ROOTS: Final = 6
_MOST_READERS: Final = 16

_INNER: Final = frozenset({"dot_general", "transpose", "mul", "div", "neg"})


@movement_rule("dot_general", level="reassociate", must_pay=True)
def order_of_products(node: Node, ctx: PassContext) -> Outcome:
    """Products of matrices in the cheapest order.

    (A @ B) @ v → A @ (B @ v), (x * s) @ W → x @ (s * W), (u vᵀ) @ x → u * (vᵀ @ x).

    Takes the whole tree of products, transposes and scalings (by numbers, and by what is spread over
    some dimensions) below a product, batch dimensions too, as one network of labelled arrays, and
    looks for the cheapest order by dynamic programming over its connected parts, with the target's
    rates. What others read too is not taken apart; neither are products of another dtype or
    precision. In a loop, what is the same on every iteration counts once: (Aᵀ @ A) @ c stays, since
    XLA computes Aᵀ @ A before the loop. A weight that `prepare` has scaled stays so, however few rows it is
    multiplied with. Numbers that are finite might overflow in another order only where products of some of
    the matrices come near the limit of float32; float16 is left alone.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only chains`.
    """
    if not any(_is_inner(value) for value in node.operands) or not is_plain_dot(node):
        return None
    if _belongs_to_outer(node):
        return None
    network = collect(node)
    order = _order(network, node, ctx)
    if order is None or order.seconds >= WORTH * order.before:
        return None
    made = _write(network, order, node)
    # Of two matrices and what scales them; factors of a larger matrix take less room than their product.
    if _matrices(network) <= 2 and (reason := why_not_late(made, node, ctx, in_line=True)):
        ctx.miss("order-of-products", node, reason)
        return None
    return made


@movement_rule("dot_general", level="reassociate")
def order_of_shared_products(node: Node, ctx: PassContext) -> Outcome:
    """(A @ B) @ v and (A @ B).T @ w → A @ (B @ v) and B.T @ (A.T @ w)

    Where several products read one, as in the gradient of a chain with respect to all of it: each does
    without it if that is less work for all of them together. In all else as `order-of-products`.
    """
    if not any(v.node is not None and is_shared(v.node) for v in node.operands) or not is_plain_dot(node):
        return None
    if _belongs_to_outer(node):
        return None
    together = _together(node)
    if together is None:
        return None
    orders = {root: _order(network, root, ctx) for root, network in together.items()}
    after = sum(math.inf if order is None else order.seconds for order in orders.values())
    nodes = list(dict.fromkeys(n for network in together.values() for n in network.nodes))
    trips = trips_of(node)
    before = sum(
        ctx.seconds(node_cost(n)) / (trips if trips > 1 and all(map(is_fixed, n.operands)) else 1)
        for n in nodes
    )
    order = orders[node]
    if order is None or after >= WORTH * before:
        return None
    return _write(together[node], order, node)


@movement_rule("dot_general", level="reassociate")
def product_turned_round(node: Node, ctx: PassContext) -> Outcome:
    """v @ A.T → A @ v where A @ v is computed too, so that it is computed once

    As in a chain and its gradient, each in its best order. Of a product in which the first operand has no
    dimension of its own, so that the result is the same either way.
    """
    (left, right), batch = node.params["dimension_numbers"]
    a, b = node.operands
    if a.ndim != len(left) + len(batch[0]) or b.ndim == len(right) + len(batch[1]) or not is_plain_dot(node):
        return None
    turned = {**node.params, "dimension_numbers": ((right, left), batch[::-1])}
    fewer = min(a, b, key=lambda value: len(value.uses))
    for other, place in list(fewer.uses)[:_MOST_READERS]:
        if (
            other.op == "dot_general"
            and other.operands[place - 1] is (b if fewer is a else a)
            and other.operands[0] is b
            and other.context is node.context
            and dict(other.params) == turned
        ):
            return rewrite(bind, b, a, **changed(other))
    return None


def _matrices(network: Network) -> int:
    """How many leaves are more than scalings of another one, which has all their dimensions and more."""
    names = [set(leaf.names) for leaf in network.leaves]
    return sum(not any(each < other for other in names) for each in names)


def _together(node: Node) -> dict[Node, Network] | None:
    """The networks of all products that share products with one; None if they are too many."""
    found: dict[Node, Network] = {}
    waiting = [node]
    while waiting:
        root = waiting.pop()
        while _belongs_to_outer(root):
            ((root, _),) = root.result.uses
        if root in found:
            continue
        if len(found) == _MOST_ROOTS:
            return None
        found[root] = collect(root, opens=True)
        waiting += [user for shared in found[root].shared for user in shared.result.users()]
    return found


def _order(network: Network, root: Node, ctx: PassContext) -> Order | None:
    if len(network.leaves) + len(network.factors) < 3 or not network.is_sound():
        return None
    return best_order(network, root, ctx)


def _write(network: Network, order: Order, node: Node) -> Rewrite:
    numbers = [factor.value for factor in network.factors if factor.value is not None]
    return rewrite(
        multiply,
        *(leaf.value for leaf in network.leaves),
        *numbers,
        labels=tuple(leaf.labels for leaf in network.leaves),
        output=network.output,
        plan=order.plan,
        factors=tuple(factor.op for factor in network.factors),
        places=order.places,
        precision=node.params.get("precision"),
        accumulate=node.params.get("preferred_element_type"),
    )


def _is_inner(value: Value) -> bool:
    node = value.node
    return node is not None and node.op in _INNER and (len(value.uses) == 1 or is_outer(node))


def _belongs_to_outer(node: Node) -> bool:
    """Whether another product takes this one into its own network."""
    if len(node.result.uses) != 1:
        return False
    ((user, _),) = node.result.uses
    return user.op == "dot_general" and is_plain_dot(user) and agrees(node, user)


RULES: Final[tuple[Rule, ...]] = (order_of_products, order_of_shared_products, product_turned_round)
