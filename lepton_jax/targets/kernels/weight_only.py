"""Products of floating-point activations with weights in 4 or 8 bits, for few rows at a time.

The kernel reads the codes as they are stored, makes numbers of them in registers and hands them to the
matrix units: what it takes is the time to read the codes. It is written for Triton through Pallas and runs
on NVIDIA GPUs from Ampere on; on other platforms and for many rows the codes are decoded first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir import _primitives
from lepton_jax.targets.kernels.blocks import MOST_ROWS, Blocks, blocks_for, padded_rows
from lepton_jax.targets.kernels.conversion import convert_plane
from lepton_jax.targets.kernels.words import WORD, block_size, pack_words, unpack_words

_AMPERE: Final = 8.0


@dataclass(frozen=True)
class Layout:
    """How a weight [columns, inner] is kept.

    Attributes:
        columns: of the result, rows of the weight.
        inner: what is summed over.
        bits: of a code, 4 or 8.
        group: codes along what is summed over that share a scale; 0: all of a column.
    """

    columns: int
    inner: int
    bits: int
    group: int

    @property
    def width(self) -> int:
        """How many codes that follow one another are in the same place of their words."""
        return 32 if self.group and self.group % 64 else 64

    @property
    def groups(self) -> int:
        """How many scales a column has."""
        return -(-self.inner // self.group) if self.group else 1

    @property
    def fits(self) -> bool:
        """Whether the kernel takes it: 4 or 8 bits, groups of a multiple of 32."""
        return self.bits in (4, 8) and self.group % 32 == 0 and self.columns >= 16 and self.inner >= 32


def relaid(codes: jax.Array, layout: Layout) -> jax.Array:
    """The words of codes, int8 [columns, inner]: see `words`."""
    return pack_words(codes, layout.bits, layout.width)


def decoded(words: jax.Array, scale: jax.Array, layout: Layout, dtype: Any) -> jax.Array:
    """The weight [columns, inner] that words and scales stand for.

    Args:
        words: int16.
        scale: float32 [groups, columns].
        layout: how they are kept.
        dtype: of the result; the product of code and scale is made in float32.
    """
    codes = unpack_words(words, layout.columns, layout.inner, layout.bits, layout.width)
    factors = scale.T if not layout.group else jnp.repeat(scale.T, layout.group, 1)[:, : layout.inner]
    return (codes.astype(jnp.float32) * factors).astype(dtype)


def weight_only_dot(
    x: jax.Array, words: jax.Array, scale: jax.Array, layout: Layout, dtype: Any
) -> jax.Array:
    """Activations times a weight that is kept in words: `x · weightᵀ`, summed in float32.

    On an NVIDIA GPU a kernel up to 64 rows of activations, in programs that are compiled for it and not
    exported; otherwise the product with the decoded weight. Under `vmap` over the activations, batches become
    rows. It has derivatives of any order in the activations and the scales.

    Args:
        x: bfloat16 or float16 [rows, inner].
        words: of `relaid`.
        scale: float32 [groups, columns].
        layout: how the weight is kept.
        dtype: of the result.

    Returns:
        [rows, columns].

    Raises:
        ValueError: shapes or dtypes that do not fit the layout.

    Example:
        >>> layout = Layout(columns=16, inner=64, bits=4, group=32)
        >>> words = relaid(jnp.ones((16, 64), jnp.int8), layout)
        >>> x, scale = jnp.ones((1, 64), jnp.bfloat16), jnp.ones((2, 16))
        >>> y = weight_only_dot(x, words, scale, layout, jnp.float32)
        >>> y.shape, float(y[0, 0])
        ((1, 16), 64.0)
    """
    if x.ndim != 2 or x.shape[1] != layout.inner or x.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"activations are bfloat16 or float16 [rows, {layout.inner}], not {x.dtype}{list(x.shape)}"
        )
    if scale.shape != (layout.groups, layout.columns):
        raise ValueError(f"scales are [{layout.groups}, {layout.columns}], not {list(scale.shape)}")
    y: jax.Array = _product(x, words, scale, layout, jnp.dtype(dtype))
    return y


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _product(x: jax.Array, words: jax.Array, scale: jax.Array, layout: Layout, dtype: Any) -> jax.Array:
    if not 0 < x.shape[0] <= MOST_ROWS:
        return plain(x, words, scale, layout, dtype)
    y: jax.Array = _batched(layout, dtype)(x, words, scale)
    return y


@_product.defjvp
def _product_jvp(layout: Layout, dtype: Any, primals: Any, tangents: Any) -> Any:
    x, words, scale = primals
    dx, _, dscale = tangents
    y = _product(x, words, scale, layout, dtype)
    _, dy = jax.jvp(lambda x, scale: plain(x, words, scale, layout, dtype), (x, scale), (dx, dscale))
    return y, dy


def plain(x: jax.Array, words: jax.Array, scale: jax.Array, layout: Layout, dtype: Any) -> jax.Array:
    """The product with the decoded weight."""
    weight = decoded(words, scale, layout, x.dtype)
    return lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).astype(
        dtype
    )


def has_kernel() -> bool:
    """Whether Pallas can compile the kernel in this process.

    It needs to know the GPU: one that is at hand, from Ampere on, or an abstract one
    (`jax.sharding.AbstractDevice`), as that of arguments that lie on GPUs that are not there.
    """
    try:
        from jax.experimental.pallas import triton
    except ImportError:  # removed from JAX
        return False
    device = _device()
    if device is not None:
        return float(getattr(device, "compute_capability", _AMPERE)) >= _AMPERE
    if not hasattr(triton, "get_gpu_info"):  # before 0.11 no device was needed
        return True
    try:
        return bool(triton.get_gpu_info().compute_capability >= 10 * _AMPERE)
    except (ValueError, RuntimeError):
        return False


def _device() -> Any:
    """The first GPU at hand, None if there is none."""
    try:
        return jax.devices("cuda")[0]
    except RuntimeError:
        return None


def _kind() -> str:
    """What the GPU is called that is at hand, or compiled for."""
    device = _device() or getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return str(getattr(device, "device_kind", ""))


@functools.cache
def _batched(layout: Layout, dtype: Any) -> Any:
    """The product of one platform or another, in which batches of activations become rows."""

    default = functools.partial(plain, layout=layout, dtype=dtype)

    def kernel(x: jax.Array, words: jax.Array, scale: jax.Array) -> Any:
        return call_kernel(x, words, scale, layout, dtype) if has_kernel() else NotImplemented

    @jax.custom_batching.custom_vmap
    def product(x: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
        y: jax.Array = _primitives.compiled_on("cuda", kernel, default, x, words, scale)
        return y

    @product.def_vmap
    def rule(size: int, batched: Any, x: jax.Array, words: jax.Array, scale: jax.Array) -> Any:
        if batched[1] or batched[2]:
            axes = tuple(0 if each else None for each in batched)
            return jax.vmap(default, axes)(x, words, scale), True
        y = _product(x.reshape(size * x.shape[1], layout.inner), words, scale, layout, dtype)
        return y.reshape(size, -1, layout.columns), True

    return product


def call_kernel(
    x: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    layout: Layout,
    dtype: Any,
    blocks: Blocks | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The product by the kernel.

    Args:
        blocks: how it is cut; None: as the table says.
        interpret: in JAX, on any platform: for tests.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    rows, columns = x.shape[0], words.shape[0]
    inner = words.shape[1] * (WORD // layout.bits)
    size = blocks or blocks_for(
        rows, layout.columns, layout.inner, layout.bits, layout.group, layout.width, _kind()
    )
    if inner > layout.inner:
        x = jnp.pad(x, ((0, 0), (0, inner - layout.inner)))
    if columns > layout.columns:
        scale = jnp.pad(scale, ((0, 0), (0, columns - layout.columns)))
    kernel = functools.partial(_kernel, layout=layout, size=size, rows=rows, assembly=not interpret)
    parts = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((size.splits, rows, columns), jnp.float32),
        grid=(columns // size.columns, size.splits),
        compiler_params=triton.CompilerParams(num_warps=size.warps, num_stages=size.stages),
        interpret=interpret,
        name="weight_only_dot",
    )(x, words, scale)
    return jnp.sum(parts, 0)[:, : layout.columns].astype(dtype)


def _kernel(
    x_ref: Any, w_ref: Any, s_ref: Any, y_ref: Any, *, layout: Layout, size: Blocks, rows: int, assembly: bool
) -> None:
    """One block of columns, and one part of the sum: [columns, rows] in registers, weights on the left."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    width = layout.width
    block = block_size(layout.bits, width)
    blocks = w_ref.shape[1] // width
    each = -(-blocks // size.splits)
    first = pl.program_id(0) * size.columns
    part = pl.program_id(1)
    high = padded_rows(rows)
    columns = pl.ds(first, size.columns)
    at_row = jnp.minimum(lax.broadcasted_iota(jnp.int32, (width, high), 1), rows - 1)
    at_inner = lax.broadcasted_iota(jnp.int32, (width, high), 0)

    def scale_at(group: Any) -> jax.Array:
        return triton.load(s_ref.at[group, columns])[:, None]

    def step(i: Any, total: jax.Array) -> jax.Array:
        index = part * each + i
        words = triton.load(w_ref.at[columns, pl.ds(index * width, width)])
        for planes in runs(layout):
            found = jnp.zeros((size.columns, high), jnp.float32)
            for p in planes:
                weight = convert_plane(words, p, layout.bits, x_ref.dtype, assembly=assembly)
                x = triton.load(x_ref.at[at_row, index * block + p * width + at_inner])
                found = found + jnp.dot(weight, x, preferred_element_type=jnp.float32)
            if layout.group:
                place = jnp.minimum((index * block + planes[0] * width) // layout.group, layout.groups - 1)
                found = found * scale_at(place)
            total = total + found
        return total

    start = jnp.zeros((size.columns, high), jnp.float32)
    total = lax.fori_loop(0, jnp.clip(blocks - part * each, 0, each), step, start)
    if not layout.group:
        total = total * scale_at(lax.full((), 0, jnp.int32))
    to_row = lax.broadcasted_iota(jnp.int32, (size.columns, high), 1)
    to_column = first + lax.broadcasted_iota(jnp.int32, (size.columns, high), 0)
    triton.store(y_ref.at[part, to_row, to_column], total, mask=to_row < rows)


def runs(layout: Layout) -> list[list[int]]:
    """The places of a word, those together that share a scale in every block.

    Example:
        >>> runs(Layout(16, 1024, 4, 128)), runs(Layout(16, 1024, 4, 32))
        ([[0, 1], [2, 3]], [[0], [1], [2], [3]])
    """
    planes = range(WORD // layout.bits)
    block = block_size(layout.bits, layout.width)
    if not layout.group or layout.group % block == 0:
        return [list(planes)]
    if block % layout.group:
        return [[p] for p in planes]
    found: dict[int, list[int]] = {}
    for p in planes:
        found.setdefault(p * layout.width // layout.group, []).append(p)
    return list(found.values())
