"""What Fourier transforms are made of: their kinds, and real numbers written as complex ones."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.facts import number_facts
from lepton_jax.ir.graph import Node, Value

FEWEST_ROWS: Final = 4
"""XLA runs one long transform on all cores, but only complex ones."""

LEAST_SIZE: Final = 2**14
"""Numbers below which all transforms take about as long."""

_LARGEST_CONSTANT: Final = 2**20


def kind_of(node: Node) -> Any:
    """Which transform a node is."""
    return node.params["fft_type"]


def lengths_of(node: Node) -> tuple[int, ...]:
    """The lengths of a transform, over the last dimensions."""
    return tuple(node.params["fft_lengths"])


def transform(value: Value, node: Node, kind: Any) -> Node | None:
    """The transform of some kind that makes a value, if it is in the same context as `node`."""
    maker = value.node
    if maker is None or maker.op != "fft" or maker.context is not node.context or kind_of(maker) != kind:
        return None
    return maker


def real_source(value: Value) -> Value | None:
    """A value with the real part of `value`, whose imaginary part is zero; constants themselves."""
    if value.is_const:
        array = _jax.plain_constant(value.const) if math.prod(value.shape) <= _LARGEST_CONSTANT else None
        real = array is not None and np.iscomplexobj(array) and not np.any(np.imag(array))
        return value if real else None
    maker = value.node
    if maker is None:
        return None
    if maker.op == "convert_element_type":
        x = maker.operands[0]
        return x if not jnp.issubdtype(x.dtype, np.complexfloating) else None
    if maker.op == "complex" and maker.operands[0].shape == value.shape:
        splat = number_facts(maker.operands[1]).splat
        return maker.operands[0] if splat is not None and splat == 0 else None
    return None


def is_worth_it(value: Value, rank: int) -> bool:
    """Whether a transform over the last `rank` dimensions of a value is one of many, and large enough."""
    size = math.prod(value.shape)
    rows = math.prod(value.shape[: value.ndim - rank])
    return bool(size >= LEAST_SIZE and rows >= FEWEST_ROWS)


def half(x: jax.Array, lengths: tuple[int, ...], dtype: Any) -> jax.Array:
    """The transform of the real part of `x`: of the last dimension only the first half."""
    if jnp.issubdtype(x.dtype, np.complexfloating):
        x = lax.real(x)
    result: jax.Array = lax.fft(x.astype(jnp.finfo(dtype).dtype), lax.FftType.RFFT, lengths)
    return result
