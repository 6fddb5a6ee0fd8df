"""Chains: random trees of products, transposes, scalings and sums keep their meaning."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir.export import to_callable
from tests.passes._check import check, fired, optimised
from tests.passes._products import pipeline

PASSES = pipeline("chains")
LENGTHS = (1, 4, 96, 160)

Expression = Callable[[Sequence[jax.Array]], jax.Array]


@dataclass
class Trees:
    """Makes random matrices of random matrices; all have the same batch dimensions."""

    rng: random.Random
    batch: tuple[int, ...]
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def leaf(self, *shape: int) -> Expression:
        self.shapes.append(shape)
        place = len(self.shapes) - 1
        return lambda arrays: arrays[place]

    def matrix(self, m: int, n: int, depth: int) -> Expression:
        kinds = (
            self.product,
            self.product,
            self.product,
            self.transpose,
            self.number,
            self.columns,
            self.rows,
        )
        if depth == 0:
            return self.leaf(*self.batch, m, n)
        return self.rng.choice((*kinds, self.total))(m, n, depth - 1)

    def product(self, m: int, n: int, depth: int) -> Expression:
        k = self.rng.choice(LENGTHS)
        left, right = self.matrix(m, k, depth), self.matrix(k, n, depth)
        return lambda arrays: (left(arrays) @ right(arrays)) / k**0.5

    def transpose(self, m: int, n: int, depth: int) -> Expression:
        inner = self.matrix(n, m, depth)
        return lambda arrays: jnp.swapaxes(inner(arrays), -1, -2)

    def number(self, m: int, n: int, depth: int) -> Expression:
        inner, number = self.matrix(m, n, depth), self.leaf()
        return lambda arrays: -inner(arrays) * number(arrays)

    def columns(self, m: int, n: int, depth: int) -> Expression:
        inner, factor = self.matrix(m, n, depth), self.leaf(n)
        return lambda arrays: inner(arrays) * factor(arrays)

    def rows(self, m: int, n: int, depth: int) -> Expression:
        inner, factor = self.matrix(m, n, depth), self.leaf(*self.batch, m)
        return lambda arrays: factor(arrays)[..., None] * inner(arrays)

    def total(self, m: int, n: int, depth: int) -> Expression:
        common, a, b = self.leaf(*self.batch, m, 2), self.matrix(2, n, depth), self.matrix(2, n, depth)
        return lambda arrays: common(arrays) @ a(arrays) - 2.0 * (common(arrays) @ b(arrays))


def random_program(seed: int) -> tuple[Callable[..., Any], list[jax.Array]]:
    """A random tree, or the gradient of a function of it, and its arguments."""
    rng = random.Random(seed)
    trees = Trees(rng, rng.choice(((), (2,))))
    tree = trees.matrix(rng.choice(LENGTHS), rng.choice(LENGTHS), 4)
    numbers = np.random.default_rng(seed)
    args = [jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in trees.shapes]
    if seed % 2:
        return lambda *arrays: jax.grad(lambda a: jnp.sum(jnp.sin(tree(a))))(arrays), args
    return lambda *arrays: tree(arrays), args


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_keep_their_meaning(seed: int) -> None:
    fun, args = random_program(seed)
    rewritten = to_callable(optimised(fun, *args, passes=PASSES))

    def reference() -> Any:
        with jax.enable_x64(True):
            return jax.tree.leaves(jax.jit(fun)(*(arg.astype(jnp.float64) for arg in args)))

    expected, result = jax.jit(lambda *args: (jax.tree.leaves(fun(*args)), rewritten(*args)))(*args)
    check(expected, result, reference)


def test_random_trees_are_rewritten() -> None:
    programs = [random_program(seed) for seed in range(10)]
    rules = [fired(fun, *args, passes=PASSES) for fun, args in programs]
    assert sum("order-of-products" in found for found in rules) >= 2
