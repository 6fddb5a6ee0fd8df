"""Jaxprs, open and closed: their parts, tracing them, evaluating them, their constants.

Up to JAX 0.10 a `ClosedJaxpr` pairs an open `Jaxpr` with its constants; from 0.11 there is one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.extend.core as jex

from lepton_jax.ir._jax.values import Tracer

Literal = jex.Literal
DropVar = jex.DropVar

_MERGED: Final = issubclass(jex.ClosedJaxpr, jex.Jaxpr)  # from 0.11


def parts(jaxpr: Any) -> tuple[list[Any], list[Any], list[Any], list[Any], list[Any]]:
    """(constvars, consts, invars, eqns, outvars) of an open or closed jaxpr.

    An open jaxpr with constvars has no constants to give them; there is none in the
    primitives that `region_jaxprs` opens.
    """
    opened = jaxpr if _MERGED else getattr(jaxpr, "jaxpr", jaxpr)
    consts = list(getattr(jaxpr, "consts", ()) or ())
    return list(opened.constvars), consts, list(opened.invars), list(opened.eqns), list(opened.outvars)


def open_jaxpr(closed: Any) -> Any:
    """A constant-free closed jaxpr as primitives with an open one (remat) want it."""
    return closed if _MERGED else closed.jaxpr


def is_closed(jaxpr: Any) -> bool:
    """Whether a jaxpr may carry constants of its own."""
    return _MERGED or isinstance(jaxpr, jex.ClosedJaxpr)


def is_jaxpr(thing: Any) -> bool:
    """Whether it is a jaxpr, open or closed."""
    return isinstance(thing, (jex.Jaxpr, jex.ClosedJaxpr))


def is_high(jaxpr: Any) -> bool:
    """Whether it uses hijax values, which Lepton leaves alone."""
    return bool(getattr(jaxpr, "is_high", False))


def eval_jaxpr(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr under the current trace."""
    opened = jaxpr if _MERGED else getattr(jaxpr, "jaxpr", jaxpr)
    return list(jax.core.eval_jaxpr(opened, consts, *args))


def trace_flat(fun: Callable[..., Sequence[Any]], avals: Sequence[Any]) -> Any:
    """The closed jaxpr of `fun` on flat abstract values."""
    return jax.make_jaxpr(fun)(*avals)


def without_consts(closed: Any) -> tuple[Any, list[Any]]:
    """The same jaxpr with its constants as leading inputs, and these constants."""
    _, consts, _, _, _ = parts(closed)
    if not consts:
        return closed, []

    def fun(*args: Any) -> list[Any]:
        return eval_jaxpr(closed, args[: len(consts)], args[len(consts) :])

    return trace_flat(fun, [*map(jax.typeof, consts), *closed.in_avals]), consts


def forget_tracers(closed: Any) -> Any:
    """The jaxpr with shapes in place of constants that are tracers, so that it may outlive their trace."""
    _, consts, _, _, _ = parts(closed)
    if not any(isinstance(c, Tracer) for c in consts):
        return closed
    shapes = [jax.ShapeDtypeStruct(c.shape, c.dtype) if isinstance(c, Tracer) else c for c in consts]
    return closed.with_consts(shapes) if _MERGED else jex.ClosedJaxpr(closed.jaxpr, shapes)
