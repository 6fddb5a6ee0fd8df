"""Logarithms of softmax, logistic and sums of exponentials."""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.passes.simplify._algebra.operands import is_float, made_by, number_of
from lepton_jax.passes.simplify._movement.common import movement_rule
from lepton_jax.rewrite import PassContext, Rule, rewrite
from lepton_jax.rewrite.rule import Outcome

_VIEWS: Final = (
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "expand_dims",
    "stop_gradient",
    "convert_element_type",
)
_CHAIN: Final = 6


@movement_rule("log", level="reassociate")
def log_of_softmax(node: Node, ctx: PassContext) -> Outcome:
    """log(exp(z) / sum(exp(z))) → z - log(sum(exp(z))), where z is x - max(x)

    One logarithm for each row instead of one for each class, and finite, with a finite gradient, where
    a probability underflows.

    Measured on a 2-core CPU, `python benchmarks/rewrites.py --only losses`: 1.3 times as fast.
    """
    quotient = made_by(node.operands[0], "div")
    power = None if quotient is None else made_by(quotient.operands[0], "exp")
    if quotient is None or power is None or not is_float(node.result):
        return None
    total = made_by(behind(quotient.operands[1]), "reduce_sum")
    if total is None or uncast(total.operands[0]) is not power.result:
        return None
    (z,), norm = power.operands, quotient.operands[1]
    if z.shape != node.result.shape or norm.ndim != z.ndim:
        return None
    if not is_shifted(z):
        ctx.miss("log-of-softmax", node, "the softmax is not stabilised: its sum may overflow")
        return None
    return rewrite(_less_log, z, norm)


@movement_rule("log", level="reassociate")
def log_of_sum_of_exp(node: Node, ctx: PassContext) -> Outcome:
    """log(sum(exp(x))) → log(sum(exp(x - m))) + m, with m = max(x): finite for any finite x"""
    total = made_by(behind(node.operands[0]), "reduce_sum")
    power = None if total is None else made_by(total.operands[0], "exp")
    if total is None or power is None or not is_float(node.result):
        return None
    (x,) = power.operands
    if is_shifted(x) or x.shape != total.operands[0].shape or 0 in x.shape:
        return None
    return rewrite(_stable, x, axes=tuple(total.params["axes"]), shape=node.result.shape)


@movement_rule("log", level="reassociate")
def log_of_logistic(node: Node, ctx: PassContext) -> Outcome:
    """log(logistic(x)) → -softplus(-x), finite where logistic(x) underflows"""
    inner = made_by(node.operands[0], "logistic")
    return None if inner is None or not is_float(node.result) else rewrite(_log_logistic, *inner.operands)


@movement_rule("log", "log1p", level="reassociate")
def log_of_one_minus_logistic(node: Node, ctx: PassContext) -> Outcome:
    """log(1 - logistic(x)) → -softplus(x), also log1p(-logistic(x)); finite where logistic(x) rounds to 1"""
    inner = made_by(node.operands[0], "sub" if node.op == "log" else "neg")
    if inner is None or not is_float(node.result) or (node.op == "log" and number_of(inner.operands[0]) != 1):
        return None
    logistic = made_by(inner.operands[-1], "logistic")
    return None if logistic is None else rewrite(_log_one_minus_logistic, *logistic.operands)


@movement_rule("log", "log1p", level="reassociate")
def softplus_written_out(node: Node, ctx: PassContext) -> Outcome:
    """log(1 + exp(x)) → softplus(x), also log1p(exp(x)); finite, as its gradient, where exp(x) is not"""
    if not is_float(node.result):
        return None
    for value in _plus_one(node):
        power = made_by(value, "exp")
        if (
            power is not None
            and power.result.shape == node.result.shape
            and not _is_negative(power.operands[0])
        ):
            return rewrite(jax.nn.softplus, *power.operands)
    return None


def _plus_one(node: Node) -> list[Value]:
    """What a logarithm adds one to."""
    if node.op == "log1p":
        return [node.operands[0]]
    added = made_by(node.operands[0], "add")
    if added is None:
        return []
    a, b = added.operands
    return [v for v, other in ((a, b), (b, a)) if number_of(other) == 1]


def _is_negative(x: Value) -> bool:
    """Whether x is -|y|, whose exponential does not overflow: softplus is written with it."""
    minus = made_by(x, "neg")
    return minus is not None and made_by(minus.operands[0], "abs") is not None


def uncast(value: Value) -> Value:
    """What a value is a conversion of."""
    cast = made_by(value, "convert_element_type")
    return value if cast is None else cast.operands[0]


def behind(value: Value) -> Value:
    """What a value is a view of."""
    for _ in range(_CHAIN):
        if value.node is None or value.node.op not in _VIEWS or len(value.node.operands) != 1:
            return value
        value = value.node.operands[0]
    return value


def is_shifted(z: Value) -> bool:
    """Whether a value is x minus a maximum of x, as it comes or guarded against infinity."""
    shift = made_by(z, "sub")
    if shift is None:
        return False
    x, m = shift.operands[0], behind(shift.operands[1])
    chosen = made_by(m, "select_n")
    candidates = [m] if chosen is None else [behind(v) for v in chosen.operands[1:]]
    tops = [made_by(v, "reduce_max") for v in candidates]
    return any(top is not None and top.operands[0] is x for top in tops)


def _less_log(z: jax.Array, norm: jax.Array) -> jax.Array:
    return z - jnp.log(norm)


def _stable(x: jax.Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    return lax.reshape(jax.nn.logsumexp(x, axis=axes), shape)


def _log_logistic(x: jax.Array) -> Any:
    return jax.nn.log_sigmoid(x)


def _log_one_minus_logistic(x: jax.Array) -> Any:
    return -jax.nn.softplus(x)


RULES: Final[tuple[Rule, ...]] = (log_of_softmax,)

STABLE: Final[tuple[Rule, ...]] = (
    log_of_sum_of_exp,
    log_of_logistic,
    log_of_one_minus_logistic,
    softplus_written_out,
)
"""Rules that are worth their time for the range of numbers alone."""
