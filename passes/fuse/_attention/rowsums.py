"""The sums over the keys in the backward half, without a loop over blocks.

The gradient of a softmax wants, for each query, the sum over the keys of weights times their gradients.
That is the product of the result with its gradient, summed over the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from lepton_jax.ir.graph import Value
from lepton_jax.passes.fuse._attention.backward import changed, terms_of
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.recognise import standard
from lepton_jax.passes.fuse._attention.region import Sink
from lepton_jax.passes.fuse._attention.shape import FEATURE, Axes, arranged
from lepton_jax.passes.fuse._attention.standard import NotStandardError, Standard
from lepton_jax.rewrite import erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before


@dataclass(frozen=True, eq=False)
class RowSum:
    """A sum over the keys of a multiple of exponentials and their gradients.

    Attributes:
        sink: the sum.
        factor: what it is multiplied by.
        power: that of the sums of the exponentials in it.
        axes: those of its result.
    """

    sink: Sink
    factor: float
    power: int
    axes: Axes


@dataclass(frozen=True, eq=False)
class RowSums:
    """All such sums.

    Attributes:
        made: the attention.
        change: the gradient of its result.
        axes: those of `change`.
        total_axes: those of the sums of the exponentials.
        sums: the sums.
    """

    made: Standard
    change: Value
    axes: Axes
    total_axes: Axes
    sums: tuple[RowSum, ...]


def row_sums(found: Found, sinks: Sequence[Sink]) -> RowSums | None:
    """The sums over the keys among the sinks that are products of the result with its gradient."""
    candidates = [s for s in sinks if s.node.op == "reduce_sum"]
    made = standard(found) if candidates and found.divided else ""
    if isinstance(made, str):
        return None
    try:
        change, axes = changed(found, made, [s.node for s in sinks if s.node.op == "dot_general"])
    except NotStandardError:
        return None
    sums = []
    for sink in candidates:
        try:
            terms, rows = terms_of(sink.node, found, made, (change, axes))
        except NotStandardError:
            continue
        (((e, g, power, r, bend), factor),) = terms.items() if len(terms) == 1 else (((0,) * 5, 0.0),)
        if (e, g, r, bend) == (0, 0, 1, 0):
            sums.append(RowSum(sink, factor, power, rows))
    total = tuple(a for d, a in enumerate(made.axes[found.exp.result]) if d != found.labels[1])
    return RowSums(made, change, axes, total, tuple(sums)) if sums else None


def row_sum(
    change: Any,
    out: Any,
    total: Any,
    *,
    axes: tuple[Axes, Axes, Axes],
    rows: Axes,
    sizes: tuple[int, ...],
    factor: float,
    power: int,
    dtype: Any,
) -> Any:
    """The sum over the features of the result times its gradient, times a power of the sums."""
    wide = jnp.promote_types(dtype, jnp.float32)
    wanted = (*rows, (FEATURE,))
    change, out = (arranged(x, a, wanted, sizes).astype(wide) for x, a in ((change, axes[0]), (out, axes[1])))
    made = (change * out).sum(-1)
    if power != -1:
        made = made * arranged(total, axes[2], rows, sizes).astype(wide) ** (power + 1)
    return (made if factor == 1 else made * factor).astype(dtype)


def write_row_sums(plan: RowSums, out: Value, total: Value, rule: str) -> None:
    """Put products in place of the sums."""
    made = plan.made
    for row in plan.sums:
        node = row.sink.node
        (value,) = write_before(
            rewrite(
                row_sum,
                plan.change,
                out,
                total,
                axes=(plan.axes, made.result_axes, plan.total_axes),
                rows=row.axes,
                sizes=made.sizes,
                factor=row.factor,
                power=row.power,
                dtype=node.result.dtype,
            ),
            node,
            rule,
        )
        node.result.replace_uses(value)
        erase_dead(node)
