"""Arrays that are updated and read in the same step, as caches of keys and values are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._movement.common import changed, movement_rule
from lepton_jax.passes.simplify._movement.views import VIEWS, is_view, only_moves_units
from lepton_jax.rewrite import PassContext, Rule, RulePass, rewrite
from lepton_jax.rewrite.rule import Outcome

_KEPT: Final = jax.__version_info__ >= (0, 11)
"""Whether XLA for CPUs keeps the barrier until it has put operations together; before, it drops it."""

_LEAST_BYTES: Final = 2**16
"""Of an array from which on copying it is felt."""


def update_once(node: Node, ctx: PassContext) -> Outcome:
    """dot(q, dynamic_update_slice(x, u)) → dot(q, optimization_barrier(dynamic_update_slice(x, u)))

    Where something else reads the updated array too, and the product drops dimensions of size one of it: XLA
    for CPUs makes the update twice, once in either shape, and copies x for both, given away or not. From jax
    0.11 on; before, XLA drops the barrier as well. Steps of a decoder at one row: 1.4× to 4.6×
    (`python benchmarks/rewrites.py --only updates`).
    """
    value = node.result
    if 1 not in value.shape or len(value.uses) < 2:
        return None
    if value.aval.size * value.dtype.itemsize < _LEAST_BYTES:
        return None
    readers = list(value.readers(_only_reshapes))
    if not any(_drops_units(reader, position) for reader, position in readers):
        return None
    if any(reader.op == "optimization_barrier" for reader, _ in readers):
        return None
    return rewrite(_pinned, *node.operands, **changed(node))


def _only_reshapes(node: Node) -> bool:
    """Whether an operation does nothing but add, drop or move dimensions of size one."""
    return node.op in VIEWS and is_view(node) and only_moves_units(node)


def _drops_units(node: Node, position: int) -> bool:
    """Whether it is a product that reads the operand as it lies in memory, but for dimensions of size one."""
    if node.op != "dot_general":
        return False
    batch = node.params["dimension_numbers"][1][position]
    return list(batch) == list(range(len(batch)))


def _pinned(*operands: jax.Array, primitive: Any, params: tuple[tuple[str, Any], ...]) -> jax.Array:
    y: jax.Array = lax.optimization_barrier(primitive.bind(*operands, **dict(params)))
    return y


RULES: Final[tuple[Rule, ...]] = (
    (movement_rule("dynamic_update_slice", backends=("cpu",))(update_once),) if _KEPT else ()
)


@dataclass(frozen=True)
class Updates(RulePass):
    """Lets an array be updated in place, and what reads it read it there.

    Before:
        %3 = dynamic_update_slice %cache %key ...;  %4 = dot_general %query %3;  return %4 %3
    After:
        %3 = dynamic_update_slice %cache %key ...;  %5 = optimization_barrier %3
        %4 = dot_general %query %5;  return %4 %5

    On CPUs, from jax 0.11 on. At level `exact`.
    """

    name: ClassVar[str] = "updates"
    rules: ClassVar[Sequence[Rule]] = RULES
