"""A tree of products, transposes and scalings as one network of labelled arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._chains.labels import Labels, agrees, is_plain_dot, operand_labels

MOST_LEAVES: Final = 12

_MOST_READERS: Final = 4

Plan = int | tuple["Plan", "Plan"]
"""Which leaves are multiplied with which first: the number of a leaf, or a pair of plans."""

Label = int | None
"""None marks a dimension of size one that is spread over a larger one."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """An array of the network and the labels of its dimensions."""

    value: Value
    labels: tuple[Label, ...]

    @property
    def names(self) -> Labels:
        """The labels that are not None."""
        return tuple(label for label in self.labels if label is not None)


@dataclass(frozen=True, slots=True)
class Factor:
    """A number by which the whole product is multiplied (`mul`), divided (`div`), or its sign (`neg`).

    Attributes:
        names: the labels of the array that it is applied to in the program.
    """

    op: str
    value: Value | None
    names: Labels


@dataclass(slots=True)
class Network:
    """Arrays whose product, summed over every label that is not in `output`, is the root's result.

    Attributes:
        sizes: the length of each label.
        plan: the order in which the program multiplies.
        nodes: the operations that were taken in.
        shared: those of them that several products read.
        opens: whether products are taken in that other products read too.
    """

    output: Labels
    leaves: list[Leaf] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    plan: Plan = 0
    nodes: dict[Node, None] = field(default_factory=dict)
    shared: list[Node] = field(default_factory=list)
    opens: bool = False

    def is_sound(self) -> bool:
        """Whether every summed label connects leaves and every label of the result is in one."""
        count: dict[int, int] = {}
        for leaf in self.leaves:
            for name in leaf.names:
                count[name] = count.get(name, 0) + 1
        summed = all(n > 1 for name, n in count.items() if name not in self.output)
        return summed and all(name in count for name in self.output)


def collect(root: Node, opens: bool = False) -> Network:
    """The network of a plain dot_general and of all that only it needs.

    Args:
        opens: take in products too that other products read.
    """
    network = Network(tuple(range(root.result.ndim)), opens=opens)
    network.sizes.update(enumerate(root.result.shape))
    network.plan = _product(network, root, network.output)
    return network


def _product(network: Network, node: Node, output: Labels) -> Plan:
    a, b = node.operands
    network.nodes[node] = None

    def fresh(left: int, right: int) -> int:
        label = len(network.sizes)
        network.sizes[label] = a.shape[left]
        return label

    left, right = operand_labels(node, output, fresh)
    return _array(network, node, a, left), _array(network, node, b, right)


def _array(network: Network, dot: Node, value: Value, labels: Labels) -> Plan:
    """Take in what makes an operand, or the operand itself as a leaf; `dot` is the product above."""
    node = value.node
    if node is None or node.context is not dot.context or not _has_room(network):
        return _leaf(network, value, labels)
    if len(value.uses) > 1 and not is_outer(node):
        if not (network.opens and is_shared(node)):
            return _leaf(network, value, labels)
        network.shared.append(node)
    if node.op == "dot_general" and agrees(node, dot):
        return _product(network, node, labels)
    if node.op == "transpose":
        source = [0] * len(labels)
        for label, d in zip(labels, node.params["permutation"], strict=True):
            source[d] = label
        return _array(network, dot, node.operands[0], tuple(source))
    if node.op == "neg":
        network.nodes[node] = None
        network.factors.append(Factor("neg", None, labels))
        return _array(network, dot, node.operands[0], labels)
    if node.op in ("mul", "div"):
        plan = _scaling(network, dot, node, labels)
        if plan is not None:
            network.nodes[node] = None
            return plan
    return _leaf(network, value, labels)


def is_outer(node: Node) -> bool:
    """Whether it is an outer product, so little work that several readers may each do it anew or without."""
    return node.op == "dot_general" and node.params["dimension_numbers"] == (((), ()), ((), ()))


def is_shared(node: Node) -> bool:
    """Whether a few products, and nothing else, read a product."""
    if node.op != "dot_general" or not 1 < len(node.result.uses) <= _MOST_READERS:
        return False
    users = node.result.users()
    return all(user.op == "dot_general" and is_plain_dot(user) and agrees(node, user) for user in users)


def _has_room(network: Network) -> bool:
    return len(network.leaves) + 3 <= MOST_LEAVES


def _leaf(network: Network, value: Value, labels: Sequence[Label]) -> Plan:
    network.leaves.append(Leaf(value, tuple(labels)))
    return len(network.leaves) - 1


def _scaling(network: Network, dot: Node, node: Node, labels: Labels) -> Plan | None:
    """A product or quotient with something that has fewer dimensions."""
    if any(v.dtype != node.result.dtype for v in node.operands):
        return None
    if node.op == "div" and not np.issubdtype(node.result.dtype, np.inexact):
        return None
    large = [label for label in labels if network.sizes[label] != 1]
    found = [_part(value, labels, network.sizes) for value in node.operands]
    small = [leaf is not None and len(_wide(leaf, network)) < len(large) for leaf in found]
    first, second = found
    if small[1] and second is not None and node.operands[0].shape == node.result.shape:
        if not _wide(second, network):
            network.factors.append(Factor(node.op, second.value, labels))
            return _array(network, dot, node.operands[0], labels)
        if node.op == "div":
            return None
        plan = _array(network, dot, node.operands[0], labels)
        return plan, _leaf(network, second.value, second.labels)
    if node.op == "div" or first is None or second is None or not small[0]:
        return None
    if node.operands[1].shape == node.result.shape:
        if not _wide(first, network):
            network.factors.append(Factor(node.op, first.value, labels))
            return _array(network, dot, node.operands[1], labels)
        plan = _array(network, dot, node.operands[1], labels)
        return plan, _leaf(network, first.value, first.labels)
    if not (small[1] and _wide(first, network) and _wide(second, network)):
        return None
    return _leaf(network, first.value, first.labels), _leaf(network, second.value, second.labels)


def _wide(leaf: Leaf, network: Network) -> list[int]:
    """The labels of a leaf that are longer than one."""
    return [name for name in leaf.names if network.sizes[name] != 1]


def _part(value: Value, labels: Labels, sizes: dict[int, int]) -> Leaf | None:
    """What an operand of elementwise arithmetic is before it is spread over the result's dimensions."""
    if value.ndim not in (0, len(labels)):
        return None
    kept: list[Label] = [
        label if length == sizes[label] else None for label, length in zip(labels, value.shape, strict=False)
    ]
    node = value.node
    if node is None or node.op != "broadcast_in_dim":
        return Leaf(value, tuple(kept))
    source = node.operands[0]
    places = node.params["broadcast_dimensions"]
    inner = [kept[place] if source.shape[d] == value.shape[place] else None for d, place in enumerate(places)]
    return Leaf(source, tuple(inner))
