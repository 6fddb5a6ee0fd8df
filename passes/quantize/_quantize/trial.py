"""Quantisation that a flag turns on at one site at a time, to measure what each site costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.binding import is_stored, store
from lepton_jax.ir.graph import Value
from lepton_jax.ir.regions import add_constant
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.packing import packed_size
from lepton_jax.numerics.quantize import Scheme, decode, nbytes
from lepton_jax.numerics.sensitivity import damage
from lepton_jax.passes._weights.lifting import in_branch, lift, top
from lepton_jax.passes._weights.moments import HessianSeen, hessian_seen
from lepton_jax.passes._weights.uses import WeightUse, layers_of
from lepton_jax.passes._weights.watching import Known, observe, seen
from lepton_jax.passes.quantize._quantize.choice import Plan
from lepton_jax.passes.quantize._quantize.correcting import lost
from lepton_jax.passes.quantize._quantize.observing import by_kind
from lepton_jax.passes.quantize._quantize.weights import Storage, kept
from lepton_jax.passes.quantize.quantize import Quantize
from lepton_jax.rewrite import PassContext, rewrite
from lepton_jax.rewrite.replacement import Rewrite, between, write, write_before
from lepton_jax.rewrite.trial import Trials, Tried

_RULE: Final = "quantized-on-trial"


@dataclass(frozen=True)
class Trial(Quantize):
    """`Quantize` whose sites are floats unless their flag is set.

    Attributes:
        record: what it did; shared by all trials of a pipeline.
    """

    name: ClassVar[str] = "quantize"
    on_shards: ClassVar[bool] = False

    record: Trials = field(default_factory=Trials, compare=False)

    @classmethod
    def of(cls, settings: Quantize, record: Trials) -> Trial:
        """A trial with the settings of another pass."""
        return cls(**{each.name: getattr(settings, each.name) for each in fields(settings)}, record=record)

    @property
    def calibrates(self) -> bool:
        """Always: second moments of the inputs, where there are any, predict errors."""
        return True

    def __str__(self) -> str:
        """The pass that is tried, as pipeline text."""
        return str(Quantize(**{each.name: getattr(self, each.name) for each in fields(Quantize)}))

    def _quantize(self, use: WeightUse, found: Plan, known: Known, ctx: PassContext) -> str | None:
        own = hessian_seen(use)
        more = [] if own is None or own in found.watchers else [own]
        if ctx.watches is not None:
            observe(use, more, known, ctx)
            reason = super()._quantize(use, found, known, ctx)
            if reason is None:
                self.record.sites.append(_tried(use, found, False))
            return reason
        values = seen(use, found.watchers, known, ctx)
        if isinstance(values, str):
            return values
        if not ctx.fire(_RULE, use.node):
            return None
        values = [*found.given, *values]
        is_estimated = own is not None and self._estimate(use, found, values, own, known, ctx)
        assert use.node.graph is not None
        flags = _inward(top(use.node.graph).inputs[self.record.flags or 0], use)
        shift = [] if found.mean is None else [lost(use, found.fun, found.how, values, found.mean)]
        (weight,) = write_before(rewrite(store, use.weight), use.node, _RULE)
        node = use.node
        made = rewrite(
            _either,
            *(flags, weight, *node.operands, *values, *shift),
            number=len(self.record.sites),
            count=len(node.operands),
            side=use.side,
            instead=found.fun,
            how=found.how,
            is_corrected=found.mean is not None,
            primitive=node.primitive,
            params=tuple(node.params.items()),
        )
        self.record.sites.append(_tried(use, found, is_estimated))
        write(made, node, _RULE)
        if node.graph is not None:
            node.graph.erase(node)
        return None

    def _estimate(
        self,
        use: WeightUse,
        found: Plan,
        values: list[Value],
        own: HessianSeen,
        known: Known,
        ctx: PassContext,
    ) -> bool:
        """One more output of the program: the error of a result that second moments of the input predict."""
        if self.balance != "none":
            return False
        moments = seen(use, [own], known, ctx)
        before, graph = use.node.prev, use.node.graph
        assert graph is not None
        if isinstance(moments, str) or in_branch(graph):
            return False
        made = rewrite(
            _predicted, use.weight, moments[0], *values, storage=found.how.storage, kinds=found.how.kinds
        )
        (estimate,) = write_before(made, use.node, _RULE)
        for fresh in between(before, use.node):
            if is_stored(fresh):
                fresh.result.replace_uses(fresh.operands[0])
        whole = top(graph)
        whole.set_outputs([*whole.outputs, lift(estimate, graph, _nothing)])
        return True


def _predicted(
    weight: jax.Array, moments: jax.Array, *values: jax.Array, storage: Storage, kinds: tuple[str, ...]
) -> jax.Array:
    """√(tr(Δᵀ H Δ) / tr(Wᵀ H W)): the relative error of the result over the calibration inputs, f32[]."""
    known = by_kind(values, kinds).get("hessian")
    q = kept(weight, storage, None if known is None else known[0])
    layout: MatrixLayout = storage.layout
    change = decode(*q, storage.scheme, jnp.float32) - weight.astype(jnp.float32)
    whole = damage(weight, moments, layout=layout)
    return jnp.sqrt(damage(change, moments, layout=layout) / jnp.maximum(whole, 1e-30))


def _nothing(value: Value) -> Rewrite:
    return rewrite(_zero, value)


def _zero(x: jax.Array) -> jax.Array:
    return jnp.zeros_like(x)


def _either(
    flags: jax.Array,
    exact: jax.Array,
    *values: jax.Array,
    number: int,
    count: int,
    side: int,
    instead: Any,
    how: Any,
    is_corrected: bool,
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> Any:
    operands, known = values[:count], values[count:]
    known, shift = (known[:-1], known[-1]) if is_corrected else (known, None)

    def quantized() -> Any:
        found = instead(*operands, *known, how=how)
        return found if shift is None else found + shift

    def plain() -> Any:
        before, after = operands[:side], operands[side + 1 :]
        return primitive.bind(*before, exact, *after, **dict(params))

    return lax.cond(flags[number], quantized, plain)


def _tried(use: WeightUse, found: Plan, is_estimated: bool) -> Tried:
    times = layers_of(use)
    weight, storage = use.weight, found.how.storage
    size = math.prod(weight.shape) * times
    before = size * weight.dtype.itemsize
    after = _bytes(weight.shape, storage.scheme, storage.is_packed)
    return Tried(use.name, use.node.op, use.paths, found.done, before, after * times, is_estimated, size)


def _bytes(shape: tuple[int, ...], scheme: Scheme, is_packed: bool) -> int:
    packed = nbytes(shape, scheme)
    if is_packed or scheme.fmt.bits >= 8:
        return packed
    rows = math.prod(shape) // shape[-1]
    return packed + math.prod(shape) - rows * packed_size(shape[-1], scheme.fmt.bits)


def _inward(value: Value, use: WeightUse) -> Value:
    """A value of the whole program where a weight is used."""
    path = []
    graph = use.node.graph
    while graph is not None and graph.parents:
        path.append((graph.parents[0], graph))
        graph = graph.parents[0].graph
    for node, region in reversed(path):
        value = add_constant(node, node.regions.index(region), value)
    return value
