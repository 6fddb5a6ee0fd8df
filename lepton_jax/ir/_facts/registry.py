"""The table of transfer functions: for each primitive, what its result is known to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from lepton_jax.ir import _jax
from lepton_jax.ir._facts.closing import close, splat_facts
from lepton_jax.ir._facts.dtypes import kind_of
from lepton_jax.ir._facts.lattice import Claims, Facts, elements
from lepton_jax.ir.graph import Node

Transfer: TypeAlias = Callable[[Node, Sequence[Facts]], list[Claims]]
Single: TypeAlias = Callable[[Node, Sequence[Facts]], Claims]

TRANSFERS: Final[dict[str, Transfer]] = {}


def transfer(*names: str) -> Callable[[Single], Single]:
    """Register what primitives with one result do: (node, facts of operands) to claims."""

    def register(function: Single) -> Single:
        for name in names:
            TRANSFERS[name] = lambda node, facts: [function(node, facts)]
        return function

    return register


def transfer_all(*names: str) -> Callable[[Transfer], Transfer]:
    """Register what primitives with several results do."""

    def register(function: Transfer) -> Transfer:
        TRANSFERS.update(dict.fromkeys(names, function))
        return function

    return register


def elementwise(*names: str) -> Callable[[Single], Single]:
    """Register elementwise primitives on integers and floats.

    Operands that JAX broadcasts (scalars and dimensions of size one) come with the facts of
    the broadcast array. Complex numbers and floats of 8 bits or less are left alone.
    """

    def register(function: Single) -> Single:
        def on_broadcast(node: Node, facts: Sequence[Facts]) -> Claims:
            for value in (*node.operands, *node.results):
                if kind_of(value.dtype) in ("complex", "other"):
                    return {}
            return function(node, fit_all(node, facts))

        transfer(*names)(on_broadcast)
        return function

    return register


def fit_all(node: Node, facts: Sequence[Facts]) -> list[Facts]:
    """The operands' facts as if each had the result's shape."""
    shape = node.results[0].aval.shape
    return [
        f if v.aval.shape == shape else fit(v.aval, f, shape)
        for v, f in zip(node.operands, facts, strict=True)
    ]


def fit(aval: Any, facts: Facts, shape: tuple[Any, ...]) -> Facts:
    """Facts of an operand after JAX has broadcast it to `shape`."""
    if facts.splat is not None:
        return splat_facts(facts.splat, shape)
    claims = elements(facts)
    same_rank = len(aval.shape) == len(shape)
    grown = [d for d in range(len(shape)) if not same_rank or aval.shape[d] != shape[d]]
    claims["uniform"] = frozenset(grown) | (facts.uniform if same_rank else frozenset())
    if facts.iota is not None and same_rank and facts.iota[0] not in grown:
        claims["iota"] = facts.iota
    return close(_jax.ShapedArray(shape, aval.dtype), claims)
