"""Library kernels for attention: cuDNN on a GPU, splash attention on a TPU, and what they compute."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.passes.fuse._attention.shape import Shape

PLATFORM: Final[dict[str, str]] = {"gpu": "cuda", "tpu": "tpu"}
"""For each target the platform on which its kernel runs; elsewhere a plain form is computed."""

_BLOCKS: Final = (512, 256, 128)
_LANES: Final = 128
_AMPERE: Final = 8.0
_HALVES: Final = ("bfloat16", "float16")


def refuses(shape: Shape, target: str) -> str | None:
    """Why the kernel of a target does not compute an attention, None where it does."""
    if target == "gpu":
        return _cudnn_refuses(shape)
    return _splash_refuses(shape) if target == "tpu" else "there is no kernel for this target"


def fused(values: Any, queries: Any, keys: Any, *extras: Any, shape: Shape, target: str, dtype: Any) -> Any:
    """The product of weights and values, by the kernel of a target.

    Args:
        values, queries, keys: as they stand in the program.
        extras: masks and biases.
        shape: how they lie.
        target: "gpu" or "tpu".
        dtype: that of the result.
    """
    arrays = [shape.arranged(x, which) for which, x in enumerate((queries, keys, values))]
    more = [shape.extra(x, e) for x, e in zip(extras, shape.extras, strict=True)]
    kernel: Callable[..., Any] = {"gpu": cudnn, "tpu": splash}[target]
    out = lax.platform_dependent(
        *arrays,
        *more,
        **{PLATFORM[target]: functools.partial(kernel, shape=shape)},
        default=jax.checkpoint(functools.partial(reference, shape=shape)),
    )
    if not shape.sees:
        out = _filled(out, arrays[2], more, shape)
    return shape.scattered(out, 0, shape.result).astype(dtype)


def _filled(out: Any, values: Any, extras: list[Any], shape: Shape) -> Any:
    """The result with what a softmax gives where a query sees no key: NaN, or the average of all values."""
    seen = jnp.swapaxes(visible(extras, shape).any(-1), 1, 2)[..., None]
    if shape.fill == -math.inf:
        rest = jnp.full_like(out, jnp.nan)
    else:
        mean = values.mean(1, keepdims=True, dtype=jnp.float32).astype(out.dtype)
        rest = jnp.broadcast_to(jnp.repeat(mean, out.shape[2] // mean.shape[2], 2), out.shape)
    return jnp.where(seen, out, rest)


def visible(extras: list[Any], shape: Shape) -> Any:
    """Which keys are seen, [batch or 1, heads or 1, queries, keys]."""
    masks = [x for x, e in zip(extras, shape.extras, strict=True) if e.kind == "mask"]
    return functools.reduce(jnp.logical_and, masks, banded(shape))


def banded(shape: Shape) -> Any:
    """The band of keys that are seen, [1, 1, queries, keys]."""
    size = (1, 1, *shape.lengths)
    distance = lax.broadcasted_iota(jnp.int32, size, 3) - lax.broadcasted_iota(jnp.int32, size, 2)
    low, high = (float(np.clip(x, -(2**30), 2**30)) for x in shape.band)
    return (distance >= int(low)) & (distance <= int(high))


def biased(extras: tuple[Any, ...], shape: Shape) -> Any:
    """The sum of the biases, 0 if there are none."""
    return sum((x for x, e in zip(extras, shape.extras, strict=True) if e.kind == "bias"), 0)


def reference(q: Any, k: Any, v: Any, *extras: Any, shape: Shape) -> Any:
    """What the kernels compute, with all scores at once: [batch, queries, heads, features].

    The barrier keeps the pass from finding attention here again.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, 2) for x in (k, v))
    scores = shape.scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if shape.cap is not None:
        scores = shape.cap * jnp.tanh(scores)
    scores = jnp.where(visible(list(extras), shape), scores + biased(extras, shape), -1e30)
    weights = lax.optimization_barrier(jax.nn.softmax(scores).astype(v.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


# cuDNN


def _cudnn_refuses(shape: Shape) -> str | None:
    if shape.cap is not None:
        return "cuDNN does not cap scores"
    if len(set(shape.sources)) != 1 or shape.sources[0] not in _HALVES:
        return f"cuDNN computes bfloat16 and float16, not {shape.sources[0]}"
    if any(float(getattr(device, "compute_capability", _AMPERE)) < _AMPERE for device in _cuda_devices()):
        return "cuDNN has no fused attention for this GPU"
    return None


def _cuda_devices() -> list[Any]:
    """The GPUs at hand; there may be none where a program is made for another machine."""
    try:
        return list(jax.devices("cuda"))
    except RuntimeError:
        return []


def cudnn(q: Any, k: Any, v: Any, *extras: Any, shape: Shape) -> Any:
    """cuDNN's fused attention, with its own backward half."""
    queries, keys = shape.lengths
    low, high = shape.band
    causal = high == 0 and queries == keys
    window = (int(-low), 0) if causal and low > -math.inf else None
    masks = [x for x, e in zip(extras, shape.extras, strict=True) if e.kind == "mask"]
    if not causal and shape.band != (-math.inf, math.inf):
        masks.append(banded(shape))
    mask = functools.reduce(jnp.logical_and, masks) if masks else None
    bias: Any = biased(extras, shape) if any(e.kind == "bias" for e in shape.extras) else None
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], queries, keys))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], queries, keys)).astype(q.dtype)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=bias,
        mask=mask,
        scale=shape.scale,
        is_causal=causal,
        local_window_size=window,
        implementation="cudnn",
    )


