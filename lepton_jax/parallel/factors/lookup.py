"""The factors of a node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final

import jax.numpy as jnp

from lepton_jax.ir.graph import Node
from lepton_jax.parallel.factors.build import opaque
from lepton_jax.parallel.factors.rule import RULES, Factors

_KEPT: Final[ContextVar[dict[Node, Factors] | None]] = ContextVar("_KEPT", default=None)


@contextlib.contextmanager
def kept_factors() -> Iterator[None]:
    """Look the factors of each node up once within; graphs must not change meanwhile.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> node = next(iter(trace(lambda x: x + 1, jax.ShapeDtypeStruct((4,), "float32"))))
        >>> with kept_factors():
        ...     factors_of(node) is factors_of(node)
        True
    """
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def factors_of(node: Node) -> Factors:
    """How the dimensions of a node's operands and results go together.

    Of an operation without a rule, with effects, with regions, or with symbolic sizes, every dimension is a
    factor of its own that stays whole.

    Example:
        >>> import jax
        >>> from lepton_jax.ir import trace
        >>> x, w = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 8), (8, 2)))
        >>> graph = trace(lambda x, w: x @ w, x, w)
        >>> factors = factors_of(next(iter(graph)))
        >>> factors.operands, factors.results, factors.reduced
        ((((0,), (2,)), ((2,), (1,))), (((0,), (1,)),), {2: 'add'})
    """
    kept = _KEPT.get()
    if kept is None:
        return _found(node)
    known = kept.get(node)
    if known is None:
        known = kept[node] = _found(node)
    return known


def _found(node: Node) -> Factors:
    rule = RULES.get(node.op)
    if rule is None or node.regions or node.effects:
        return opaque(node)
    if not all(value.is_static for value in (*node.operands, *node.results)):
        return opaque(node)
    found = rule(node)
    if not found.linear:
        return found
    numbers = all(is_number(value.aval) for value in node.results)
    kept = tuple(
        each for each in found.linear if numbers and all(is_number(node.operands[i].aval) for i in each)
    )
    if kept == found.linear:
        return found
    return Factors(found.sizes, found.operands, found.results, found.reduced, found.whole, kept)


def is_number(aval: Any) -> bool:
    """Whether an array holds numbers that can be added: not truth values, not keys."""
    return hasattr(aval, "dtype") and bool(jnp.issubdtype(aval.dtype, jnp.number))
