"""Key/value caches kept in codes of eight bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import LOOPS, Slot, editable, slots
from lepton_jax.numerics.cache import CODES, DECODED, SCALE, cache_scheme
from lepton_jax.passes.quantize._kv_cache.moves import is_mark
from lepton_jax.passes.quantize._kv_cache.reads import read_of
from lepton_jax.passes.quantize._kv_cache.web import RefusedError, Web
from lepton_jax.passes.quantize._kv_cache.write import RULE, Pair, Writer
from lepton_jax.passes.simplify.dce import DeadCode
from lepton_jax.rewrite import Pass, PassContext, Site

_FAR: Final = 16
"""So many operations at most are between the codes that a program is given and what they stand for."""


@dataclass(frozen=True)
class KVCache(Pass):
    """Keeps what a loop writes a token at a time, and what products read, in codes and scales.

    Before:
        scan { %3: f32[8,512,64] = dynamic_update_slice %cache %new %position;  %4 = dot_general %q %3 }
    After:
        scan { %s = max |%new| / 127;  %n: i8 = round(%new / %s)
               %3: i8[8,512,64] = dynamic_update_slice %codes %n %position
               %t: f32[8,512,1] = dynamic_update_slice %scales %s %position
               %4 = dot_general %q' %3 · %t }

    A cache is an array of floats that a loop carries, that is only written by `dynamic_update_slice`, by
    `x.at[...].set` and by choices between tokens, and that products read: in the loop or in loops inside it,
    through transposes, reshapes, slices and repeated heads. Each token is rounded once, when it is written,
    with a scale for each head. Products with keys take the scales out of the sum; for values they go into the
    softmax's weights first. Where the cache is an argument and a result of one step, see
    `lepton_jax.numerics.cache.with_coded_cache`: its steps are the same here. Approximate; it runs when it is
    named, after `default`, before or after `quantize`.

    Attributes:
        format: of the codes that loops carry: `int8`, `fp8_e4m3` or `fp8_e5m2`.
        least: only arrays with so many elements at least.

    Raises:
        ValueError: another format.
    """

    name: ClassVar[str] = "kv-cache"
    approximates: ClassVar[bool] = True

    format: str = "int8"
    least: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        cache_scheme(self.format)

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Caches that are given in codes, then those that loops carry, outer loops first."""
        changed = False
        for mark in [node for node in graph.walk() if is_mark(node, DECODED)]:
            changed |= mark.alive and _of_mark(mark, ctx)
        for node, result in list(_carried(graph)):
            if node.alive and result.aval.size >= self.least:
                changed |= self._of_loop(node, result, ctx)
        if changed:
            DeadCode().run(graph, ctx)
        elif not any(site.by == ctx.current_pass for site in ctx.sites):
            ctx.note(
                "no cache is kept in codes: no loop carries one; with_coded_cache is for arguments of a step"
            )

    def _of_loop(self, node: Node, result: Value, ctx: PassContext) -> bool:
        """Keep what a loop carries in codes, if it is a cache."""
        slot = next(slot for slot in slots(node) if slot.result == result.index)
        if not _is_written(node, slot):
            return False
        scheme, reason = cache_scheme(self.format), ""
        for axis in reversed(range(result.ndim)):
            if result.shape[axis] == 1:
                continue
            web = Web()
            try:
                web.carried(node, slot, frozenset((axis,)))
                web.grow()
                _check(web, Writer(web, scheme, ctx.rates.platform))
            except RefusedError as refused:
                reason = reason or str(refused)
                continue
            return _write(web, {}, self.format, node, ctx)
        if reason:
            ctx.miss(RULE, node, reason)
        return False


def _carried(graph: Graph) -> Iterator[tuple[Node, Value]]:
    """Arrays of floats that loops carry, outer loops first."""
    for inner in graph.graphs():
        for node in inner.holders:
            if node.op not in LOOPS or not editable(node):
                continue
            for slot in slots(node):
                if slot.kind != "carry" or slot.result is None:
                    continue
                result = node.results[slot.result]
                if result.ndim >= 2 and result.is_static and jnp.issubdtype(result.dtype, jnp.floating):
                    yield node, result


def _is_written(node: Node, slot: Slot) -> bool:
    """Whether a loop changes what it carries."""
    return any(node.regions[r].outputs[i] not in node.regions[r].inputs for r, i in slot.outputs)


def _of_mark(mark: Node, ctx: PassContext) -> bool:
    """Compute with the codes that a program is given, not with what they stand for."""
    codes, scale = (_before(mark, name) for name in (CODES, SCALE))
    if codes is None or scale is None:
        ctx.miss(RULE, mark, "its codes are not found")
        return False
    web = Web()
    try:
        web.join(mark.result, frozenset((mark.result.ndim - 1,)))
        web.grow()
    except RefusedError as refused:
        ctx.miss(RULE, mark, str(refused))
        return False
    return _write(web, {mark.result: (codes, scale)}, str(codes.dtype), mark, ctx)


def _before(mark: Node, name: str) -> Value | None:
    """What is marked with a name among what a value is made of."""
    queue, seen = [mark.operands[0].node], 0
    while queue and seen < _FAR:
        node, seen = queue.pop(0), seen + 1
        if node is not None and is_mark(node, name):
            return node.result
        if node is not None and not is_mark(node, CODES) and not is_mark(node, SCALE):
            queue += [value.node for value in node.operands]
    return None


def _check(web: Web, writer: Writer) -> None:
    """Raise where what a loop carries is no cache.

    Raises:
        RefusedError: why.
    """
    if not web.writes or not web.dots:
        raise RefusedError("it is no cache: no part of it is written" if web.dots else "no product reads it")
    for node, _ in web.exits:
        if _in_loop(node):
            raise RefusedError(f"{node.op} in a loop reads it")
    for node, side in web.dots:
        shared = web.shared[node.operands[side]]
        if _in_loop(node) and read_of(node, side, shared, writer.scheme, writer.platform) is None:
            raise RefusedError("a product sums over tokens and features at once")


def _in_loop(node: Node) -> bool:
    graph = node.graph
    while graph is not None and graph.parents:
        if any(parent.op in LOOPS for parent in graph.parents):
            return True
        graph = graph.parents[0].graph
    return False


def _write(web: Web, pairs: dict[Value, Pair], form: str, node: Node, ctx: PassContext) -> bool:
    if not ctx.fire(RULE, node):
        return False
    scheme = cache_scheme(form)
    writer = Writer(web, scheme, ctx.rates.platform, pairs)
    writer.run()
    largest = max(web.shared, key=lambda value: int(value.aval.size))
    name = f"cache {node.scope or node.op}"
    number = sum(site.name.startswith(name) for site in ctx.sites)
    done = f"{scheme.fmt.name}, a scale for each token and head; {largest.aval.size} elements"
    name = f"{name}#{number + 1}" if number else name
    ctx.sites.append(Site(name, node.op, done, source=node.source, by=ctx.current_pass))
    return True
