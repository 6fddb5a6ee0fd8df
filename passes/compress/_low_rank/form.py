"""What a use of a weight may become: operations on thin factors, and what each rank costs and loses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from lepton_jax.numerics.low_rank_budget import Array, tail

Factors = tuple[jax.Array, ...]


@dataclass(frozen=True)
class Form(ABC):
    """One way to write an operation by thin factors. Derived classes are frozen: forms are static arguments.

    Attributes:
        shape: of the weight.
    """

    shape: tuple[int, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """The form in a word."""

    @property
    @abstractmethod
    def most(self) -> int:
        """The highest rank there is."""

    @abstractmethod
    def parameters(self, rank: int) -> int:
        """The elements of all factors."""

    @abstractmethod
    def operations(self, rank: int) -> float:
        """Multiplications for each sample or row, on a scale that all forms of an operation share."""

    @property
    @abstractmethod
    def dense(self) -> float:
        """The same for the operation as it is."""

    @abstractmethod
    def factors(self, weight: jax.Array, hessian: jax.Array | None, rank: int) -> Factors:
        """The factors of a weight, each with its rank along its last axis, the last factor along its first
        behind batches.
        """

    @abstractmethod
    def spectra(self, weight: jax.Array, hessian: jax.Array | None) -> Factors:
        """The singular values that are cut off, for each factor that is."""

    @abstractmethod
    def apply(self, x: jax.Array, *factors: jax.Array) -> jax.Array:
        """The operation on factors."""

    @abstractmethod
    def weight(self, *factors: jax.Array) -> jax.Array:
        """The weight that factors stand for, in their dtype."""

    @abstractmethod
    def joined(self, left: Factors, right: Factors) -> Factors:
        """The factors of a sum of two weights."""

    @abstractmethod
    def parted(self, factors: Factors, rank: int) -> tuple[Factors, Factors]:
        """Factors of a lower rank, and those of the rest."""

    def ranks(self, rank: int) -> tuple[int, ...]:
        """The rank that each spectrum is cut at."""
        return (rank,)

    def words(self, rank: int) -> str:
        """What was done, for the report."""
        return f"{self.name}, rank {rank} of {self.most}"

    def errors(self, spectra: Factors) -> Array:
        """The squared error at each rank as a part of the whole, f64[most + 1], at most 1.

        Args:
            spectra: as `spectra` gives them; loops in front.
        """
        tails = [tail(each) for each in spectra]
        chosen = [self.ranks(rank) for rank in range(1, self.most + 1)]
        sums = [sum(t[r] for t, r in zip(tails, ranks, strict=True)) for ranks in chosen]
        found: Array = np.minimum(np.array([1.0, *sums]), 1.0)
        return found

    def costs(self, count: str) -> Array:
        """What each rank costs: f64[most + 1].

        Args:
            count: `parameters` or `flops`.
        """
        cost: Callable[[int], float] = self.parameters if count == "parameters" else self.operations
        return np.array([cost(rank) for rank in range(self.most + 1)], np.float64)

    def whole(self, count: str) -> float:
        """What the operation costs as it is."""
        return float(np.prod(self.shape)) if count == "parameters" else self.dense


def make_factors(weight: jax.Array, *hessian: jax.Array, form: Form, rank: int) -> Factors:
    """The factors of a weight, for `rewrite`."""
    return form.factors(weight, hessian[0] if hessian else None, rank)


def apply_factors(x: jax.Array, *factors: jax.Array, form: Form) -> jax.Array:
    """The operation on factors, for `rewrite`."""
    return form.apply(x, *factors)


def join(*arrays: jax.Array, form: Form) -> Factors:
    """The factors of a sum of two weights, the factors of one after those of the other, for `rewrite`."""
    half = len(arrays) // 2
    return form.joined(arrays[:half], arrays[half:])
