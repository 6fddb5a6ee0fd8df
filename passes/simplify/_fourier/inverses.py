"""Transforms that undo one another."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node
from lepton_jax.passes.simplify._fourier.sources import kind_of, lengths_of, transform
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_INVERSE: Final[dict[Any, Any]] = {
    lax.FftType.FFT: lax.FftType.IFFT,
    lax.FftType.IFFT: lax.FftType.FFT,
    lax.FftType.IRFFT: lax.FftType.RFFT,
}
"""What each kind undoes. RFFT does not undo IRFFT, which forgets the imaginary parts of some numbers."""


@movement_rule("fft", level="reassociate")
def fourier_of_inverse(node: Node, ctx: PassContext) -> Outcome:
    """ifft(fft(x)) → x, fft(ifft(x)) → x, irfft(rfft(x)) → x, of equal lengths

    Not rfft(irfft(x)). A NaN in x, which would have spread, stays where it is.
    """
    wanted = _INVERSE.get(kind_of(node))
    inner = None if wanted is None else transform(node.operands[0], node, wanted)
    if inner is None or lengths_of(inner) != lengths_of(node):
        return None
    x = inner.operands[0]
    return x if x.shape == node.result.shape and x.dtype == node.result.dtype else None


@movement_rule("fft", level="reassociate")
def fourier_of_scaled_inverse(node: Node, ctx: PassContext) -> Outcome:
    """ifft(fft(x) * s) → x * s, ifft(fft(x) / s) → x / s, and the others, where s is one number

    The norms "ortho" and "forward" write such factors.
    """
    product = node.operands[0].node
    if product is None or product.op not in ("mul", "div") or product.context is not node.context:
        return None
    left, right = product.operands
    turned = product.op == "mul" and left.ndim == 0
    spectrum, factor = (right, left) if turned else (left, right)
    wanted = _INVERSE.get(kind_of(node))
    inner = None if wanted is None or factor.ndim else transform(spectrum, node, wanted)
    if inner is None or lengths_of(inner) != lengths_of(node):
        return None
    x = inner.operands[0]
    real = kind_of(node) == lax.FftType.IRFFT
    if x.shape != node.result.shape or x.dtype != node.result.dtype or (real and not _is_real(factor)):
        return None
    return rewrite(_scaled, x, factor, op=product.op)


@movement_rule("real")
def real_of_real(node: Node, ctx: PassContext) -> Outcome:
    """real(x as complex numbers) → x, of one precision: what is left of real(ifft(fft(x)))"""
    maker = node.operands[0].node
    if maker is None or maker.op != "convert_element_type" or maker.context is not node.context:
        return None
    x = maker.operands[0]
    return x if x.dtype == node.result.dtype and x.shape == node.result.shape else None


def _is_real(factor: Any) -> bool:
    return bool(factor.is_const) and complex(factor.const).imag == 0


def _scaled(x: jax.Array, factor: jax.Array, *, op: str) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.complexfloating):
        factor = lax.real(factor)
    return x * factor if op == "mul" else x / factor


RULES: Final[tuple[Rule, ...]] = (fourier_of_inverse, fourier_of_scaled_inverse, real_of_real)
