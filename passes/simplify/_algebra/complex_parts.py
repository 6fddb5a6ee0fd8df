"""Complex numbers and their parts: real, imag, complex, conj."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from lepton_jax.passes.simplify._algebra.patterns import identity, one_complex, two_floats
from lepton_jax.rewrite import Rule, rule


@rule(two_floats, single_use=False)
def real_of_complex(x: Any, y: Any) -> Any:
    """real(complex(x, y)) → x"""
    return lax.real(lax.complex(x, y))


@rule(two_floats, single_use=False)
def imag_of_complex(x: Any, y: Any) -> Any:
    """imag(complex(x, y)) → y"""
    return lax.imag(lax.complex(x, y))


@rule(one_complex, single_use=False)
def complex_of_parts(z: Any) -> Any:
    """complex(real(z), imag(z)) → z"""
    return lax.complex(lax.real(z), lax.imag(z))


@rule(one_complex, single_use=False)
def conj_of_conj(z: Any) -> Any:
    """conj(conj(z)) → z"""
    return jnp.conj(jnp.conj(z))


@rule(one_complex, single_use=False)
def real_of_conj(z: Any) -> Any:
    """real(conj(z)) → real(z)"""
    return lax.real(jnp.conj(z))


@rule(one_complex, single_use=False)
def imag_of_conj(z: Any) -> Any:
    """imag(conj(z)) → -imag(z)"""
    return lax.imag(jnp.conj(z))


@rule(two_floats)
def conj_of_complex(x: Any, y: Any) -> Any:
    """conj(complex(x, y)) → complex(x, -y)"""
    return jnp.conj(lax.complex(x, y))


def _first(x: Any, y: Any) -> Any:
    return x


def _second(x: Any, y: Any) -> Any:
    return y


def _minus_imag(z: Any) -> Any:
    return lax.neg(lax.imag(z))


def _conj_of_parts(x: Any, y: Any) -> Any:
    return lax.complex(x, lax.neg(y))


RULES: Final[tuple[Rule, ...]] = (
    real_of_complex.replacement(_first),
    imag_of_complex.replacement(_second),
    complex_of_parts.replacement(identity),
    conj_of_conj.replacement(identity),
    real_of_conj.replacement(lax.real),
    imag_of_conj.replacement(_minus_imag),
    conj_of_complex.replacement(_conj_of_parts),
)
