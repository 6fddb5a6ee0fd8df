"""Complex transforms of real numbers: half of the result says all."""

from __future__ import annotations

from typing import Any, Final

import jax
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._fourier.sources import (
    half,
    is_worth_it,
    kind_of,
    lengths_of,
    real_source,
    transform,
)
from lepton_jax.passes.simplify._movement.common import is_free, movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_ELEMENTWISE: Final = frozenset(
    {"abs", "conj", "exp", "imag", "integer_pow", "log", "log1p", "neg", "real", "sqrt", "square"}
)
_FURTHEST: Final = 5

Step = tuple[Any, tuple[tuple[str, Any], ...]]


@movement_rule("slice", level="reassociate", backends=("cpu", "gpu"))
def half_of_fourier(node: Node, ctx: PassContext) -> Outcome:
    """fft(x)[..., :k] → rfft(x)[..., :k], for real x of length n and k up to n // 2 + 1

    Also with steps between that take one number to one: abs(fft(x))[..., :k].
    2× to 4× (`python benchmarks/rewrites.py --only fourier`).
    """
    if not is_free(node):
        return None
    steps, value = _steps_above(node)
    inner = transform(value, node, lax.FftType.FFT)
    if inner is None or len(value.uses) != 1:
        return None
    x, lengths = real_source(inner.operands[0]), lengths_of(inner)
    if x is None or not lengths or node.params["limit_indices"][-1] > lengths[-1] // 2 + 1:
        return None
    start, limit, stride = (node.params[k] for k in ("start_indices", "limit_indices", "strides"))
    part = (tuple(start), tuple(limit), None if stride is None else tuple(stride))
    return rewrite(_part, x, lengths=lengths, dtype=value.dtype, part=part, steps=steps)


def _steps_above(node: Node) -> tuple[tuple[Step, ...], Value]:
    """The elementwise steps above a slice, first step first, and what they start from."""
    steps: list[Step] = []
    value = node.operands[0]
    while len(steps) < _FURTHEST:
        maker = value.node
        if maker is None or maker.op not in _ELEMENTWISE or len(value.uses) != 1:
            break
        if maker.context is not node.context:
            break
        steps.append((maker.primitive, tuple(sorted(maker.params.items()))))
        value = maker.operands[0]
    return tuple(reversed(steps)), value


def _part(
    x: jax.Array, *, lengths: tuple[int, ...], dtype: Any, part: tuple[Any, Any, Any], steps: tuple[Step, ...]
) -> jax.Array:
    found = half(x, lengths, dtype)
    start, limit, stride = part
    whole = not any(start) and tuple(limit) == found.shape and (stride is None or all(s == 1 for s in stride))
    if not whole:
        found = lax.slice(found, start, limit, stride)
    for primitive, params in steps:
        found = primitive.bind(found, **dict(params))
    return found


@movement_rule("fft", level="reassociate", backends=("cpu",))
def fourier_of_real(node: Node, ctx: PassContext) -> Outcome:
    """fft(x) → [rfft(x), conj(rfft(x)) backwards] for real x

    Over one dimension, and where there are at least four transforms of 16,384 numbers in all: XLA spreads one
    long complex transform over the cores, but no real one. 1.3× to 2×
    (`python benchmarks/rewrites.py --only fourier`).
    """
    lengths = lengths_of(node)
    if kind_of(node) != lax.FftType.FFT or len(lengths) != 1 or node.operands[0].is_const:
        return None
    x = real_source(node.operands[0])
    if x is None or lengths[0] < 4 or not is_worth_it(node.result, 1):
        return None
    return rewrite(_completed, x, lengths=lengths, dtype=node.result.dtype)


def _completed(x: jax.Array, *, lengths: tuple[int, ...], dtype: Any) -> jax.Array:
    found = half(x, lengths, dtype)
    (n,) = lengths
    inner = lax.slice_in_dim(found, 1, (n + 1) // 2, axis=-1)
    return lax.concatenate([found, lax.conj(lax.rev(inner, (found.ndim - 1,)))], found.ndim - 1)


READS: Final[tuple[Rule, ...]] = (half_of_fourier,)
WHOLE: Final[tuple[Rule, ...]] = (fourier_of_real,)
