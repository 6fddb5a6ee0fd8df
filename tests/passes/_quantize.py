"""How tests of quantisation are written: programs with parameters, joined into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lepton_jax as lepton
from lepton_jax.rewrite import Site

RNG = np.random.default_rng(0)


def floats(*shape: int, scale: float = 1.0) -> jax.Array:
    """Normal numbers."""
    return jnp.asarray(RNG.normal(size=shape) * scale, jnp.float32)


@dataclass(frozen=True)
class Case:
    """A program of parameters and one input.

    Attributes:
        fun: the program.
        params: its parameters, as an array or tree.
        x: its input.
    """

    fun: Callable[[Any, Any], Any]
    params: Any
    x: Any


def joined(cases: Mapping[str, Case]) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """All programs as one, of `params[name]` and `x[name]`; its parameters; its inputs."""

    def every(params: Any, x: Any) -> Any:
        return {name: case.fun(params[name], x[name]) for name, case in cases.items()}

    params = {name: case.params for name, case in cases.items()}
    return every, params, {name: case.x for name, case in cases.items()}


def sqnr(exact: Any, found: Any) -> float:
    """Signal over the noise of quantisation, in decibels, where the exact numbers are numbers at all."""
    a, b = np.asarray(exact, np.float64), np.asarray(found, np.float64)
    assert a.shape == b.shape
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    known = ~np.isnan(a)
    noise = np.square(a - b)[known].sum()
    return float(10 * np.log10(np.square(a)[known].sum() / max(noise, 1e-30)))


def kept_of(prepared: lepton.Prepared, name: str) -> list[Any]:
    """The arrays that are kept of a case's parameters."""
    return [array for key, array in prepared.items() if key.split("#")[0].split("/")[1:2] == [name]]


def check_codes(prepared: lepton.Prepared, case: Case, name: str, dtype: Any = jnp.int8) -> None:
    """Assert that weights are kept as one array of codes, and that all else are scales."""
    arrays = kept_of(prepared, name)
    codes = [array for array in arrays if array.dtype == dtype]
    largest = max(leaf.size for leaf in jax.tree.leaves(case.params))
    assert len(codes) == 1, (name, arrays)
    assert sum(array.size for array in arrays if array.dtype != dtype) * 4 <= largest, name
    assert sum(array.nbytes for array in arrays) <= largest * 4 * 0.5, name


def done(sites: list[Site]) -> dict[str, str]:
    """What was done at each site."""
    return {site.name: site.done for site in sites}


def reasons(sites: list[Site]) -> dict[str, str]:
    """Why sites were left alone."""
    return {site.name: site.reason for site in sites if not site.done}
