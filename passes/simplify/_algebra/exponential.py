"""Exponentials and logarithms that undo each other, and the logistic function written out."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.simplify._algebra.patterns import identity, is_positive, is_real, one_float
from lepton_jax.rewrite import Rule, rule


@rule(one_float, level="reassociate", single_use=False)
def log_of_exp(x: Any) -> Any:
    """log(exp(x)) → x, for real numbers; where exp overflows, infinity becomes the finite x"""
    return jnp.log(jnp.exp(x))


@rule(one_float, level="reassociate", single_use=False)
def exp_of_log(x: Any) -> Any:
    """exp(log(x)) → x, where x is known to be positive (below zero it is NaN, at zero it has no slope)"""
    return jnp.exp(jnp.log(x))


@rule(one_float, level="reassociate", single_use=False)
def log1p_of_expm1(x: Any) -> Any:
    """log1p(expm1(x)) → x, for real numbers"""
    return jnp.log1p(jnp.expm1(x))


@rule(one_float, level="reassociate", single_use=False)
def logistic_written_out(x: Any) -> Any:
    """1 / (1 + exp(-x)) → logistic(x), for real numbers; its gradient is finite where exp(-x) overflows"""
    return 1.0 / (1.0 + jnp.exp(-x))


# exp(a) * exp(b) stays: a large a and a small b have a finite product of exponentials, and the
# exponential of the rounded sum may differ by more than rounding.

RULES: Final[tuple[Rule, ...]] = (
    log_of_exp.where(is_real).replacement(identity),
    exp_of_log.where(is_positive).replacement(identity),
    log1p_of_expm1.where(is_real).replacement(identity),
    logistic_written_out.where(is_real).replacement(lax.logistic),
)
