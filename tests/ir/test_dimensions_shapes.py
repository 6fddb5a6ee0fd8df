"""What the analysis says stays of each array is what the model itself makes of smaller parameters.

The models read their sizes from their parameters, so that tracing them with smaller ones is an oracle
that knows nothing of the analysis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax._options import StaticArguments
from lepton_jax.ir.dimensions import Dependencies, Kept
from lepton_jax.ir.graph import Value
from lepton_jax.structured.dependencies import TracedCall, trace_whole
from tests.ir import _dimension_models as models

STATIC = StaticArguments(frozenset(), frozenset())
Model = tuple[Callable[..., Any], Any, tuple[Any, ...]]


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), tree, is_leaf=_is_shape)


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


MODELS: dict[str, Model] = {
    "transformer": (models.transformer, models.TRANSFORMER, (jax.ShapeDtypeStruct((2, 7), jnp.int32),)),
    "resnet": (models.resnet, models.RESNET, (floats(2, 6, 6, 3),)),
    "recurrent": (models.recurrent, models.RECURRENT, (floats(5, 2, 3), floats(2, 4))),
    "stacked": (models.stacked, models.STACKED, (floats(2, 3),)),
    "unet": (models.unet, models.UNET, (floats(2, 6, 6, 2), floats(2, 3))),
}


def traced(name: str) -> tuple[TracedCall, Dependencies]:
    fun, params, sample = MODELS[name]
    call = trace_whole(fun, STATIC, (shapes(params), *sample), {})
    return call, call.dependencies()


def random_cut(found: Dependencies, seed: int) -> dict[tuple[int, int], np.ndarray[Any, Any]]:
    """What stays where some units of each group go, at least one stays."""
    random = np.random.default_rng(seed)
    return found.select(
        {g.name: random.permutation(g.units)[: random.integers(1, g.units + 1)] for g in found.cuttable}
    )


def smaller(tree: Any, cut: dict[tuple[int, int], np.ndarray[Any, Any]], arrays: bool) -> Any:
    """Parameters, or their shapes, of which only this stays."""
    leaves, structure = jax.tree.flatten(tree)
    for (position, dim), kept in cut.items():
        leaf = leaves[position]
        shape = (*leaf.shape[:dim], len(kept), *leaf.shape[dim + 1 :])
        leaves[position] = leaf.take(kept, axis=dim) if arrays else jax.ShapeDtypeStruct(shape, leaf.dtype)
    return jax.tree.unflatten(structure, leaves)


def sizes(value: Value, kept: dict[Value, Kept]) -> tuple[int, ...]:
    if value not in kept:
        return value.shape
    return tuple(
        size if each is None else len(each) for size, each in zip(value.shape, kept[value], strict=True)
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_array_has_the_shape_that_it_has_in_the_smaller_model(name: str) -> None:
    fun, params, sample = MODELS[name]
    call, found = traced(name)
    for seed in range(3):
        cut = random_cut(found, seed)
        kept = found.kept(cut)
        other = trace_whole(fun, STATIC, (smaller(shapes(params), cut, arrays=False), *sample), {}).graph
        before, after = call.graph.nodes(), other.nodes()
        assert [node.op for node in before] == [node.op for node in after]
        for old, new in zip(before, after, strict=True):
            assert [sizes(v, kept) for v in old.results] == [v.shape for v in new.results], (name, seed, old)
        numbers = {(count.node, count.operand): count.new(kept) for count in found.counts}
        for old, new in zip(before, after, strict=True):
            for place, (mine, theirs) in enumerate(zip(old.operands, new.operands, strict=True)):
                if mine.is_const and mine.ndim == 0:
                    number = numbers.get((old, place), mine.const)
                    assert np.array_equal(number, theirs.const, equal_nan=True), (name, seed, old)


def test_what_goes_could_as_well_be_zero() -> None:
    """Where no norm knows its width (means are over whole groups), the results are the same."""
    random = np.random.default_rng(7)
    calls: dict[str, Any] = {}
    for name in ("resnet", "recurrent", "stacked", "unet"):
        _, params, sample = MODELS[name]
        whole = jax.tree.map(lambda s: random.normal(size=s.shape).astype(np.float32), shapes(params))
        whole = jax.tree.map(np.abs, whole) if name == "resnet" else whole  # variances
        inputs = [random.normal(size=each.shape).astype(np.float32) for each in sample]
        cut = random_cut(traced(name)[1], 1)
        leaves, structure = jax.tree.flatten(whole)
        for (position, dim), kept in cut.items():
            gone = np.delete(np.arange(leaves[position].shape[dim]), kept)
            leaves[position] = leaves[position].copy()
            leaves[position][(slice(None),) * dim + (gone,)] = 0.0
        calls[name] = jax.tree.unflatten(structure, leaves), smaller(whole, cut, arrays=True), inputs

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(calls: dict[str, Any]) -> Any:
        return {
            name: (MODELS[name][0](masked, *inputs), MODELS[name][0](cut, *inputs))
            for name, (masked, cut, inputs) in calls.items()
        }

    for name, (masked, cut_down) in run(calls).items():
        for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(cut_down), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=name)
