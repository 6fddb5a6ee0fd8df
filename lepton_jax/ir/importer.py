"""Into the graph: from a function or a jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from lepton_jax.ir import _jax
from lepton_jax.ir.graph import Graph, Node, Value, constant


def trace(fun: Callable[..., Any], *args: Any, static_argnums: int | Sequence[int] = ()) -> Graph:
    """The graph of `fun` at the shapes and dtypes of `args`.

    Args:
        fun: any JAX function.
        args: its arguments: arrays, `jax.ShapeDtypeStruct`s, or pytrees of them.
        static_argnums: positions of arguments that are Python values, as in `jax.jit`.

    Returns:
        A graph whose inputs and outputs are the flattened arguments and results.

    Example:
        >>> import jax.numpy as jnp
        >>> print(trace(lambda x: jnp.sin(x) * 1.0, jnp.ones(3)).to_text())
        graph <lambda>(%0: f32[3]) {
          %1: f32[3] = sin[accuracy=None] %0
          %2: f32[3] = mul %1 1.0
          return %2
        }
    """
    closed = jax.make_jaxpr(fun, static_argnums=static_argnums)(*args)
    return from_jaxpr(closed, getattr(fun, "__name__", "f"))


def from_jaxpr(closed: Any, name: str = "f") -> Graph:
    """The graph of a closed jaxpr. Regions that several calls share are imported once.

    Args:
        closed: as `jax.make_jaxpr` makes it.
        name: of the graph.

    Example:
        >>> print(from_jaxpr(jax.make_jaxpr(lambda x: x + 1)(1), "more").to_text())
        graph more(%0: i32[]) {
          %1: i32[] = add %0 1
          return %1
        }
    """
    return _import(closed, name, {})


def _import(jaxpr: Any, name: str, shared: dict[int, Graph]) -> Graph:
    graph = Graph(name, [v.aval for v in _jax.parts(jaxpr)[2]], jaxpr)
    graph.set_outputs(copy_equations(jaxpr, graph.inputs, graph, graph.ret, shared))
    graph.imported_at = graph.version
    return graph


def struct_of(value: Value, shape: Sequence[Any] | None = None) -> jax.ShapeDtypeStruct:
    """What a value is to `trace_flat`, wherever it lies: shape, dtype and weak type.

    Args:
        shape: another one.
    """
    weak_type = getattr(value.aval, "weak_type", False)
    sizes = value.shape if shape is None else tuple(shape)
    return jax.ShapeDtypeStruct(sizes, value.dtype, weak_type=weak_type)


def copy_equations(
    jaxpr: Any, inputs: Sequence[Value], graph: Graph, before: Node, shared: dict[int, Graph]
) -> list[Value]:
    """Write the equations of a jaxpr into a graph before a node; returns the jaxpr's outputs there.

    Args:
        shared: graphs of jaxprs met before, by identity; jit calls of one jaxpr share one region.
    """
    constvars, consts, invars, eqns, outvars = _jax.parts(jaxpr)
    env: dict[Any, Value] = dict(zip(invars, inputs, strict=True))
    for var, array in zip(constvars, consts, strict=True):
        env[var] = constant(array, var.aval)

    def read(atom: Any) -> Value:
        if isinstance(atom, _jax.Literal):
            return constant(atom.val, atom.aval, literal=True)
        return env[atom]

    for eqn in eqns:
        node = _node(eqn, [read(atom) for atom in eqn.invars], shared)
        graph.insert(node, before)
        for var, value in zip(eqn.outvars, node.results, strict=True):
            if not isinstance(var, _jax.DropVar):
                env[var] = value
    return [read(atom) for atom in outvars]


def _node(eqn: Any, operands: list[Value], shared: dict[int, Graph]) -> Node:
    op = eqn.primitive.name
    raw = eqn.params
    found = None
    if op in _jax.REGION_OPS and all(_jax.is_array_aval(value.aval) for value in operands):
        found = _jax.region_jaxprs(op, raw)
    jaxprs, params = ([], raw) if found is None else found
    return Node(
        op,
        eqn.primitive,
        operands,
        [var.aval for var in eqn.outvars],
        params,
        regions=[_region(op, i, jaxpr, raw, shared) for i, jaxpr in enumerate(jaxprs)],
        raw=raw,
        source=eqn.source_info,
        context=eqn.ctx,
        effects=frozenset(eqn.effects),
    )


def _region(op: str, index: int, jaxpr: Any, raw: Any, shared: dict[int, Graph]) -> Graph:
    if op != "jit":
        return _import(
            jaxpr, _REGION_NAMES.get(op, {}).get(index, "body" if index == 0 else f"body{index}"), shared
        )
    known = shared.get(id(jaxpr))
    if known is None:
        known = shared[id(jaxpr)] = _import(jaxpr, raw.get("name", "call"), shared)
    return known


_REGION_NAMES: dict[str, dict[int, str]] = {
    "while": {0: "cond", 1: "body"},
    "cond": {i: f"branch{i}" for i in range(64)},
    "custom_linear_solve": {0: "matvec", 1: "vecmat", 2: "solve", 3: "transpose_solve"},
}
