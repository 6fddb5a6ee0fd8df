"""What is written of a node in generated source: regions and parameters, in the form that `bind` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from lepton_jax.ir import _bind, _jax
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.importer import from_jaxpr

CUSTOM: Final = frozenset({"custom_jvp_call", "custom_vjp_call"})
Described = tuple[Sequence[Graph], Mapping[str, Any]]


class CodegenError(ValueError):
    """A graph cannot be written as Python. The message names the operation and what stands in the way."""


def described(node: Node) -> Described:
    """The regions and the parameters of a node that go into the source.

    Raises:
        CodegenError: the operation cannot be bound by name, or holds what cannot be written.
    """
    if node.op in _jax.REGION_OPS and not node.regions:
        raise CodegenError(f"{node.op}: it runs a jaxpr that cannot be written as Python")
    special = _SPECIAL.get(node.op)
    if special is not None:
        return special(node)
    if node.op not in _bind.SPECIAL and not is_known(node.primitive):
        raise CodegenError(f"{node.op}: JAX does not export this primitive by name")
    return node.regions, node.params


def is_known(primitive: Any) -> bool:
    """Whether JAX exports a primitive under its name."""
    try:
        return _jax.primitive(primitive.name) is primitive
    except KeyError:
        return False


def _jit(node: Node) -> Described:
    p = node.params
    if not _jax.jit_is_plain({**p, "donated_invars": (), "compiler_options_kvs": ()}):
        raise CodegenError("jit: parameters 'in_shardings' and 'out_shardings' or layouts cannot be written")
    shown: dict[str, Any] = {"name": p["name"]}
    if p["keep_unused"]:
        shown["keep_unused"] = True
    if p["inline"] and getattr(p["inline"], "name", "") != "AUTO":
        shown["inline"] = p["inline"]
    if donated := tuple(i for i, is_donated in enumerate(p["donated_invars"]) if is_donated):
        shown["donate_argnums"] = donated
    if options := dict(p["compiler_options_kvs"]):
        shown["compiler_options"] = options
    return node.regions, shown


def _body_alone(node: Node) -> Described:
    return node.regions, {}


def _linear_solve(node: Node) -> Described:
    return node.regions, {"const_lengths": tuple(node.params["const_lengths"])}


def _reduce(node: Node) -> Described:
    return [from_jaxpr(node.params["jaxpr"], "computation")], {"dimensions": node.params["dimensions"]}


def _random(node: Node) -> Described:
    return [], {"impl": key_kind(node.result.dtype, node.op)}


def _device_put(node: Node) -> Described:
    p = node.params
    if any(x is not None for x in (*p["devices"], *p["srcs"])):
        raise CodegenError("device_put: parameter 'devices' cannot be written as Python")
    if any(semantics.name != "REUSE_INPUT" for semantics in p["copy_semantics"]):
        raise CodegenError("device_put: parameter 'copy_semantics' cannot be written as Python")
    return [], {}


def _ragged_dot(node: Node) -> Described:
    return [], {key: value for key, value in node.params.items() if value is not None}


_SPECIAL: Final[Mapping[str, Callable[[Node], Described]]] = {
    "jit": _jit,
    "custom_jvp_call": _body_alone,
    "custom_vjp_call": _body_alone,
    "closed_call": _body_alone,
    "core_call": _body_alone,
    "custom_linear_solve": _linear_solve,
    "reduce": _reduce,
    "random_seed": _random,
    "random_wrap": _random,
    "device_put": _device_put,
    "ragged_dot_general": _ragged_dot,
}


def key_kind(dtype: Any, op: str) -> str:
    """The name of the PRNG of a key dtype.

    Raises:
        CodegenError: it is not one of JAX's own.
    """
    for kind in _bind.KEY_KINDS:
        if _bind.key_dtype(kind) == dtype:
            return kind
    raise CodegenError(f"{op}: the dtype {dtype} is not one of JAX's own PRNG keys")
