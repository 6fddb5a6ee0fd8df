"""Arrays that loops read in a narrower type alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.regions import RUN_ONCE, slots
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.steps import Steps


class Narrowing:
    """What loops read in a narrower type, made before the first loop that does."""

    def __init__(self, steps: Steps, made_of: Callable[[Value], tuple[Value, ...]]) -> None:
        """Nothing is made yet; `made_of` says from which arrays in memory a value is read."""
        self._steps = steps
        self._made_of = made_of
        self._made: dict[tuple[Value, Any], Span] = {}

    def before(self, loop: Node) -> list[Span]:
        """The arrays that are there before a loop begins, and read to its end."""
        found: dict[Span, None] = {}
        for value, narrow in narrowed(loop).items():
            roots = self._made_of(value)
            if len(roots) != 1:
                continue
            key = roots[0], narrow
            if key not in self._made:
                size = self._steps.size(value) * narrow.itemsize // value.dtype.itemsize
                self._made[key] = self._steps.span(size)
            found[self._made[key]] = None
        return list(found)


def narrowed(loop: Node) -> dict[Value, Any]:
    """The operands that a loop reads in a narrower type alone, and that type.

    XLA converts all of such before the first loop that does so: what does not change in a loop is taken out
    of it unless that makes arrays larger (`xla_tpu_licm_size_inflation_ratio` of libtpu).
    """
    found: dict[Value, Any] = {}
    for slot in slots(loop):
        if slot.operand is None or slot.kind not in ("constant", "scanned"):
            continue
        types = {_narrowed_to(loop.regions[region].inputs[index]) for region, index in slot.inputs}
        if len(types) == 1 and None not in types:
            (found[loop.operands[slot.operand]],) = types
    return found


def _narrowed_to(value: Value) -> Any:
    """The type, of fewer bytes, to which all who read a value convert it; None where they do not."""
    types: set[Any] = set()
    for node, place in value.uses:
        if node.op == "convert_element_type":
            types.add(node.results[0].dtype)
        elif node.op in RUN_ONCE:
            ways = [slot.inputs for slot in slots(node) if slot.operand == place]
            types.update(
                _narrowed_to(node.regions[region].inputs[index]) for way in ways for region, index in way
            )
        else:
            return None
    if len(types) != 1 or None in types:
        return None
    (narrow,) = types
    return narrow if narrow.itemsize < value.dtype.itemsize else None
