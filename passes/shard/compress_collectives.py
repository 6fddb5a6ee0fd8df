"""Gradient all-reduces in codes of 8 bits."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, RuleChain, Value
from lepton_jax.ir.importer import copy_equations
from lepton_jax.parallel.compressed import Compression
from lepton_jax.parallel.compressed.options import Bucket
from lepton_jax.parallel.compressed.reduce import sums_of_bucket
from lepton_jax.rewrite import Pass, PassContext, erase_dead
from lepton_jax.rewrite.replacement import between

_RULE: Final = "compressed-all-reduce"
_SUMS: Final = frozenset({"psum", "psum_invariant", "psum2"})
_DATA: Final = re.compile(r"data|batch|replica|fsdp|dcn|slice|^dp$|_dp$|^dp_")
"""Names of axes along which batches are split, as people call them."""

_PRODUCTS: Final = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})


@dataclass(frozen=True)
class CompressCollectives(Pass):
    """Gradients added up over devices in codes of 8 bits, where the program itself adds them up.

    Before:
        %g = psum[axes=('data',)] %d                         (in a shard_map)
    After:
        %c: i8 = %d in blocks, a scale each;  %s = all_to_all %c;  %p = the sum of what came, in float32
        %b: i8 = %p in blocks;  %g = all_gather %b, decoded

    Taken for gradients are sums over data axes with the shape of an input that is the same along these axes
    (the parameter), whose result no product reads. Neighbours travel together. Small ones, and those of one
    dimension, stay exact. No feedback is kept, since a program has no state of its own: what is lost is lost.
    With feedback, see `lepton.compressed`. Programs that are spread by the compiler (`jax.jit` with
    shardings) have no sums of gradients to be seen, and are left alone. Approximate; it runs when it is
    named.

    Attributes:
        grad: the format of the codes: int8, fp8_e4m3 or fp8_e5m2.
        block: elements that share a scale.
        axes: the data axes, separated by blanks; default: those that are called so (data, batch, dp, fsdp,
            replica, dcn, slice).
        inner: of these the ones along which the sum stays exact (within a slice), separated by blanks.
        smallest: gradients with fewer bytes stay exact.
        bucket: bytes of float32 that travel together.

    Source: Wang et al. 2023, ZeRO++ (arXiv 2306.10209); Ahmed et al. 2025, EQuARX (arXiv 2506.17615).
    """

    name: ClassVar[str] = "compress-collectives"
    approximates: ClassVar[bool] = True

    grad: Literal["int8", "fp8_e4m3", "fp8_e5m2"] = "int8"
    block: int = 256
    axes: str = ""
    inner: str = ""
    smallest: int = 1 << 16
    bucket: int = 1 << 25

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        axes, inner = self.axes.split(), self.inner.split()
        if axes and not set(inner) < set(axes):
            raise ValueError(
                f"inner names some of the axes, but not all: not {self.inner!r} of {self.axes!r}"
            )
        self._compression(tuple(axes) or ("data",))

    def _compression(self, axes: tuple[str, ...]) -> Compression:
        inner = tuple(axis for axis in self.inner.split() if axis in axes)
        inner = inner if len(inner) < len(axes) else ()
        return Compression(
            self.grad, axes, inner, self.block, smallest=self.smallest, bucket=self.bucket, feedback=False
        )

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """The sums in the regions of each `shard_map`."""
        count, left = 0, Counter[str]()
        for node in graph.nodes():
            if node.op == "shard_map" and node.alive and node.regions:
                count += self._in_region(node, ctx, left)
        if count:
            ctx.note(
                f"{count} gradients are added up in {self.grad} without feedback; with it: lepton.compressed"
            )
        else:
            ctx.note(
                "nothing explicit to compress: no sum of gradients over data axes in a shard_map. Where the "
                "compiler spreads the program, use lepton.compressed"
            )
        if left:
            ctx.note(
                "sums left exact: " + "; ".join(f"{often} since {why}" for why, often in left.most_common())
            )

    def _in_region(self, outer: Node, ctx: PassContext, left: Counter[str]) -> int:
        copies = _copied_inputs(outer)
        count = 0
        for inner in outer.regions[0].graphs():
            groups: dict[tuple[str, ...], list[Node]] = defaultdict(list)
            for node in inner:
                if node.op in _SUMS and (axes := self._gradient(node, copies, ctx, left)):
                    groups[axes].append(node)
            for axes, nodes in groups.items():
                how = self._compression(axes)
                for bucket in _buckets(nodes, self.bucket):
                    jaxpr = _traced(outer, [node.operands[0] for node in bucket], how)
                    if jaxpr is None:
                        ctx.miss(_RULE, bucket[0], "its sum cannot be written down in this shard_map")
                    elif ctx.fire(_RULE, bucket[0]):
                        _write(bucket, jaxpr)
                        count += len(bucket)
        return count

    def _gradient(
        self,
        node: Node,
        copies: Sequence[tuple[Any, frozenset[str]]],
        ctx: PassContext,
        left: Counter[str],
    ) -> tuple[str, ...] | None:
        """The axes of a sum of gradients that is to be compressed; None for all others."""
        axes = node.params.get("axes", ())
        if len(node.operands) != 1 or not axes or not all(isinstance(axis, str) for axis in axes):
            return None
        value = node.operands[0]
        if not value.is_static or value.ndim < 2 or not jnp.issubdtype(value.dtype, jnp.floating):
            return None
        if value.dtype.itemsize > 4 or node.params.get("axis_index_groups") is not None:
            return None
        reason = self._why_exact(node, axes, copies)
        if reason is None:
            return tuple(axes)
        ctx.miss(_RULE, node, reason)
        left[reason] += 1
        return None

    def _why_exact(
        self, node: Node, axes: Sequence[str], copies: Sequence[tuple[Any, frozenset[str]]]
    ) -> str | None:
        """Why a sum of an array is not compressed; None if it is."""
        value = node.operands[0]
        named = self.axes.split()
        if not all(axis in named if named else _DATA.search(axis) for axis in axes):
            return f"{', '.join(axes)} are not known for data axes: say axes="
        if value.aval.size * value.dtype.itemsize < self.smallest:
            return f"it has fewer than {self.smallest} bytes: say smallest="
        if not any(shape == value.shape and not split & set(axes) for shape, split in copies):
            return "no input of this shape is the same along these axes: no parameter's gradient"
        return "a product reads it: activations, not gradients" if _feeds_product(node) else None


def _copied_inputs(outer: Node) -> list[tuple[Any, frozenset[str]]]:
    """The shapes of a region's inputs, and the axes that split them."""
    found = []
    for value, spec in zip(outer.regions[0].inputs, outer.params["in_specs"], strict=True):
        names = {a for entry in spec for a in ((entry,) if isinstance(entry, str) else (entry or ()))}
        found.append((value.shape, frozenset(map(str, names))))
    return found


