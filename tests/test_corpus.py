"""Every program of the corpus means the same after `lepton.optimize`, under and over transformations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import lepton_jax as lepton
from tests.corpus import Program, programs
from tests.corpus._compare import assert_same, rounding_unit

CORPUS = programs()
LEAST = 60


def named(chosen: list[Program]) -> pytest.MarkDecorator:
    """A test for each of the programs."""
    return pytest.mark.parametrize("program", chosen, ids=[program.name for program in chosen])


def is_pure(program: Program) -> bool:
    """Whether JAX may run a program at any time and as often as it likes."""
    return bool(program.differentiable or program.vmappable or program.exportable)


def loss_of(fun: Callable[..., Any]) -> Callable[..., Any]:
    """A sum of the floating results of a function, each element with a weight of its own."""

    def loss(*args: Any) -> Any:
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(fun(*args))]
        total = jnp.float32(0)
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                weights = np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
                total += jnp.sum(weights * (jnp.real(leaf) + jnp.imag(leaf)).astype(jnp.float32))
        return total

    return loss


def batched(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Three of each argument along a new leading axis: floats scaled, other arrays reversed, keys split."""

    def stack(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.vmap(jax.random.fold_in, (None, 0))(leaf, jnp.arange(3))
        array, number = np.asarray(leaf), leaf.dtype.type
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return np.stack([array, array * number(0.9), array * number(0.8)])
        return np.stack([array, np.flip(array), array])

    return tuple(jax.tree.map(stack, args))


@named([program for program in CORPUS if not is_pure(program)])
def test_results_and_effects_are_those_of_jit(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    args = program.make_args()
    expected = jax.block_until_ready(jax.jit(program.fun)(*args))
    jax.effects_barrier()
    printed = capsys.readouterr().out
    actual = jax.block_until_ready(lepton.optimize(program.fun)(*args))
    jax.effects_barrier()
    assert capsys.readouterr().out == printed
    assert_same(actual, expected, rounding_unit(program.fun, *args))


@named([program for program in CORPUS if is_pure(program)])
def test_results_are_those_of_jit_under_and_over_transformations(program: Program) -> None:
    """Results, gradients, batches and exported programs, from one program: the time goes to compiling."""
    args = program.make_args()
    optimised = lepton.optimize(program.fun)

    def results(args: Any, stacked: Any) -> dict[str, list[Any]]:
        """What plain JAX gives, and then what Lepton does, in every way."""
        found = {"results": [program.fun(*args), optimised(*args)]}
        if program.differentiable:
            plain = jax.grad(loss_of(program.fun), program.differentiable)
            outside = jax.grad(loss_of(optimised), program.differentiable)
            found["gradients"] = [plain(*args), outside(*args), lepton.optimize(plain)(*args)]
        if program.vmappable:
            plain, outside = jax.vmap(program.fun), jax.vmap(optimised)
            found["batches"] = [plain(*stacked), outside(*stacked), lepton.optimize(plain)(*stacked)]
        if program.exportable:
            found["exported"] = [program.fun(*args), export.export(jax.jit(optimised))(*args).call(*args)]
        return found

    found = jax.jit(results)(args, batched(args) if program.vmappable else ())
    unit = rounding_unit(program.fun, *args)
    for name, (expected, *actual) in found.items():
        for result in actual:
            assert_same(result, expected, unit, weak=name != "exported")


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    repeated = [name for name, count in Counter(program.name for program in CORPUS).items() if count > 1]
    assert not repeated
    assert len(CORPUS) >= LEAST


def test_arguments_are_the_same_at_every_call() -> None:
    for program in CORPUS:
        first, second = program.make_args(), program.make_args()
        trees: tuple[Any, Any] = (jax.tree.structure(first), jax.tree.structure(second))
        assert trees[0] == trees[1], program.name
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            assert np.array_equal(_plain(a), _plain(b)), program.name


def _plain(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
