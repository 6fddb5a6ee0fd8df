"""A stream, rotated: its weights, and what parameters are added to it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.graph import Value, constant
from lepton_jax.numerics.hadamard import Signs, rotate
from lepton_jax.passes.quantize._rotate.stream import Place, Reader, Stream
from lepton_jax.passes.simplify._absorb.after import compacted
from lepton_jax.passes.simplify._absorb.known import compact_shape, wide
from lepton_jax.passes.simplify._absorb.product import Layout
from lepton_jax.rewrite import rewrite
from lepton_jax.rewrite.driver import erase_dead
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "rotated-stream"


def signs_of(size: int, seed: int) -> tuple[int, ...]:
    """Random signs, the same for the same seed."""
    drawn: Signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size)
    return tuple(map(int, drawn))


def turned(x: jax.Array, axis: int, signs: tuple[int, ...]) -> jax.Array:
    """An array rotated along an axis, in float32 at least; its dtype is kept."""
    dtype = wide(x)
    return rotate(x.astype(dtype), jnp.asarray(signs, dtype), axis).astype(x.dtype)


def write_stream(stream: Stream, free: Collection[Value] | None, seed: int) -> None:
    """Rotate what writes a stream and what reads it.

    Args:
        free: the values that have no mean, where the mean is taken out of what is written; None: it stays.
        seed: of the signs.
    """
    signs = signs_of(stream.size, seed)
    for place in dict.fromkeys(stream.writers):
        _put(place, _written, axis=place.axis, centre=free is not None, signs=signs)
    for place in dict.fromkeys(stream.added):
        keeps = free is None or any(v in free for v in place.node.results)
        rank = place.value.ndim or (place.node.results[0].ndim if place.node.results else 0)
        shape = place.node.results[0].shape if not place.value.ndim else place.value.shape
        compact = compact_shape(place.value, rank)
        whole = tuple(stream.size if i == place.axis else n for i, n in enumerate(shape))
        static: dict[str, Any] = {"compact": compact, "whole": whole, "axis": place.axis}
        _put(place, _added, centre=not keeps, signs=signs, **static)
    means_free = free is not None and not any(v in free for place in stream.added for v in place.node.results)
    if free is not None:
        for node in stream.sums:
            zero = constant(np.zeros((), node.result.dtype), jax.typeof(np.zeros((), node.result.dtype)))
            (zeros,) = write_before(rewrite(_spread, zero, shape=node.result.shape), node, RULE)
            node.result.replace_uses(zeros)
            erase_dead(node)
    for reader in stream.readers:
        _put_reader(reader, stream, means_free, signs)


def _put(place: Place, fun: Any, **static: Any) -> None:
    (value,) = write_before(rewrite(fun, place.value, **static), place.node, RULE)
    place.node.set_operand(place.position, value)


def _written(weight: jax.Array, *, axis: int, centre: bool, signs: tuple[int, ...]) -> jax.Array:
    return turned(_centred(weight, axis) if centre else weight, axis, signs)


def _centred(x: jax.Array, axis: int) -> jax.Array:
    dtype = wide(x)
    return (x.astype(dtype) - jnp.mean(x.astype(dtype), axis, keepdims=True)).astype(x.dtype)


def _added(
    x: jax.Array,
    *,
    compact: tuple[int, ...],
    whole: tuple[int, ...],
    axis: int,
    centre: bool,
    signs: tuple[int, ...],
) -> jax.Array:
    """What is added to a stream; as long as the axis, since a rotation keeps nothing the same along it."""
    short = jnp.broadcast_to(compacted(x, compact), compact)
    long = jnp.broadcast_to(short, [whole[i] if i == axis else n for i, n in enumerate(compact)])
    return jnp.broadcast_to(_written(long, axis=axis, centre=centre, signs=signs), whole)


def _spread(x: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(x, shape)


def _put_reader(reader: Reader, stream: Stream, means_free: bool, signs: tuple[int, ...]) -> None:
    product, steps = reader.product, reader.steps
    shifts = any(step.kind != "mul" for step in steps)
    centre = means_free and not steps
    if not shifts and not steps:
        place = Place(product.node, product.side, reader.axis)
        _put(place, _written, axis=place.axis, centre=centre, signs=signs)
        return
    plain = steps[0].node
    value = next(v for v in plain.operands if v in stream.axes)
    for row in steps[0].rows:
        (value,) = write_before(rewrite(_times, value, row), product.node, RULE)
    coefficients = [v for step in steps for v in step.early]
    shapes = tuple(compact_shape(v, plain.result.ndim) for v in coefficients)
    stream.known.write(
        RULE,
        product.node,
        _read,
        *(value, product.weight, *coefficients),
        layout=product.layout,
        axis=reader.axis,
        shapes=shapes,
        kinds=tuple((step.kind, len(step.early)) for step in steps),
        signs=signs,
    )
    for step in reversed(steps):
        if step.node.alive and not any(v.uses for v in step.node.results):
            erase_dead(step.node)


def _times(x: jax.Array, row: jax.Array) -> jax.Array:
    return x * row


def _read(
    x: jax.Array,
    weight: jax.Array,
    *coefficients: jax.Array,
    layout: Layout,
    axis: int,
    shapes: tuple[tuple[int, ...], ...],
    kinds: tuple[tuple[str, int], ...],
    signs: tuple[int, ...],
) -> jax.Array:
    """(x · g + b) @ W as rotated x @ (Qᵀ diag(g) W) + b @ W."""
    dtype = wide(weight, *coefficients)
    each = [
        jnp.broadcast_to(compacted(c.astype(dtype), shape), shape)
        for c, shape in zip(coefficients, shapes, strict=True)
    ]
    wide_weight = weight.astype(dtype)
    scaled, shift = wide_weight, None
    for kind, count in kinds:
        part, each = each[:count], each[count:]
        for coefficient in part:
            inside = layout.inside(coefficient, weight)
            if kind == "mul":
                scaled = scaled * inside
                continue
            if kind == "from":
                scaled, shift = -scaled, None if shift is None else -shift
            more = wide_weight * (-inside if kind == "sub" else inside)
            shift = more if shift is None else shift + more
    result: jax.Array = layout.multiply(x, turned(scaled, axis, signs).astype(weight.dtype))
    if shift is None:
        return result
    shifted: jax.Array = result + layout.summed(shift, result.ndim).astype(result.dtype)
    return shifted
