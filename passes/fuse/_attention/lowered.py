"""Putting a library kernel in place of attention, forward and backward."""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.passes.fuse._attention.backward import Backward, backward
from lepton_jax.passes.fuse._attention.kernels import fused, refuses
from lepton_jax.passes.fuse._attention.match import Found
from lepton_jax.passes.fuse._attention.order import sort
from lepton_jax.passes.fuse._attention.recognise import standard
from lepton_jax.passes.fuse._attention.shape import Axes, Shape
from lepton_jax.passes.fuse._attention.standard import Standard
from lepton_jax.rewrite import PassContext, erase_dead, rewrite
from lepton_jax.rewrite.replacement import write_before

RULE: Final = "attention-kernel"

_REFUSED: Final = (RuntimeError, NotImplementedError, ValueError)
"""What JAX raises where a kernel is not there or does not take these shapes."""

_WHOLE: Final = 4
"""A mask or a bias may be held whole if all scores are this many times as many."""


def lower(found: Found, ctx: PassContext, target: str, fewest: int) -> bool:
    """Write the kernel of a target in place of attention; whether that was done."""
    made = standard(found) if found.divided else "the weights are divided after the product"
    both = made if isinstance(made, str) else backward(found, made)
    if isinstance(made, str) or isinstance(both, str):
        ctx.miss(RULE, found.dot, str(both))
        return False
    shape = made.shape
    reason = _why_not(found, made, shape, target, fewest)
    if reason is not None:
        ctx.miss(RULE, found.dot, reason)
        return False
    if not ctx.fire(RULE, found.dot):
        return False
    _write(found, made, both, shape, target)
    return True


def _why_not(found: Found, made: Standard, shape: Shape, target: str, fewest: int) -> str | None:
    if found.size[1] < fewest:
        return f"there are {found.size[1]} keys; the kernel pays from {fewest}"
    reason = refuses(shape, target) or _whole(made, shape)
    return reason or trial(_avals(made), shape, target, found.dot.result.dtype)


def _avals(made: Standard) -> tuple[Any, ...]:
    values = (made.values, made.queries, made.keys, *(v for v, _ in made.extras))
    return tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values)


def _whole(made: Standard, shape: Shape) -> str | None:
    """Whether a mask or a bias is computed, of queries and keys, and nearly as large as the scores."""
    scores = shape.size(*range(len(shape.sizes)))
    for value, extra in made.extras:
        atoms = {a for part in extra.axes for a in part} | {shape.query, shape.key}
        if value.node is not None and shape.size(*atoms) * _WHOLE > scores:
            return f"a {extra.kind} of nearly all scores would have to be held whole"
    return None


@functools.lru_cache(maxsize=512)
def trial(avals: tuple[Any, ...], shape: Shape, target: str, dtype: Any) -> str | None:
    """Trace the kernel forward and backward: JAX knows what it takes, and whether it is there."""

    def both(values: Any, *rest: Any) -> Any:
        out, pullback = jax.vjp(
            lambda *x: fused(*x, *rest[2:], shape=shape, target=target, dtype=dtype), values, *rest[:2]
        )
        return pullback(out)

    try:
        jax.eval_shape(both, *avals)
    except _REFUSED as error:
        return str(error).partition("\n")[0]
    return None


def forward(*arrays: Any, shape: Shape, target: str, dtype: Any) -> Any:
    """The product, and what the backward half needs of the forward one."""
    out, pullback = _linearised(*arrays, shape=shape, target=target, dtype=dtype)
    return out, jax.tree.leaves(pullback)


def _linearised(*arrays: Any, shape: Shape, target: str, dtype: Any) -> Any:
    extras = arrays[3:]
    return jax.vjp(lambda *x: fused(*x, *extras, shape=shape, target=target, dtype=dtype), *arrays[:3])


def gradients(
    change: Any,
    *kept: Any,
    shape: Shape,
    target: str,
    dtype: Any,
    avals: tuple[Any, ...],
    axes: Axes,
    ends: tuple[tuple[int, float, Axes, Any], ...],
) -> list[Any]:
    """The gradients that the backward half wants.

    Args:
        change: that of the product.
        kept: what `forward` gave.
        axes: the axes of `change`.
        ends: for each gradient of which array (0 queries, 1 keys, 2 values), factor, axes and dtype.
    """
    avals = tuple(jax.ShapeDtypeStruct(s, d) for s, d in avals)
    made = jax.eval_shape(lambda *x: _linearised(*x, shape=shape, target=target, dtype=dtype)[1], *avals)
    pullback = jax.tree.unflatten(jax.tree.structure(made), kept)
    cotangent = shape.scattered(shape.rearranged(change, axes), 0, shape.result).astype(dtype)
    values, queries, keys = pullback(cotangent)
    found = []
    for which, factor, wanted, kind in ends:
        x = shape.arranged((queries, keys, values)[which], which)
        x = x if factor == 1 else x * jnp.asarray(factor, x.dtype)
        found.append(shape.scattered(x, which, wanted).astype(kind))
    return found


def _write(found: Found, made: Standard, both: Backward, shape: Shape, target: str) -> None:
    dot = found.dot
    graph = dot.graph
    assert graph is not None
    static = {"shape": shape, "target": target, "dtype": dot.result.dtype}
    arrays = (made.values, made.queries, made.keys, *(v for v, _ in made.extras))
    if both.change is None:
        (out,) = write_before(rewrite(fused, *arrays, **static), dot, RULE)
        kept: list[Value] = []
    else:
        out, *kept = write_before(rewrite(forward, *arrays, **static), dot, RULE)
    dot.result.replace_uses(out)
    erase_dead(dot)
    if both.change is None:
        return
    sort(graph)
    _write_gradients(graph, both, kept, arrays, static)


def _write_gradients(
    graph: Graph, both: Backward, kept: list[Value], arrays: tuple[Value, ...], static: dict[str, Any]
) -> None:
    ends = both.ends
    made = rewrite(
        gradients,
        both.change,  # type: ignore[arg-type]
        *kept,
        **static,
        avals=tuple((v.shape, v.dtype) for v in arrays),
        axes=both.axes,
        ends=tuple((e.which, e.factor, e.axes, e.node.result.dtype) for e in ends),
    )
    results = write_before(made, ends[-1].node, RULE)
    for end, value in zip(ends, results, strict=True):
        end.node.result.replace_uses(value)
    for end in ends:
        erase_dead(end.node)
    sort(graph)
