"""What is found out about the values of a program: who makes them, who needs them, in which type."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.graph import RETURN, Graph, Node, Value
from lepton_jax.parallel.prediction.windows import PRODUCTS

MOVED: Final = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "concatenate", "slice", "copy"})
MADE: Final = frozenset({"iota", "random_seed", "create_token"})


def is_made(value: Value) -> bool:
    """Whether each device makes what it needs of a value: a constant that is repeated, a count."""
    node = value.node
    if node is None:
        return False
    if node.op in ("broadcast_in_dim", "convert_element_type", "reshape"):
        return node.operands[0].is_const or is_made(node.operands[0])
    return node.op in MADE


def summed_as(node: Node) -> Any:
    """The dtype in which parts of a result are joined: the greatest of widened numbers is a narrow one."""
    before = node.operands[0].node
    if node.op in ("reduce_max", "reduce_min") and before is not None and before.op == "convert_element_type":
        narrow, wide = before.operands[0].dtype, node.operands[0].dtype
        if jnp.promote_types(narrow, wide) == wide:
            return narrow
    return node.results[0].dtype


def only_multiplied(value: Value) -> bool:
    """Whether all that reads a value, moved or not, are products in the chip's own precision."""
    if not value.uses:
        return False
    for node, _ in value.uses:
        if node.op in ("dot_general", "conv_general_dilated"):
            if not _is_default(node.params["precision"]):
                return False
        elif node.op not in MOVED or not all(map(only_multiplied, node.results)):
            return False
    return True


def _is_default(precision: Any) -> bool:
    parts = precision if isinstance(precision, tuple) else (precision,)
    return all(part in (None, jax.lax.Precision.DEFAULT) for part in parts)


def turned(value: Value) -> Value:
    """The array that a value is in another order: XLA turns the windows of convolutions instead."""
    node = value.node
    return turned(node.operands[0]) if node is not None and node.op == "rev" else value


def needed_nodes(graph: Graph) -> set[Node]:
    """The nodes whose results somebody needs."""
    needed: set[Node] = set()
    read = set(graph.outputs)
    for node in reversed(graph):
        if node.effects or any(value in read for value in node.results):
            needed.add(node)
            read.update(node.operands)
    return needed


def read_on(value: Value) -> list[Value] | None:
    """What is made of a value; None where a product or a loop waits for it."""
    found: list[Value] = []
    for node, place in value.uses:
        if node.op != RETURN:
            if node.regions or node.op in PRODUCTS:
                return None
            found += node.results
            continue
        assert node.graph is not None
        for parent in node.graph.parents:
            if parent.op != "scan" or place < parent.params["num_carry"]:
                return None
            found.append(parent.results[place])
    return found


def described(value: Value, node: Node | None) -> str:
    """An array in words: where it is made or needed, its type and shape."""
    owner = value.node or node
    scope = owner.scope if owner is not None else ""
    op = owner.op if owner is not None else "input"
    shape = ",".join(map(str, value.shape))
    return f"{scope}/{op} {value.dtype}[{shape}]".lstrip("/")
