"""Functions with derivative rules of their own: the rule is cut as the function is.

The rule is known at the shapes at which the function was traced. There it is traced, analysed and cut, the
first time that JAX asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import export
from lepton_jax.ir.cutting.cut import Cut, CutError, Indices, where
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.dimensions import DimensionError, analyse
from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.importer import trace

Flat = Callable[..., list[Any]]
Evaluate = Callable[..., list[Any]]


def bind_custom(
    node: Node, operands: Sequence[Any], cut: Cut, body: Flat, evaluate: Evaluate
) -> Sequence[Any]:
    """Run a `custom_jvp` or `custom_vjp` function on what stays of its operands.

    Args:
        body: the function itself, on smaller arrays.
        evaluate: (graph, arguments, cut) → what stays of its outputs.
    """
    if node.op == "custom_jvp_call":
        return _with_jvp(node, operands, cut, body, evaluate)
    return _with_vjp(node, operands, cut, body, evaluate)


def _with_jvp(node: Node, operands: Sequence[Any], cut: Cut, body: Flat, evaluate: Evaluate) -> Sequence[Any]:
    moving = [i for i, value in enumerate(node.operands) if _has_tangent(value)]
    still = [i for i in range(len(node.operands)) if i not in moving]

    def old(*given: Any) -> list[Any]:
        """Tangents of the results, of the operands and the tangents of those that have some."""
        primals, tangents = given[: len(node.operands)], given[len(node.operands) :]
        every: list[Any] = [None] * len(primals)
        for i, tangent in zip(moving, tangents, strict=True):
            every[i] = tangent
        for i in still:
            every[i] = np.zeros(node.operands[i].shape, jax.dtypes.float0)
        _, found = jax.jvp(lambda *args: list(export.bind(node, args)), primals, tuple(every))
        return [t for t, value in zip(found, node.results, strict=True) if _has_tangent(value)]

    fun = jax.custom_jvp(lambda *args: body(*args))

    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        values = [*node.operands, *(node.operands[i] for i in moving)]
        given = iter(_cut_rule(node, old, values, [*primals, *(tangents[i] for i in moving)], cut, evaluate))
        results = fun(*primals)
        return results, [
            next(given) if _has_tangent(value) else np.zeros(np.shape(result), jax.dtypes.float0)
            for value, result in zip(node.results, results, strict=True)
        ]

    fun.defjvp(rule)
    return fun(*operands)


def _with_vjp(node: Node, operands: Sequence[Any], cut: Cut, body: Flat, evaluate: Evaluate) -> Sequence[Any]:
    count = node.params["num_consts"]
    closed, free = list(operands[:count]), operands[count:]
    moving = [i for i, value in enumerate(node.operands) if i >= count and _has_tangent(value)]
    answering = [i for i, value in enumerate(node.results) if _has_tangent(value)]

    def old(*given: Any) -> list[Any]:
        """Cotangents of the operands that have some, of the operands and the cotangents of the results."""
        primals, cotangents = list(given[: len(node.operands)]), given[len(node.operands) :]

        def of_moving(*args: Any) -> list[Any]:
            every = list(primals)
            for i, arg in zip(moving, args, strict=True):
                every[i] = arg
            results = list(export.bind(node, every))
            return [results[i] for i in answering]

        _, pull = jax.vjp(of_moving, *(primals[i] for i in moving))
        return list(pull(list(cotangents)))

    fun = jax.custom_vjp(lambda *args: body(*closed, *args))

    def forward(*args: Any) -> tuple[Any, Any]:
        return body(*closed, *args), args

    def backward(args: Any, cotangents: Any) -> tuple[Any, ...]:
        values = [*node.operands, *(node.results[i] for i in answering)]
        given = [*closed, *args, *(cotangents[i] for i in answering)]
        found = iter(_cut_rule(node, old, values, given, cut, evaluate))
        return tuple(
            next(found) if count + i in moving else np.zeros(np.shape(arg), jax.dtypes.float0)
            for i, arg in enumerate(args)
        )

    fun.defvjp(forward, backward)
    return fun(*free)


def _cut_rule(
    node: Node, rule: Flat, values: Sequence[Value], given: Sequence[Any], cut: Cut, evaluate: Evaluate
) -> list[Any]:
    """A derivative rule, known at the old shapes, on smaller arrays.

    Args:
        values: whose shapes its arguments have.
        given: the arguments.
    """
    graph = inline_calls(trace(rule, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values)))
    kept: dict[tuple[int, int], Indices] = {}
    for position, value in enumerate(values):
        for dim, each in enumerate(cut.of(value)):
            if each is not None:
                kept[position, dim] = each
    try:
        smaller = Cut.found(analyse(graph, outputs="free"), kept)
    except DimensionError as error:
        raise CutError(
            f"the derivative rule of {node.op} cannot be made smaller: {error} ({where(node)})"
        ) from error
    return evaluate(graph, list(given), smaller)


def _has_tangent(value: Value) -> bool:
    return value.dtype is not None and bool(jnp.issubdtype(value.dtype, jnp.inexact))
