"""What rules that are written as two JAX functions share: example arguments, conditions, the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.ir.facts import facts_of
from lepton_jax.passes.simplify._algebra.operands import is_float
from lepton_jax.rewrite.matcher import Match


def one_float() -> Sequence[Sequence[Any]]:
    """One array of floats."""
    return [[jax.ShapeDtypeStruct((2, 3), jnp.float32)]]


def one_complex() -> Sequence[Sequence[Any]]:
    """One array of complex numbers."""
    return [[jax.ShapeDtypeStruct((2, 3), jnp.complex64)]]


def two_floats() -> Sequence[Sequence[Any]]:
    """Two arrays of floats."""
    return [[jax.ShapeDtypeStruct((2, 3), jnp.float32)] * 2]


def identity(x: Any) -> Any:
    """x"""
    return x


def is_real(match: Match) -> str | None:
    """The rule is one of real numbers."""
    return None if all(map(is_float, match.values.values())) else "it holds for real numbers only"


def is_above_minus_infinity(match: Match) -> str | None:
    """The rule holds for real numbers but -inf."""
    above = all(is_float(value) and facts_of(value).least > -math.inf for value in match.values.values())
    return None if above else "the number may be -inf"


def is_positive(match: Match) -> str | None:
    """The rule holds where the number is greater than zero."""
    if not all(map(is_float, match.values.values())):
        return "it holds for real numbers only"
    positive = all(facts_of(value).positive for value in match.values.values())
    return None if positive else "the number may be zero or negative"
