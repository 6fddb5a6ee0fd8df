"""Primitives by name, and those that hold jaxprs.

Up to JAX 0.10 scan counts its operands in `num_consts` and `num_carry`; from 0.11 it describes them by
trees (`ft_in`, `ft_out`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import jax
from jax.extend.core import primitives as _primitives

from lepton_jax.ir._jax.jaxprs import is_high, is_jaxpr

_JAXPR_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "jit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "core_call": ("call_jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",),
    "shard_map": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_linear_solve": ("jaxprs",),
}
"""The parameters in which primitives hold jaxprs."""

REGION_OPS: Final = frozenset(_JAXPR_KEYS)


def primitive(name: str) -> Any:
    """The primitive that `jax.extend.core.primitives` calls `name`.

    Raises:
        KeyError: there is no such primitive in this JAX.
    """
    return primitive_table()[name]


@functools.cache
def primitive_table() -> Mapping[str, Any]:
    """The primitives that this JAX names in public, by name."""
    found: dict[str, Any] = {}
    for module in (_primitives, jax.lax):
        for key in dir(module):
            if key.endswith("_p"):
                each = getattr(module, key)
                found.setdefault(each.name, each)
    return found


def set_weak_type(array: Any, weak_type: bool) -> Any:
    """`array` with its weak type set, which no public function does."""
    return primitive("convert_element_type").bind(
        array, new_dtype=jax.typeof(array).dtype, weak_type=weak_type, sharding=None
    )


def region_jaxprs(op: str, raw: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]] | None:
    """The jaxprs of a region operation and its other parameters; None for all other primitives.

    Scan's parameters come out as `num_consts` and `num_carry` under every JAX.
    """
    keys = _JAXPR_KEYS.get(op)
    if keys is None or any(key not in raw for key in keys):
        return None
    jaxprs = [j for key in keys for j in (raw[key] if isinstance(raw[key], tuple) else (raw[key],))]
    if not all(is_jaxpr(j) and not is_high(j) for j in jaxprs):
        return None
    params = {key: value for key, value in raw.items() if key not in keys}
    if op == "scan" and "ft_in" in params:
        consts, carry, _ = (len(tree) for tree in params.pop("ft_in").unpack())
        params.pop("ft_out")
        params.update(num_consts=consts, num_carry=carry)
    return jaxprs, params


def jit_is_plain(params: Mapping[str, Any]) -> bool:
    """Whether a jit node does nothing but call: no shardings, layouts, donation or compiler options."""
    unspecified = (*params.get("in_shardings", ()), *params.get("out_shardings", ()))
    layouts = (*params.get("in_layouts", ()), *params.get("out_layouts", ()))
    return (
        all(type(s).__name__ == "UnspecifiedValue" for s in unspecified)
        and all(layout is None for layout in layouts)
        and not any(params.get("donated_invars", ()))
        and not params.get("compiler_options_kvs", ())
    )