# Splash attention


def _splash_refuses(shape: Shape) -> str | None:
    if any(e.kind == "bias" for e in shape.extras):
        return "splash attention takes no bias"
    if not all(_is_per_key(shape, e.axes) for e in shape.extras):
        return "splash attention takes no mask of queries and keys that is computed"
    if any(n % _LANES for n in shape.lengths):
        return f"the numbers of queries and keys are no multiples of {_LANES}"
    low, high = shape.band
    if not (low <= 0 <= high):
        return "the band of keys does not hold the query's own"
    if len(set(shape.sources)) != 1 or shape.sources[0] not in ("bfloat16", "float32"):
        return f"splash attention computes bfloat16 and float32, not {shape.sources[0]}"
    return None


def _is_per_key(shape: Shape, axes: Any) -> bool:
    return {a for part in axes for a in part} <= {shape.key, *shape.batch}


def splash(q: Any, k: Any, v: Any, *extras: Any, shape: Shape, interpret: bool = False) -> Any:
    """Splash attention, with its own backward half; masked blocks are left out."""
    kernel = _splash_kernel(q.shape[2], shape, interpret)
    q = (q.astype(jnp.float32) * (shape.scale if shape.cap is None else shape.scale * shape.cap)).astype(
        q.dtype
    )
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    if not extras:
        return jnp.swapaxes(jax.vmap(kernel)(*heads_first), 1, 2)
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    batch, queries, keys = q.shape[0], *shape.lengths
    seen = jnp.broadcast_to(functools.reduce(jnp.logical_and, extras)[:, 0, 0], (batch, keys))
    segments = SegmentIds(q=jnp.ones((batch, queries), jnp.int32), kv=seen.astype(jnp.int32))
    return jnp.swapaxes(jax.vmap(kernel)(*heads_first, segments), 1, 2)


def _splash_kernel(heads: int, shape: Shape, interpret: bool) -> Callable[..., Any]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash_attention

    lengths = shape.lengths
    low, high = shape.band
    mask: Any = splash_attention.FullMask(lengths)
    if math.isinf(low) and high == 0:
        mask = splash_attention.CausalMask(lengths)
    elif not (math.isinf(low) and math.isinf(high)):
        sides = (None if math.isinf(low) else int(-low), None if math.isinf(high) else int(high))
        mask = splash_attention.LocalMask(lengths, sides, 0)
    q, kv = (next(b for b in _BLOCKS if n % b == 0) for n in lengths)
    sizes = splash_attention.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    made: Callable[..., Any] = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=shape.cap,
        interpret=interpret,
    )
    return made
