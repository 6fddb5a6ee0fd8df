"""Weights and activations left in line and rounded as their codes are, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import jax

from lepton_jax.ir.binding import store
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.numerics.learned import fake, kind_of
from lepton_jax.numerics.observers import get_observer
from lepton_jax.numerics.quantize import Scheme
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.passes._weights.watching import Watcher
from lepton_jax.passes.quantize._quantize.learned import InputStart, WeightStart
from lepton_jax.passes.quantize._quantize.observing import RangeSeen, by_kind
from lepton_jax.passes.quantize._quantize.weights import Storage
from lepton_jax.rewrite import PassContext, UsageError, rewrite
from lepton_jax.rewrite.replacement import write_before

if TYPE_CHECKING:
    from lepton_jax.passes.quantize.quantize import Quantize

_RULE: Final = "quantized-weight"

_PRODUCTS: Final = ("dot_general", "ragged_dot_general", "conv_general_dilated")

_DERIVATIVE: Final = "transpose("
"""What JAX writes into the name stack of the operations of a gradient."""


@dataclass(frozen=True)
class Rounding:
    """How an operand is rounded in training.

    Attributes:
        scheme: how.
        learns: what is learned of it, see `learned.kind_of`; None: nothing.
        is_weight: whether it is a weight, which no other pass is to take.
    """

    scheme: Scheme
    learns: str | None
    is_weight: bool


@dataclass(frozen=True)
class Trained:
    """How a use of a weight is trained.

    Attributes:
        weight: the weight's rounding.
        inputs: that of what it is multiplied with; None: it stays as it is.
        kinds: what calibration saw, and what is learned.
    """

    weight: Rounding
    inputs: Rounding | None
    kinds: tuple[str, ...]


def watchers_of(storage: Storage, activations: Scheme | None, settings: Quantize) -> list[Watcher]:
    """What calibration has to see, or training learns, of the scales of a weight and of its inputs."""
    watchers: list[Watcher] = []
    if activations is not None and settings.activations == "static":
        observer, learns = get_observer(settings.observer), kind_of(settings.train, activations)
        watchers.append(
            RangeSeen(observer, activations) if learns is None else InputStart(learns, observer, activations)
        )
    if storage.learned is not None:
        watchers.append(WeightStart(storage.learned, storage.scheme))
    return watchers


def rounding_of(storage: Storage, activations: Scheme | None, watchers: Sequence[Watcher]) -> Trained:
    """What training puts in the place of a weight and its inputs."""
    inputs: Rounding | None = None
    if activations is not None:
        learns = next((each.learns for each in watchers if isinstance(each, InputStart)), None)
        inputs = Rounding(activations, learns, is_weight=False)
    weight = Rounding(storage.scheme, storage.learned, is_weight=True)
    return Trained(weight, inputs, tuple(watcher.kind for watcher in watchers))


def rounded(x: jax.Array, *arrays: jax.Array, how: Rounding) -> jax.Array:
    """An operand as its codes round it.

    Args:
        arrays: what is learned, or a range that is known.
    """
    return fake(store(x) if how.is_weight else x, how.learns, arrays, how.scheme)


def write_trained(use: WeightUse, how: Trained, values: list[Value]) -> None:
    """Let an operation read rounded operands.

    Args:
        values: what calibration saw, and what is learned, in the order of `Trained.kinds`.
    """
    known = by_kind(tuple(values), how.kinds)
    for side, rounding in ((use.side, how.weight), (1 - use.side, how.inputs)):
        if rounding is None:
            continue
        arrays = _arrays(known, rounding)
        operand = use.node.operands[side]
        (made,) = write_before(rewrite(rounded, operand, *arrays, how=rounding), use.node, _RULE)
        use.node.set_operand(side, made)


def _arrays(known: dict[str, tuple[Value, ...]], rounding: Rounding) -> tuple[Value, ...]:
    if rounding.learns is not None:
        return known[f"{'weight' if rounding.is_weight else 'input'}-{rounding.learns}"]
    return () if rounding.is_weight else known.get("range", ())


def check_undifferentiated(graph: Graph, ctx: PassContext) -> None:
    """Raise where a program holds gradients of products: they would not be those of the rounded ones.

    Raises:
        UsageError: it does; the message says what to do.
    """
    if any(node.op in _PRODUCTS and _DERIVATIVE in node.scope for node in graph.walk()):
        raise UsageError(
            f"{ctx.current_pass}{{train=...}} is for functions that are differentiated afterwards, and this "
            "one holds gradients of its products: rewrite the loss, and differentiate that"
        )
