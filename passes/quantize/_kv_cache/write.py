"""Writing codes and scales in place of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.regions import Slot, add_constant, slots
from lepton_jax.numerics.cache import CODES, SCALE, encode_tokens
from lepton_jax.numerics.quantize import Scheme, decode
from lepton_jax.passes.loops._parts.scan import add_carry, add_scanned, add_stacked
from lepton_jax.passes.quantize._kv_cache.moves import Axes, is_mark, move, moved, static_of
from lepton_jax.passes.quantize._kv_cache.reads import read, read_of
from lepton_jax.passes.quantize._kv_cache.web import Web, shared_in_update
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import write, write_before

RULE: Final = "cache-in-codes"

Pair = tuple[Value, Value]
"""Codes and scales."""


@dataclass(eq=False)
class Writer:
    """Puts codes in place of a web of values.

    Attributes:
        web: the values.
        scheme: the format.
        platform: of the target.
        pairs: the codes and scales of values.
        open: loops that carry codes, but do not hand on the new ones yet.
    """

    web: Web
    scheme: Scheme
    platform: str
    pairs: dict[Value, Pair] = field(default_factory=dict)
    open: list[tuple[Node, int, Value, list[Value]]] = field(default_factory=list)

    def run(self) -> None:
        """Let all that read the values read codes."""
        for node, side in self.web.dots:
            how = read_of(node, side, self.web.shared[node.operands[side]], self.scheme, self.platform)
            if how is None:
                self._decode(node, side)
                continue
            pair = self.pair(node.operands[side])
            write(rewrite(read, *pair, node.operands[1 - side], how=how), node, RULE)
            erase_dead(node)
        for node in self.web.marks:
            self._replace_codes(node)
        for node, position in self.web.exits:
            self._decode(node, position)
        while self.open:
            self._hand_on(*self.open.pop())

    def pair(self, value: Value) -> Pair:
        """The codes and scales of a value of the web."""
        if value not in self.pairs:
            self.pairs[value] = (
                self._of_input(value) if value.node is None else self._of_node(value, value.node)
            )
        return self.pairs[value]

    def given(self, value: Value, node: Node, shared: Axes) -> Pair:
        """The codes and scales of a value that a node reads: as they are, or rounded there."""
        if value in self.web.shared:
            return self.pair(value)
        scheme = Scheme(self.scheme.fmt, shared=tuple(sorted(shared)))
        codes, scale = write_before(rewrite(_encoded, value, scheme=scheme), node, RULE)
        return codes, scale

    def _of_node(self, value: Value, node: Node) -> Pair:
        if node.regions:
            return self._of_result(value, node)
        shared = self.web.shared[value]
        if node.op == "select_n":
            pairs = [self.given(case, node, shared) for case in node.operands[1:]]
            flat = [each for pair in pairs for each in pair]
            made = rewrite(_select, node.operands[0], *flat, shared=shared)
        elif node.op in ("dynamic_update_slice", "scatter"):
            made = self._of_write(node)
        else:
            source = node.operands[0]
            after = moved(node, self.web.shared[source])
            assert after is not None
            made = rewrite(move, *self.pair(source), *node.operands[1:], **static_of(node, after))
        codes, scale = write_before(made, node, RULE)
        return codes, scale

    def _of_write(self, node: Node) -> Any:
        operand, shared = node.operands[0], self.web.shared[node.operands[0]]
        if node.op == "dynamic_update_slice":
            update = self.given(node.operands[1], node, shared)
            return rewrite(_update, *self.pair(operand), *update, *node.operands[2:])
        update = self.given(node.operands[2], node, shared_in_update(node, shared))
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        how = tuple((name, node.params[name]) for name in names)
        return rewrite(_scatter, *self.pair(operand), *update, node.operands[1], how=how)

    def _of_input(self, value: Value) -> Pair:
        """An input of a region, which holds what an operand holds, or what a loop carries."""
        graph = value.graph
        assert graph is not None
        (node,) = graph.parents
        place = (node.regions.index(graph), value.index)
        slot = next(slot for slot in slots(node) if place in slot.inputs)
        assert slot.operand is not None
        if slot.kind == "carry":
            self._carry(node, slot)
            return self.pairs[value]
        outer = self.pair(node.operands[slot.operand])
        if slot.kind == "scanned":
            inner = [_inner(each) for each in outer]
            codes, scale = (
                add_scanned(node, each, Value(aval)) for each, aval in zip(outer, inner, strict=True)
            )
        else:
            codes, scale = (add_constant(node, place[0], each) for each in outer)
        return codes, scale

    def _of_result(self, value: Value, node: Node) -> Pair:
        slot = next(slot for slot in slots(node) if slot.result == value.index)
        if slot.kind == "carry":
            self._carry(node, slot)
            return self.pairs[value]
        inner = [node.regions[r].outputs[i] for r, i in slot.outputs]
        shared = self.web.shared[value]
        if slot.kind == "stacked":
            codes, scale = (add_stacked(node, each) for each in self.pair(inner[0]))
            return codes, scale
        pairs = [
            self.given(each, node.regions[r].ret, shared)
            for each, (r, _) in zip(inner, slot.outputs, strict=True)
        ]
        codes, scale = (_add_results(node, each) for each in zip(*pairs, strict=True))
        return codes, scale

    def _carry(self, node: Node, slot: Slot) -> None:
        """Let a loop carry codes and scales beside what it carries."""
        assert slot.operand is not None and slot.result is not None
        ((region, position),) = slot.outputs
        result = node.results[slot.result]
        old, out = [node.regions[r].inputs[i] for r, i in slot.inputs], node.regions[region].outputs[position]
        init = self.given(node.operands[slot.operand], node, self.web.shared[result])
        added = [_add_carry(node, each) for each in init]
        for value, *pair in zip(old, *(inputs for inputs, _ in added), strict=True):
            self.pairs[value] = (pair[0], pair[1])
        self.pairs[result] = (added[0][1], added[1][1])
        self.open.append((node, region, out, [inputs[-1] for inputs, _ in added]))

    def _hand_on(self, node: Node, region: int, out: Value, inputs: list[Value]) -> None:
        """Let a loop hand on the codes and scales that its body has in the end."""
        body = node.regions[region]
        for inner, new in zip(inputs, self.pair(out), strict=True):
            place = (region, inner.index)
            mine = next(each for each in slots(node) if each.inputs and each.inputs[-1] == place)
            outputs = body.outputs
            outputs[mine.outputs[0][1]] = new
            body.set_outputs(outputs)

    def _decode(self, node: Node, position: int) -> None:
        """Let a node read the floats that codes stand for."""
        value = node.operands[position]
        pair = self.pair(value)
        shared = tuple(sorted(self.web.shared[value]))
        scheme = Scheme(self.scheme.fmt, shared=shared)
        (floats,) = write_before(rewrite(_decoded, *pair, scheme=scheme, dtype=value.dtype), node, RULE)
        node.set_operand(position, floats)

    def _replace_codes(self, mark: Node) -> None:
        """Where the cache leaves in codes: those that are there, not those of what they stand for."""
        codes, scale = self.pair(mark.operands[0])
        for name, new in ((CODES, codes), (SCALE, scale)):
            for found in _after(mark.result, name):
                found.result.replace_uses(new)


def _after(value: Value, mark: str) -> list[Node]:
    """The marks of one kind that a value reaches before others do."""
    found: list[Node] = []
    seen: set[Node] = set()
    queue = value.users()
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_mark(node, mark):
            found.append(node)
        elif not (is_mark(node, CODES) or is_mark(node, SCALE)):
            queue += [user for result in node.results for user in result.users()]
    return found


def _inner(outer: Value) -> Any:
    return jax.typeof(jax.ShapeDtypeStruct(outer.shape[1:], outer.dtype))


def _add_results(node: Node, values: Sequence[Value]) -> Value:
    """One more result of a branch or a call: what each of its regions returns."""
    for region, value in zip(node.regions, values, strict=True):
        region.set_outputs([*region.outputs, value])
    result = Value(values[0].aval, node, len(node.results))
    node.set_results([*node.results, result])
    node.raw = None
    return result


def _add_carry(node: Node, init: Value) -> tuple[list[Value], Value]:
    """One more array that a loop carries, for now as it is: the inputs of its regions, and the result."""
    if node.op == "scan":
        position, scanned = node.params["num_carry"], node.regions[0]
        added = add_carry(node, init, init)
        outputs = scanned.outputs
        outputs[position] = added
        scanned.set_outputs(outputs)
        return [added], node.results[position]
    cond, body = node.regions
    inputs = [cond.add_input(init.aval), body.add_input(init.aval)]
    body.set_outputs([*body.outputs, inputs[1]])
    result = Value(init.aval, node, len(node.results))
    node.set_operands([*node.operands, init])
    node.set_results([*node.results, result])
    node.raw = None
    return inputs, result


# What stands in the graph


def _encoded(x: jax.Array, *, scheme: Scheme) -> list[jax.Array]:
    return list(encode_tokens(x, scheme))


def _decoded(codes: jax.Array, scale: jax.Array, *, scheme: Scheme, dtype: Any) -> jax.Array:
    return decode(codes, scale, None, scheme, dtype)


def _update(
    codes: jax.Array, scale: jax.Array, new_codes: jax.Array, new_scale: jax.Array, *indices: jax.Array
) -> list[jax.Array]:
    pairs = ((codes, new_codes), (scale, new_scale))
    return [lax.dynamic_update_slice(old, new, indices, allow_negative_indices=False) for old, new in pairs]


def _scatter(
    codes: jax.Array,
    scale: jax.Array,
    new_codes: jax.Array,
    new_scale: jax.Array,
    indices: jax.Array,
    *,
    how: tuple[tuple[str, Any], ...],
) -> list[jax.Array]:
    options = dict(how)
    numbers = options.pop("dimension_numbers")
    pairs = ((codes, new_codes), (scale, new_scale))
    return [lax.scatter(old, indices, new, numbers, **options) for old, new in pairs]


def _select(which: jax.Array, *flat: jax.Array, shared: Axes) -> list[jax.Array]:
    short = which
    if which.ndim:
        for axis in shared:
            short = lax.slice_in_dim(short, 0, 1, axis=axis)
    return [lax.select_n(which, *flat[0::2]), lax.select_n(short, *flat[1::2])]
