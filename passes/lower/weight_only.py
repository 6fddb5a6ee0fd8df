"""Products with weights that are kept in 4 or 8 bits, by a kernel that reads them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import Sources, is_stored, parameters_of, store
from lepton_jax.ir.cost import dtype_name, size_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.inline import copy_node
from lepton_jax.passes.lower._products.sides import Product, product_of
from lepton_jax.passes.lower._products.stored import stem
from lepton_jax.passes.lower._weight_only.match import Encoded, encoded_of
from lepton_jax.rewrite import Pass, PassContext, erase_dead, rewrite
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.replacement import write, write_before
from lepton_jax.targets.forms import LEAST_WEIGHT
from lepton_jax.targets.kernels.weight_only import Layout, relaid, weight_only_dot

_RULE: Final = "weight-only-kernel"
_HALVES: Final = ("bfloat16", "float16")

Kept: TypeAlias = dict[tuple[Value, tuple[int, ...], Layout, Graph | None], Value]
"""What is kept of a weight: of which value, in which order, how, and where it is read."""


@dataclass(frozen=True)
class _Plan:
    """A product to write anew: the node, which operand is the weight, its codes, and how to keep them."""

    node: Node
    side: int
    encoded: Encoded
    layout: Layout

    @property
    def product(self) -> Product:
        """How the node reads now: products that it reads may have been written anew."""
        return product_of(self.node, self.side)


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Products of bfloat16 or float16 activations with int4 or int8 weights, by a kernel on a GPU.

    Before:
        %2: i8[4096,4096] = … name[lepton.stored] %codes;  %3 = mul (convert %2) (broadcast %scale)
        %4: bf16[1,4096] = dot_general %x (convert %3)
    After:
        %2: i16[4096,1024] = name[lepton.stored] (words %codes);  %4 = weight_only_dot %x %2 %scale

    Weights that `quantize` leaves to be decoded at each call are kept by `prepare` in the order in which
    the kernel takes them apart (`lepton_jax.targets.kernels`). It reads 4 or 8 bits for each weight, up to 64
    rows of activations. More rows, other platforms, several devices, exported programs, derivatives and
    batches of weights take the decoded weight, made of the same words, so that what was prepared serves any
    number of rows. What the kernel does not take is left: zero points, groups that are no multiple of 32,
    float32 activations, and weights that something else reads too (a tied embedding would be kept twice).

    The scales are applied to sums in float32 and not to the weight in bfloat16: level `reassociate`.

    Attributes:
        level: a tighter limit on the level than the run's.
    """

    name: ClassVar[str] = "weight-only"

    level: Level | None = None

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Each product with a weight that is decoded from what is kept of parameters."""
        if ctx.rates.platform != "gpu" or not ctx.params or not ctx.allows("reassociate", self.level):
            return
        nodes = [node for node in graph.walk() if node.op == "dot_general"]
        early = parameters_of(graph, ctx.params) if nodes else {}
        plans = _alone([p for node in nodes if (p := _plan(node, early, ctx)) is not None], ctx)
        kept: Kept = {}
        for plan in plans:
            if ctx.fire(_RULE, plan.node):
                _write(plan, kept)
                erase_dead(plan.node)


def _plan(node: Node, early: Sources, ctx: PassContext) -> _Plan | None:
    """How to write a product anew, None where it is none of these."""
    summed, batch = node.params["dimension_numbers"]
    if _is_in_shards(node):
        return None
    if batch[0] or not summed[0] or not all(v.is_static for v in node.operands):
        return None
    for side in (1, 0):
        if size_of(node.operands[side].shape) < LEAST_WEIGHT:
            continue
        product = product_of(node, side)
        encoded = encoded_of(product.weight.value, product.weight.summed, early)
        if encoded is None:
            continue
        layout = Layout(product.weight.rows, product.inner, _bits(encoded), _group(encoded))
        reason = encoded if isinstance(encoded, str) else _refuses(node, product, layout)
        if isinstance(encoded, str) or reason is not None:
            ctx.miss(_RULE, node, str(reason))
            return None
        return _Plan(node, side, encoded, layout)
    return None


def _is_in_shards(node: Node) -> bool:
    """Whether a node stands in a program for one shard, whose arrays know their mesh: kernels do not."""
    graph = node.graph
    while graph is not None and graph.parents:
        if any(parent.op == "shard_map" for parent in graph.parents):
            return True
        graph = next(iter(graph.parents)).graph
    return False


def _bits(encoded: Encoded | str) -> int:
    return 0 if isinstance(encoded, str) else encoded.bits


def _group(encoded: Encoded | str) -> int:
    return 0 if isinstance(encoded, str) else encoded.group


def _refuses(node: Node, product: Product, layout: Layout) -> str | None:
    """Why the kernel does not take a product."""
    if dtype_name(product.x.value.dtype) not in _HALVES:
        return f"the activations are {dtype_name(product.x.value.dtype)}, not bfloat16 or float16"
    precision = node.params["precision"]
    pair = precision if isinstance(precision, tuple) else (precision,)
    if any(each not in (None, lax.Precision.DEFAULT) for each in pair):
        return "a precision is asked for"
    if node.params.get("out_sharding") is not None:
        return "a sharding is asked for"
    if not layout.fits:
        return f"the kernel takes no int{layout.bits} in groups of {layout.group or layout.inner}"
    return None


def _alone(plans: Sequence[_Plan], ctx: PassContext) -> list[_Plan]:
    """The products whose codes nothing else reads: otherwise they would be kept in two orders."""
    found = list(plans)
    while True:
        inside = {node for plan in found for node in plan.encoded.chain}
        inside |= {node for plan in found for node in _decoders(plan)}
        shared = [
            plan
            for plan in found
            if any(
                user not in inside
                for node in plan.encoded.chain
                for value in node.results
                for user, _ in value.uses
            )
        ]
        if not shared:
            return found
        for plan in shared:
            ctx.miss(_RULE, plan.node, "something else reads the weight, which would be kept twice")
        found = [plan for plan in found if plan not in shared]


def _decoders(plan: _Plan) -> list[Node]:
    """The operations from codes to the product."""
    found, todo = [plan.node], [plan.product.weight.value]
    while todo:
        node = todo.pop().node
        if node is not None and node not in plan.encoded.chain and node not in found:
            found.append(node)
            todo += node.operands
    return found


def _write(plan: _Plan, kept: Kept) -> None:
    """Put the kernel's call in place of a product."""
    node, product = plan.node, plan.product
    x = product.x
    values = [value for value in (x.value, _words(plan, kept), _scale(plan, kept)) if value is not None]
    made = rewrite(
        write_product,
        *values,
        layout=plan.layout,
        order=(*x.free, *x.summed),
        shape=node.result.shape,
        x_first=product.x_first,
        dtype=node.result.dtype,
    )
    write(made, node, _RULE)


