"""A program evaluated in float64: what its result would be without rounding.

Every float becomes a float64, every complex number a complex128, for all operations whose meaning
does not depend on the width of a number. Operations that look at bits, draw random
numbers or call out run in their own type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.ir import _jax
from lepton_jax.ir.export import bind
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import RUN_ONCE

_NATIVE: Final = frozenset(
    {
        "bitcast_convert_type",
        "random_bits",
        "random_seed",
        "random_wrap",
        "random_unwrap",
        "random_split",
        "random_fold_in",
        "random_gamma",
        "threefry2x32",
        "rng_bit_generator",
        "rng_uniform",
        "nextafter",
        "pure_callback",
        "io_callback",
        "debug_callback",
        "debug_print",
        "pallas_call",
        "ffi_call",
        "shard_map",
        "custom_linear_solve",
        "custom_partitioning",
        "reduce",
        "reduce_window",
    }
)
_DTYPE_KEYS: Final = ("new_dtype", "preferred_element_type", "dtype")


def in_float64(graph: Graph) -> Callable[..., list[Any]]:
    """A function that evaluates a graph on its flat inputs in float64.

    Returns:
        A function; its floating point results are float64 or complex128 numpy arrays.
    """

    compiled = jax.jit(lambda *args: _evaluate(graph, args))

    def fun(*args: Any) -> list[Any]:
        with jax.enable_x64(True):
            return [jax.device_get(r) for r in compiled(*map(_widen, args))]

    return fun


def _is_narrow(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.inexact)) and jnp.dtype(dtype).itemsize < _wide(dtype).itemsize


def _wide(dtype: Any) -> Any:
    return np.dtype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def _widen(x: Any) -> Any:
    dtype = jax.typeof(x).dtype
    if _jax.is_extended(dtype) or not _is_narrow(dtype):
        return x
    return lax.convert_element_type(x, _wide(dtype))


def _evaluate(graph: Graph, args: Sequence[Any]) -> list[Any]:
    env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))

    def read(value: Value) -> Any:
        return _widen(value.const) if value.is_const else env[value]

    for node in graph:
        results = _run(node, [read(value) for value in node.operands])
        env.update(zip(node.results, results, strict=True))
    return [read(value) for value in graph.outputs]


def _run(node: Node, operands: list[Any]) -> Sequence[Any]:
    if node.op in RUN_ONCE:
        return _evaluate(node.regions[0], operands)
    if node.op in _REGIONS and node.regions:
        return _REGIONS[node.op](node, operands)
    if node.op in _SCATTERS:
        how = {
            key: node.params[key]
            for key in ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        }
        return [_SCATTERS[node.op](*operands, **how)]
    if node.op in _NATIVE or node.regions or node.effects:
        return _native(node, operands)
    raw = dict(node.params if node.raw is None else node.raw)
    for key in _DTYPE_KEYS:
        if raw.get(key) is not None and not _jax.is_extended(raw[key]) and _is_narrow(raw[key]):
            raw[key] = _wide(raw[key])
    try:
        results = node.primitive.bind(*operands, **node.primitive.get_bind_params(raw))
    except (TypeError, ValueError, NotImplementedError):  # no float64 form of this operation
        return _native(node, operands)
    return [_widen(r) for r in (results if node.primitive.multiple_results else [results])]


def _native(node: Node, operands: list[Any]) -> Sequence[Any]:
    """Run a node in the types it was written for."""
    narrow = [
        lax.convert_element_type(x, v.dtype) if jax.typeof(x).dtype != v.dtype else x
        for x, v in zip(operands, node.operands, strict=True)
    ]
    return [_widen(r) for r in bind(node, narrow)]


def _scan(node: Node, operands: list[Any]) -> Sequence[Any]:
    p = node.params
    consts, carry = p["num_consts"], p["num_carry"]
    fixed = operands[:consts]

    def step(state: Any, xs: Any) -> Any:
        out = _evaluate(node.regions[0], [*fixed, *state, *xs])
        return out[:carry], out[carry:]

    init, xs = operands[consts : consts + carry], operands[consts + carry :]
    state, ys = lax.scan(step, init, xs, length=p["length"], reverse=p["reverse"])
    return [*state, *ys]


def _while(node: Node, operands: list[Any]) -> Sequence[Any]:
    cond, body = node.regions
    nc, nb = node.params["cond_nconsts"], node.params["body_nconsts"]
    for_cond, for_body, init = operands[:nc], operands[nc : nc + nb], operands[nc + nb :]

    def going(state: Any) -> Any:
        return _evaluate(cond, [*for_cond, *state])[0]

    def step(state: Any) -> Any:
        new = _evaluate(body, [*for_body, *state])
        on = going(state)  # under vmap one for each element: those that have stopped keep their state
        return [
            jnp.where(on.reshape(on.shape + (1,) * (n.ndim - on.ndim)), n, o)
            for n, o in zip(new, state, strict=True)
        ]

    batched = bool(cond.outputs[0].shape)
    return lax.while_loop(
        lambda s: jnp.any(going(s)), step if batched else lambda s: _evaluate(body, [*for_body, *s]), init
    )


def _cond(node: Node, operands: list[Any]) -> Sequence[Any]:
    branches = [lambda *args, g=g: _evaluate(g, args) for g in node.regions]
    return lax.switch(operands[0], branches, *operands[1:])  # type: ignore[no-any-return]


_SCATTERS: Final[dict[str, Callable[..., Any]]] = {
    "scatter-add": lax.scatter_add,
    "scatter-mul": lax.scatter_mul,
    "scatter-min": lax.scatter_min,
    "scatter-max": lax.scatter_max,
}
"""Operations that hold a function of numbers, which has to be made anew for wide ones."""

_REGIONS: Final = {"scan": _scan, "while": _while, "cond": _cond}
