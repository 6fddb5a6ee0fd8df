"""Linear filters one after another, and side by side, as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.lower._convolution.separable import contents
from lepton_jax.passes.lower._convolution.window import Ints, Window, is_real, taps_of, window_of, work_of
from lepton_jax.passes.simplify._movement.common import bind, changed, made_by, movement_rule, used_once
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_LESS: Final = 0.8
"""One filter must take so much less work than the two."""

_VIEWS: Final = frozenset({"squeeze", "reshape", "transpose"})

_MOST_CONSTANT: Final = 2**14
"""Numbers up to which the product of two constant kernels is computed beforehand."""


@dataclass(frozen=True)
class Kernel:
    """A known kernel, hashable.

    Attributes:
        numbers: float64 numbers, as bytes.
        shape: its shape.
    """

    numbers: bytes
    shape: Ints


@movement_rule("conv_general_dilated", level="reassociate", must_pay=True)
def cascaded_filters(node: Node, ctx: PassContext) -> Outcome:
    """conv(conv(x, k), l) → conv(x, k ∗ l), where that is less work

    Without groups; where the second one pads, only after a first one with a single tap or of mode 'full', of
    which what it would have computed further out is zero. Constant kernels are multiplied beforehand. Pays
    for filters of few taps and for a pointwise convolution after or before another; float32 and float64.
    3× for two filters of five taps (`python benchmarks/rewrites.py --only convolution`).
    """
    inner = made_by(node.operands[0], node, "conv_general_dilated")
    if inner is None or not used_once(inner.result) or not (is_real(node) and is_real(inner)):
        return None
    first, second = window_of(inner), window_of(node)
    if not _can_join(inner, node, first, second):
        return None
    joined = _joined(inner, node, first, second)
    if joined is None:
        return None
    taps = tuple(
        a + s * (b - 1)
        for a, b, s in zip(_extents(inner, first), _extents(node, second), first.strides, strict=True)
    )
    inputs = inner.operands[1].shape[first.rhs[1]]
    before = work_of(inner, first) + work_of(node, second)
    between = inner.operands[1].shape[first.rhs[0]]
    less = 1.0 if between == 1 else _LESS  # of one channel it is the passes over memory that count
    if 2 * math.prod(node.result.shape) * inputs * math.prod(taps) > less * before:
        return None
    params = changed(
        node,
        window_strides=joined.strides,
        padding=joined.padding,
        rhs_dilation=(1,) * len(taps),
        dimension_numbers=lax.ConvDimensionNumbers(first.lhs, second.rhs, second.out),
    )
    known = _known_kernel(inner, node, first, second)
    if known is not None:
        return rewrite(filtered_by, inner.operands[0], kernel=known, **params)
    return rewrite(
        filtered_once,
        inner.operands[0],
        inner.operands[1],
        node.operands[1],
        windows=(first, second),
        **params,
    )


def _can_join(inner: Node, node: Node, first: Window, second: Window) -> bool:
    """Whether nothing but zeros stands between the two where the second pads."""
    if any(w.groups != 1 or w.batch_groups != 1 or any(h != 1 for h in w.holes) for w in (first, second)):
        return False
    if first.out != second.lhs:
        return False
    types = {v.dtype for v in (*inner.operands, *node.operands, node.result)}
    if (
        len(types) != 1
        or next(iter(types)).itemsize < 4
        or inner.params["precision"] != node.params["precision"]
    ):
        return False
    extents = zip(_extents(inner, first), first.strides, first.padding, second.padding, strict=True)
    for extent, stride, own, later in extents:
        if min(own) < 0:
            return False
        if any(pad > 0 and (stride != 1 or low < extent - 1) for pad, low in zip(later, own, strict=True)):
            return False
    return True


def _extents(node: Node, window: Window) -> Ints:
    taps = taps_of(node, window)
    return tuple((tap - 1) * spread + 1 for tap, spread in zip(taps, window.spread, strict=True))


def _joined(inner: Node, node: Node, first: Window, second: Window) -> Window | None:
    """The strides and the padding of the two as one, unless something is cut off.

    XLA's convolution on a CPU, as of JAX 0.10, reads past its input where one side is padded and the other
    one cut.
    """
    x = inner.operands[0]
    strides = tuple(a * b for a, b in zip(first.strides, second.strides, strict=True))
    padding = []
    for i, (one, two) in enumerate(zip(_extents(inner, first), _extents(node, second), strict=True)):
        extent = one + first.strides[i] * (two - 1)
        low = first.padding[i][0] + first.strides[i] * second.padding[i][0]
        size = int(node.result.shape[second.out[2 + i]])
        free = (size - 1) * strides[i] + extent - int(x.shape[first.lhs[2 + i]]) - low
        if low < 0 or free <= -strides[i]:
            return None
        padding.append((low, max(free, 0)))
    rank = len(strides)
    return Window(first.lhs, second.rhs, second.out, strides, tuple(padding), (1,) * rank, (1,) * rank, 1, 1)


def _known_kernel(inner: Node, node: Node, first: Window, second: Window) -> Kernel | None:
    """The product of two constant kernels."""
    if max(inner.operands[1].aval.size, node.operands[1].aval.size) > _MOST_CONSTANT:
        return None
    k, later = contents(inner.operands[1]), contents(node.operands[1])
    if k is None or later is None:
        return None
    one = _wide(np.asarray(k, np.float64).transpose(first.rhs), first.spread)
    spread = tuple(a * b for a, b in zip(second.spread, first.strides, strict=True))
    two = _wide(np.asarray(later, np.float64).transpose(second.rhs), spread)
    sizes = [a + b - 1 for a, b in zip(one.shape[2:], two.shape[2:], strict=True)]
    made = np.zeros((two.shape[0], one.shape[1], *sizes))
    for at in np.ndindex(*two.shape[2:]):
        places = tuple(slice(start, start + n) for start, n in zip(at, one.shape[2:], strict=True))
        made[(slice(None), slice(None), *places)] += np.tensordot(two[(..., *at)], one, (1, 0))
    made = made.transpose([second.rhs.index(d) for d in range(made.ndim)])
    return Kernel(made.tobytes(), made.shape)


def _wide(kernel: np.ndarray[Any, Any], spread: Ints) -> np.ndarray[Any, Any]:
    """A kernel with the holes of its dilation filled with zeros."""
    sizes = [(n - 1) * s + 1 for n, s in zip(kernel.shape[2:], spread, strict=True)]
    found = np.zeros((*kernel.shape[:2], *sizes))
    found[(slice(None), slice(None), *(slice(None, None, s) for s in spread))] = kernel
    return found


def filtered_by(x: jax.Array, *, kernel: Kernel, primitive: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    """The convolution with a known kernel."""
    known = np.frombuffer(kernel.numbers).reshape(kernel.shape).astype(x.dtype)
    return bind(x, jnp.asarray(known), primitive=primitive, params=params)


def filtered_once(
    x: jax.Array,
    k: jax.Array,
    later: jax.Array,
    *,
    windows: tuple[Window, Window],
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> Any:
    """The convolution with the product of two kernels, which is a convolution of one with the other."""
    first, second = windows
    rank = len(first.strides)
    spread = tuple(a * b for a, b in zip(second.spread, first.strides, strict=True))
    reach = [(later.shape[d] - 1) * s for d, s in zip(second.rhs[2:], spread, strict=True)]
    kernel = lax.conv_general_dilated(
        k,
        lax.rev(later, second.rhs[2:]),
        (1,) * rank,
        [(r, r) for r in reach],
        first.spread,
        spread,
        lax.ConvDimensionNumbers(
            (first.rhs[1], first.rhs[0], *first.rhs[2:]),
            second.rhs,
            (second.rhs[1], second.rhs[0], *second.rhs[2:]),
        ),
        precision=dict(params)["precision"],
    )
    return bind(x, kernel, primitive=primitive, params=params)


@movement_rule("add", "sub", "add_any", level="reassociate", must_pay=True)
def sum_of_filters(node: Node, ctx: PassContext) -> Outcome:
    """conv(x, k) ± conv(x, l) → conv(x, k ± l), conv(x, k) ± conv(y, k) → conv(x ± y, k)

    For numbers of 32 bits and more. 1.8× (`python benchmarks/rewrites.py --only convolution`).
    """
    a, b = node.operands
    view = a.node if a.op in _VIEWS and b.op == a.op and used_once(a) and used_once(b) else None
    if view is not None and b.node is not None:
        if dict(view.params) != dict(b.node.params) or len(view.operands) != 1:
            return None
        a, b = view.operands[0], b.node.operands[0]
    one = made_by(a, node, "conv_general_dilated")
    two = made_by(b, node, "conv_general_dilated") if one is not None else None
    if one is None or two is None or one is two or not is_real(one) or node.result.dtype.itemsize < 4:
        return None
    if not (used_once(one.result) and used_once(two.result)) or dict(one.params) != dict(two.params):
        return None
    for side in (0, 1):
        a, b = one.operands[1 - side], two.operands[1 - side]
        if one.operands[side] is two.operands[side] and a.aval == b.aval:
            op = "sub" if node.op == "sub" else "add"
            seen = None if view is None else (view.primitive, tuple(sorted(view.params.items())))
            return rewrite(
                filtered_sum, a, b, one.operands[side], op=op, side=1 - side, view=seen, **changed(one)
            )
    return None


def filtered_sum(
    a: jax.Array,
    b: jax.Array,
    common: jax.Array,
    *,
    op: str,
    side: int,
    view: Any,
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
) -> Any:
    """The convolution with the sum of two inputs (side 0) or two kernels (side 1), in another view."""
    total = (lax.sub if op == "sub" else lax.add)(a, b)
    pair = (common, total) if side == 1 else (total, common)
    made = bind(*pair, primitive=primitive, params=params)
    return made if view is None else bind(made, primitive=view[0], params=view[1])


RULES: Final[tuple[Rule, ...]] = (cascaded_filters, sum_of_filters)