def _words(plan: _Plan, kept: Kept) -> Value:
    """The words of a weight, made once for all that read it."""
    node, weight, encoded = plan.node, plan.product.weight, plan.encoded
    order = (*weight.free, *weight.summed)
    key = (encoded.codes, order, plan.layout, node.graph)
    if key not in kept:
        made = rewrite(words_of, _before_marks(encoded, node), layout=plan.layout, order=order)
        (kept[key],) = write_before(made, node, _RULE)
    return kept[key]


def _before_marks(encoded: Encoded, node: Node) -> Value:
    """The codes, made of what is stored before it is marked, so that `prepare` can take them."""
    graph, fresh = node.graph, dict[Value, Value]()
    assert graph is not None
    for old in encoded.chain:
        operands = [fresh.get(value, value) for value in old.operands]
        if is_stored(old):
            fresh[old.result] = operands[0]
            continue
        copy = copy_node(old, operands)
        graph.insert(copy, node)
        fresh.update(zip(old.results, copy.results, strict=True))
    return fresh.get(encoded.codes, encoded.codes)


def _scale(plan: _Plan, kept: Kept) -> Value | None:
    """The scales as the kernel wants them, [groups, columns]."""
    if plan.encoded.scale is None:
        return None
    weight, source = plan.product.weight, stem(plan.encoded.scale)
    order = (*weight.summed, *weight.free)
    key = (source, order, plan.layout, plan.node.graph)
    if key not in kept:
        sizes = (*weight.sizes(weight.summed), *weight.sizes(weight.free))
        made = rewrite(
            scale_of, source, layout=plan.layout, order=order, sizes=sizes, last=len(weight.summed)
        )
        (kept[key],) = write_before(made, plan.node, _RULE)
    return kept[key]


def words_of(codes: jax.Array, *, layout: Layout, order: tuple[int, ...]) -> jax.Array:
    """What is kept of codes, whose dimensions are to stand in this order: those summed over last."""
    words: jax.Array = store(
        relaid(lax.transpose(codes, order).reshape(layout.columns, layout.inner), layout)
    )
    return words


def scale_of(
    scale: jax.Array, *, layout: Layout, order: tuple[int, ...], sizes: tuple[int, ...], last: int
) -> jax.Array:
    """What is kept of scales: float32 [groups, columns].

    Args:
        scale: a scalar, or of the weight's rank.
        layout: how the weight is kept.
        order: of the weight's dimensions: what is summed over, then the others.
        sizes: of the weight in that order.
        last: how many are summed over; groups are made along the last of these.
    """
    scale = scale.astype(jnp.float32)
    if scale.size == 1:
        scale = scale.reshape(())
    else:
        groups = -(-sizes[last - 1] // layout.group) if layout.group else 1
        summed = sizes[: last - 1] if layout.group else (1,) * (last - 1)
        scale = jnp.broadcast_to(lax.transpose(scale, order), (*summed, groups, *sizes[last:]))
        scale = scale.reshape(layout.groups, layout.columns)
    found: jax.Array = store(jnp.broadcast_to(scale, (layout.groups, layout.columns)))
    return found


def write_product(
    x: jax.Array,
    words: jax.Array,
    *scale: jax.Array,
    layout: Layout,
    order: tuple[int, ...],
    shape: tuple[int, ...],
    x_first: bool,
    dtype: Any,
) -> jax.Array:
    """The product.

    Args:
        x: the activations.
        words: of the weight.
        scale: float32 [groups, columns]; none: 1.
        layout: how the weight is kept.
        order: the activations' dimensions, what is summed over last.
        shape: of the result.
        x_first: whether the result has the activations' dimensions first.
        dtype: of the result.
    """
    x = lax.transpose(x, order).reshape(-1, layout.inner)
    factors = scale[0] if scale else jnp.ones((1, layout.columns), jnp.float32)
    y = weight_only_dot(x, words, factors, layout, dtype)
    return (y if x_first else y.T).reshape(shape)