def _feeds_product(node: Node) -> bool:
    """Whether a product reads the result, or something that is computed from it."""
    waiting, seen = [node], {node}
    while waiting:
        for value in waiting.pop().results:
            for user, _ in value.uses:
                if user in seen:
                    continue
                seen.add(user)
                if user.op in _PRODUCTS or any(n.op in _PRODUCTS for r in user.regions for n in r.nodes()):
                    return True
                waiting.append(user)
    return False


def _buckets(nodes: Sequence[Node], most: int) -> list[list[Node]]:
    """Sums that can travel together: all operands are there before any result is read."""
    graph = nodes[0].graph
    assert graph is not None
    place = {node: i for i, node in enumerate((*graph, graph.ret))}
    found: list[list[Node]] = []
    size, first = 0, -1
    for node in nodes:
        added = 4 * node.operands[0].aval.size
        maker = node.operands[0].node
        ready = -1 if maker is None else place[maker]
        if not found or size + added > most or ready >= first:
            found.append([])
            size, first = 0, len(place)
        found[-1].append(node)
        size += added
        first = min([first, *(place[user] for user, _ in node.result.uses)])
    return found


def _write(nodes: Sequence[Node], jaxpr: Any) -> None:
    """Put one compressed sum in the place of several exact ones."""
    graph = nodes[0].graph
    assert graph is not None
    place = {node: i for i, node in enumerate((*graph, graph.ret))}
    users = [user for node in nodes for user, _ in node.result.uses]
    before = min([*users, graph.ret], key=lambda user: place[user])
    last = before.prev
    results = copy_equations(jaxpr, [node.operands[0] for node in nodes], graph, before, {})
    for fresh in between(last, before):
        fresh.source, fresh.rule = nodes[0].source, RuleChain(_RULE, nodes[0].rule)
    for node, result in zip(nodes, results, strict=True):
        node.result.replace_uses(result)
        erase_dead(node)


def _traced(outer: Node, values: Sequence[Value], how: Compression) -> Any:
    """The compressed sum of arrays as they are in a `shard_map`; None if it takes more than these."""
    params = outer.params
    sizes = dict(params["mesh"].shape)
    avals, inputs, outputs = [], [], []
    for value in values:
        axes = sorted(_jax.varying_axes(value.aval) or how.axes)
        split = 1
        for axis in axes:
            split *= sizes[axis]
        shape = (value.shape[0] * split, *value.shape[1:])
        avals.append(jax.ShapeDtypeStruct(shape, value.dtype))
        inputs.append(PartitionSpec(tuple(axes)))
        rest = tuple(axis for axis in axes if axis not in how.axes)
        outputs.append(PartitionSpec(rest or None))
    bucket = Bucket(tuple(range(len(values))), tuple(value.shape for value in values))

    def fun(*parts: jax.Array) -> list[jax.Array]:
        return sums_of_bucket(parts, bucket, how)

    spread = jax.shard_map(
        fun,
        mesh=params["mesh"],
        in_specs=tuple(inputs),
        out_specs=outputs,
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    closed = _jax.trace_flat(spread, avals)
    for eqn in _jax.parts(closed)[3]:
        if eqn.primitive.name == "shard_map":
            (jaxpr,), _ = _jax.region_jaxprs("shard_map", eqn.params) or ((None,), {})
            return jaxpr if len(_jax.parts(jaxpr)[2]) == len(values) else None
    return None
