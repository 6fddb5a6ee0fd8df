"""What presets compile to: the collectives of shardings written by hand, and the results of one device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import to_callable, trace
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.parallel.aot.hlo import collectives
from lepton_jax.parallel.constraints import constrain
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.presets import arrange
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import roles_of
from tests.parallel import models
from tests.parallel.models import Model

Totals = dict[tuple[str, tuple[str, ...]], tuple[int, int]]


def totals(compiled: Any, mesh: MeshSpec) -> Totals:
    """Of each kind and axes how many collectives run, and their bytes; those of scalars left out."""
    found: Totals = {}
    for each in collectives(compiled.as_text(), mesh):
        if each.bytes <= 64:
            continue
        key = (str(each.kind), each.axes or ())
        count, size = found.get(key, (0, 0))
        found[key] = count + each.times, size + each.bytes * each.times
    return found


MEGATRON = {
    **dict.fromkeys(("q", "k", "v", "up", "gate"), P(None, "model")),
    **dict.fromkeys(("o", "down"), P("model", None)),
}
FLOAT = 4
MODELS = {
    "mlp": models.mlp(2),
    "residual": models.residual(),
    "moe": models.moe(),
    "recommender": models.recommender(),
}
BLOCKS = models.blocks(1)


@functools.cache
def one_device() -> dict[str, list[Any]]:
    """The loss and its gradients without a mesh, of all models in one program."""

    def all_models(given: Any) -> Any:
        return {name: jax.value_and_grad(each.loss)(*given[name]) for name, each in MODELS.items()}

    found = jax.jit(all_models)({name: (each.params, *each.batch) for name, each in MODELS.items()})
    return {name: jax.tree.leaves(each) for name, each in jax.device_get(found).items()}


def spread(
    model: Model, preset: str, axes: str, wanted: Sequence[Any] | dict[str, Any]
) -> tuple[Totals, Totals]:
    """Compile with a preset; its results are those wanted, or those of a program with a sharding by hand."""
    spec = MeshSpec.of(axes, chip="cpu")
    sizes = tuple(axis.size for axis in spec.axes)
    mesh = jax.make_mesh(sizes, spec.names, axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))
    fun = jax.value_and_grad(model.loss)
    graph = inline_calls(trace(fun, model.params, *model.batch))
    paths = leaf_paths("params", model.params) + [f"batch{i}" for i in range(len(model.batch))]
    arrangement = arrange(preset, graph, roles_of(graph, paths), spec)
    spread = propagate(graph, arrangement.layouts, spec)
    shardings = [NamedSharding(mesh, spread[value].spec()) for value in graph.inputs]
    results = [NamedSharding(mesh, spread[value].spec()) for value in graph.outputs]
    constrain(graph, spread, mesh)
    flat, tree = jax.tree.flatten((model.params, *model.batch))
    placed = jax.device_put(flat, shardings)
    program = (
        jax.jit(to_callable(graph), in_shardings=shardings, out_shardings=results).lower(*flat).compile()
    )
    written = {}
    if isinstance(wanted, dict):
        by_hand = [NamedSharding(mesh, wanted.get(path.rpartition("/")[2], P())) for path in paths]
        hand = jax.jit(
            lambda *flat: fun(*jax.tree.unflatten(tree, flat)),
            in_shardings=by_hand,
            out_shardings=(NamedSharding(mesh, P()), jax.tree.unflatten(tree, by_hand)[0]),
        )
        compiled = hand.lower(*flat).compile()
        written = totals(compiled, spec)
        wanted = jax.tree.leaves(jax.device_get(compiled(*jax.device_put(flat, by_hand))))
    for path, got, one in zip(["loss", *paths], program(*placed), wanted, strict=False):
        np.testing.assert_allclose(got, one, rtol=1e-4, atol=1e-5 * float(abs(one).max()), err_msg=path)
    return totals(program, spec), written


def test_tp_sends_what_megatron_sends() -> None:
    ours, written = spread(BLOCKS, "tp", "model=4", MEGATRON)
    assert ours == written
    stream = models.BATCH * models.LENGTH * models.WIDTH * FLOAT
    # Behind attention and the MLP; backward before the MLP (two products) and attention (three).
    assert ours == {("all-reduce", ("model",)): (4, (1 + 1 + 2 + 3) * stream)}


def test_dp_and_fsdp_send_gradients_and_weights() -> None:
    mlp, wanted = MODELS["mlp"], one_device()["mlp"]
    sizes = {name: each.size * FLOAT for name, each in mlp.params.items()}
    ours, _ = spread(mlp, "dp", "data=8", wanted)
    assert ours == {("all-reduce", ("data",)): (1, sum(sizes.values()) + FLOAT)}
    ours, _ = spread(mlp, "fsdp", "data=8", wanted)
    # Each weight is gathered once. Gradients are added up and cut: a reduce-scatter where there is one.
    assert ours.pop(("all-gather", ("data",))) == (2, sizes["w0"] + sizes["w1"])
    assert ours == {("all-reduce", ("data",)): (1, sum(sizes.values()) + FLOAT)}


@pytest.mark.parametrize(
    ("model", "preset", "axes", "kinds"),
    [
        ("residual", "sp", "data=2,model=4", {"all-reduce", "all-gather"}),
        ("mlp", "fsdp+tp", "data=2,model=4", {"all-reduce", "all-gather"}),
        ("moe", "ep", "expert=8", {"all-reduce", "all-to-all"}),
        ("recommender", "tp", "data=2,model=4", {"all-reduce"}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_results_are_those_of_one_device(model: str, preset: str, axes: str, kinds: set[str]) -> None:
    ours, _ = spread(MODELS[model], preset, axes, one_device()[model])
    assert {kind for kind, _ in ours} >= kinds
