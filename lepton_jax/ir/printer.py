"""A graph as text: stable, readable, and the form that golden tests compare."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from jax.sharding import NamedSharding

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value

# Parameters that say nothing in their usual state.
_HIDDEN: Final[Mapping[str, frozenset[str]]] = {
    "jit": frozenset(
        {
            "in_shardings",
            "out_shardings",
            "in_layouts",
            "out_layouts",
            "donated_invars",
            "ctx_mesh",
            "keep_unused",
            "inline",
            "compiler_options_kvs",
        }
    ),
    "sharding_constraint": frozenset({"context_mesh", "layout"}),
    "custom_jvp_call": frozenset({"jvp_jaxpr_fun", "num_consts", "symbolic_zeros"}),
    "custom_vjp_call": frozenset({"fwd_jaxpr_thunk", "bwd", "out_trees", "num_consts", "symbolic_zeros"}),
}


def to_text(graph: Graph, *, scopes: bool = False) -> str:
    """The graph as text; equal graphs print equal.

    Args:
        scopes: append each node's name stack as a comment.
    """
    return "\n".join(_graph_lines(graph, "graph", "", scopes))


class _Names:
    """Numbers values in the order in which they are printed."""

    def __init__(self) -> None:
        self.of: dict[Value, str] = {}

    def define(self, value: Value) -> str:
        name = f"%{len(self.of)}"
        self.of[value] = name
        return name

    def read(self, value: Value) -> str:
        if value.is_const:
            return const_text(value)
        return self.of.get(value, "%?")


def _graph_lines(graph: Graph, word: str, indent: str, scopes: bool) -> list[str]:
    names = _Names()
    inputs = ", ".join(f"{names.define(v)}: {aval_text(v.aval)}" for v in graph.inputs)
    lines = [f"{indent}{word} {graph.name}({inputs}) {{"]
    for node in graph:
        lines += _node_lines(node, names, indent + "  ", scopes)
    outputs = ", ".join(map(names.read, graph.outputs))
    lines.append(f"{indent}  return {outputs}".rstrip())
    lines.append(indent + "}")
    return lines


def _node_lines(node: Node, names: _Names, indent: str, scopes: bool) -> list[str]:
    reads = " ".join(map(names.read, node.operands))
    results = ", ".join(
        f"{names.define(v)}: {aval_text(v.aval)}" if v.uses else f"_: {aval_text(v.aval)}"
        for v in node.results
    )
    line = f"{indent}{results + ' = ' if results else ''}{node.op}{params_text(node)} {reads}".rstrip()
    if node.effects:
        line += " !" + ",".join(sorted(type(e).__name__ for e in node.effects))
    comment = f"  # {node.scope}" if scopes and node.scope else ""
    if not node.regions:
        return [line + comment]
    lines = [f"{line} {{{comment}"]
    for region in node.regions:
        lines += _graph_lines(region, "region", indent + "  ", scopes)
    return [*lines, indent + "}"]


def params_text(node: Node) -> str:
    """The parameters of a node in brackets, those that say nothing left out."""
    hidden = _HIDDEN.get(node.op, frozenset())
    shown = [
        f"{key}={value_text(value)}"
        for key, value in sorted(node.params.items())
        if key not in hidden and (value is not None or key == "accuracy")
    ]
    return f"[{' '.join(shown)}]" if shown else ""


def value_text(value: Any) -> str:
    """A parameter's value, without addresses or anything that changes from run to run."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple) and type(value) is tuple:
        inner = ",".join(map(value_text, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, (set, frozenset)):
        return f"{{{','.join(sorted(map(value_text, value)))}}}"
    if isinstance(value, NamedSharding):
        return "P" + str(value.spec)[str(value.spec).index("(") :].replace(" ", "")
    if isinstance(value, np.generic):
        return str(value)
    if isinstance(value, np.ndarray) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        return f"array<{aval_text(value)}>"
    if _jax.is_jaxpr(value):
        return "jaxpr"
    if callable(value) and not isinstance(value, type):
        return f"<{getattr(value, '__name__', type(value).__name__)}>"
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text else text.replace(" ", "")


def aval_text(aval: Any) -> str:
    """An abstract value in JAX's short form: f32[3,4]."""
    short = getattr(aval, "str_short", None)
    if short is not None:
        return str(short(short_dtypes=True)).replace(" ", "")
    return f"{np.dtype(aval.dtype).name}[{','.join(map(str, aval.shape))}]"


def const_text(value: Value) -> str:
    """A constant: its value when it is a scalar, else its shape and dtype."""
    array = _jax.plain_constant(value.const)
    if array is None or array.ndim:
        return f"const<{aval_text(value.aval)}>"
    number = str(array.item())
    return number if value.dtype in (np.float32, np.int32, np.bool_) else f"{number}:{aval_text(value.aval)}"
