"""Every program of the corpus means the same after `lepton.optimize`, under and over transformations.

Programs take turns: where Lepton's program is differentiated by JAX, JAX's batch is rewritten by Lepton, and
the other way round. With LEPTON_CORPUS=full in the environment every program goes both ways.
"""

from __future__ import annotations

import os
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
from tests.corpus._compare import assert_same, is_weak, rounding_unit

CORPUS = programs()
LEAST = 60
FULL = os.environ.get("LEPTON_CORPUS") == "full"


def named(chosen: list[Program]) -> pytest.MarkDecorator:
    """A test for each of the programs."""
    return pytest.mark.parametrize("program", chosen, ids=[program.name for program in chosen])


def is_pure(program: Program) -> bool:
    """Whether JAX may run a program at any time and as often as it likes."""
    return bool(program.differentiable or program.vmappable or program.exportable)


def loss_of(fun: Callable[..., Any]) -> Callable[..., Any]:
    """A sum of the floating results of a function, each element with a weight of its own, and the results."""

    def loss(*args: Any) -> Any:
        results = fun(*args)
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(results)]
        total = jnp.float32(0)
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                weights = np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
                total += jnp.sum(weights * (jnp.real(leaf) + jnp.imag(leaf)).astype(jnp.float32))
        return total, results

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
    turn = CORPUS.index(program) % 2

    def both(transform: Callable[[Any], Any], args: Any, turn: int) -> list[Any]:
        """A transformed program, and Lepton inside the transformation (turn 0) or outside of it (turn 1)."""
        plain = transform(program.fun)
        ways: list[Callable[[], Any]] = [lambda: transform(optimised), lambda: lepton.optimize(plain)]
        return [plain(*args), *(way()(*args) for way in (ways if FULL else ways[turn : turn + 1]))]

    def gradients(fun: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(loss_of(fun), program.differentiable, has_aux=True)

    def results(args: Any, stacked: Any) -> dict[str, list[Any]]:
        """What plain JAX gives, and then what Lepton does, in every way; gradients come with the results."""
        found = {}
        if program.differentiable:
            found["gradients"] = both(gradients, args, turn)
        expected = found["gradients"][0][1] if program.differentiable else program.fun(*args)
        if program.exportable:  # what is exported is the optimised program itself, but for weak types
            found["exported"] = [expected, export.export(compiled)(*args).call(*args)]
        else:
            found["results"] = [expected, optimised(*args)]
        if program.vmappable and (FULL or turn or not program.differentiable):
            found["batches"] = both(jax.vmap, stacked, 1 - turn)
        return found

    compiled = jax.jit(optimised)
    found = jax.jit(results)(args, batched(args) if program.vmappable else ())
    unit = rounding_unit(program.fun, *args)
    for name, (expected, *actual) in found.items():
        for result in actual:
            assert_same(result, expected, unit, weak=name != "exported")
    if program.exportable:
        types = jax.tree.leaves(compiled.eval_shape(*args))
        expected = jax.tree.leaves(found["exported"][0])
        assert [leaf.weak_type for leaf in types] == [is_weak(leaf) for leaf in expected]


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
