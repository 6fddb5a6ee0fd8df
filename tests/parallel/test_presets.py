"""Presets: what they split in models of many structures, and what they say when there is nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lepton_jax.ir import trace
from lepton_jax.ir.cutting import inline_calls
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.paths import leaf_paths
from lepton_jax.models import Decoder, DecoderConfig
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.presets import Arrangement, PresetError, arrange, layouts_for
from lepton_jax.parallel.presets.choice import heaviest
from lepton_jax.parallel.propagation import propagate
from lepton_jax.parallel.roles import Roles, roles_of
from tests.parallel import models
from tests.parallel.models import Model

MODELS = {
    "mlp": lambda: models.mlp(4),
    "dense": lambda: models.transformer("dense", 1),
    "gated": lambda: models.transformer("gated", 1),
    "einsum": lambda: models.transformer("einsum", 1),
    "grouped": lambda: models.transformer("dense", 1, kv_heads=4),
    "few kv heads": lambda: models.transformer("dense", 1, kv_heads=2),
    "scan": lambda: models.transformer("gated", 3, scan=True),
    "moe": models.moe,
    "ragged": models.ragged_moe,
    "gathered": models.gathered_moe,
    "convnet": models.convnet,
    "recommender": models.recommender,
}


@cache
def gradient(name: str) -> tuple[Graph, Roles]:
    model = MODELS[name]()
    return graph_of(model, jax.value_and_grad(model.loss))


def graph_of(model: Model, fun: Any) -> tuple[Graph, Roles]:
    graph = inline_calls(trace(fun, model.params, *model.batch))
    paths = leaf_paths("params", model.params) + [f"batch{i}" for i in range(len(model.batch))]
    return graph, roles_of(graph, paths)


def found(preset: str, name: str, mesh: str = "data=2,model=4") -> tuple[dict[str, str], Arrangement]:
    """The layouts of inputs by path, those whole left out, and all of it; it can be propagated."""
    graph, roles = gradient(name)
    spec = MeshSpec.of(mesh, chip="v5e")
    arrangement = arrange(preset, graph, roles, spec)
    spread = propagate(graph, arrangement.layouts, spec)
    for i, output in roles.returned.items():
        assert spread[graph.outputs[output]] == arrangement.layouts[graph.inputs[i]], (
            "gradients lie as parameters"
        )
    shown = {
        path: str(arrangement.layouts[value])
        for path, value in zip(roles.paths, graph.inputs, strict=True)
        if not arrangement.layouts[value].is_whole
    }
    return {path.removeprefix("params/"): layout for path, layout in shown.items()}, arrangement


COLUMN, ROW, VECTOR = "[-, model]", "[model, -]", "[model]"
ATTENTION = {"q": COLUMN, "k": COLUMN, "v": COLUMN, "o": ROW}
TABLES = {"embed": ROW, "head": COLUMN}
HIDDEN = {"up": COLUMN, "down": ROW}


def layers(parts: dict[str, str], place: str = "layers/0/") -> dict[str, str]:
    return {place + name: layout for name, layout in parts.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("mlp", {"w0": COLUMN, "b0": VECTOR, "w1": ROW, "w2": COLUMN, "b2": VECTOR, "w3": ROW}),
        ("dense", TABLES | layers(ATTENTION | HIDDEN)),
        ("gated", TABLES | layers(ATTENTION | HIDDEN | {"gate": COLUMN})),
        ("einsum", TABLES | layers(HIDDEN | {"qkv": "[-, -, model, -]", "out": "[model, -, -]"})),
        ("grouped", TABLES | layers(ATTENTION | HIDDEN)),
        ("few kv heads", TABLES | layers(HIDDEN | {"q": COLUMN, "o": ROW})),
        (
            "scan",
            TABLES
            | layers(dict.fromkeys(("q", "k", "v", "up", "gate"), "[-, -, model]"), "layers/")
            | layers(dict.fromkeys(("o", "down"), "[-, model, -]"), "layers/"),
        ),
        (
            "convnet",
            {"head": COLUMN}
            | {f"blocks/{i}/{name}": VECTOR for i in (0, 1) for name in ("scale", "bias")}
            | {f"blocks/{i}/a": "[-, -, -, model]" for i in (0, 1)}
            | {f"blocks/{i}/b": "[-, -, model, -]" for i in (0, 1)},
        ),
        ("recommender", {f"tables/{i}": ROW for i in range(3)} | {"top": COLUMN, "last": ROW}),
    ],
)
def test_tp_finds_columns_and_rows(name: str, split: dict[str, str]) -> None:
    layouts, arrangement = found("tp", name)
    assert {path: layout for path, layout in layouts.items() if not path.startswith("batch")} == split
    assert set(layouts) - set(split) == {f"batch{i}" for i in range(len(MODELS[name]().batch))}
    notes = "\n".join(arrangement.notes)
    if name == "few kv heads":
        assert "layers/0/v are whole over the model's axes: dimension 1 (8) is 2 times 4, of which 2" in notes
    if name == "recommender":
        assert (
            "bottom is whole over the model's axes: dimension 0 (13) does not divide by 4: 12 or 16" in notes
        )
        assert "dimension 1 (16) is needed whole by concatenate" in notes


def test_fsdp_splits_the_largest_dimension() -> None:
    layouts, arrangement = found("fsdp", "scan", "data=8")
    assert layouts == {
        "batch0": "[data, -]",
        "batch1": "[data, -]",
        "embed": "[data, -]",
        "head": "[-, data]",
        "positions": "[-, data]",
        **layers(dict.fromkeys(("q", "k", "v", "o", "down"), "[-, data, -]"), "layers/"),
        **layers(dict.fromkeys(("up", "gate"), "[-, -, data]"), "layers/"),
    }
    small = "params/layers/norm, params/layers/norm2, params/norm are whole over data: small"
    assert arrangement.notes == (small,)
    both, _ = found("fsdp", "mlp", "replica=2,fsdp=4")
    assert both["w1"] == "[fsdp, -]" and both["batch0"] == "[replica+fsdp, -]"


def test_fsdp_and_tp_on_two_axes() -> None:
    layouts, _ = found("fsdp+tp", "dense")
    assert {layouts[f"layers/0/{name}"] for name in ("q", "k", "v", "up")} == {"[data, model]"}
    assert {layouts[f"layers/0/{name}"] for name in ("o", "down")} == {"[model, data]"}
    assert (layouts["embed"], layouts["head"]) == ("[model, data]", "[data, model]")


def test_dp_splits_the_batch_alone() -> None:
    layouts, _ = found("dp", "recommender", "x=2,y=4")
    assert layouts == {"batch0": "[x+y, -]", "batch1": "[x+y, -]", "batch2": "[x+y]"}
    layouts, _ = found("dp", "mlp", "data=2,model=4")
    assert layouts == {"batch0": "[data, -]", "batch1": "[data, -]"}
    _, arrangement = found("dp", "mlp", "a=2,b=8")
    assert arrangement.notes[0].startswith(
        "the batch is whole over b: dimension 0 of batch0 is 8, which does not divide by 16"
    )


def test_sp_splits_the_sequence_between_the_blocks() -> None:
    graph, roles = gradient("dense")
    mesh = MeshSpec.of("data=2,model=4", chip="v5e")
    plain, along = (layouts_for(name, graph, roles, mesh) for name in ("tp", "sp"))
    assert [plain[value] for value in graph.inputs] == [along[value] for value in graph.inputs]
    stream = {str(along[value]) for value in along if value.node is not None and value.shape == (8, 8, 32)}
    assert stream == {"[data, model, -]", "[data, -, model]", "[data, -, -]"}
    assert {str(along[value]) for value in along if value.op == "rsqrt"} == {"[data, model, -]"}
    assert {str(along[value]) for value in along if value.op == "tanh"} == {"[data, -, model]"}, "hidden"
    assert {str(along[value]) for value in along if value.op == "gather" and value.ndim == 3} == {
        "[data, -, -]"
    }


def test_the_sequence_is_found_behind_a_slice() -> None:
    dense = models.transformer("dense", 1)

    def loss(params: Any, ids: jax.Array) -> jax.Array:
        return dense.loss(params, ids[:, :-1], ids[:, 1:])

    model = Model(loss, dense.params, (models.tokens(8, 9),))
    graph, roles = graph_of(model, loss)
    layouts = layouts_for("sp", graph, roles, MeshSpec.of("data=2,model=4", chip="v5e"))
    assert str(layouts[graph.inputs[roles.batch[0]]]) == "[data, -]"
    assert {str(layouts[value]) for value in layouts if value.op == "rsqrt"} == {"[data, model, -]"}


@pytest.mark.parametrize("name", ["moe", "ragged", "gathered"])
def test_ep_splits_the_experts(name: str) -> None:
    layouts, _ = found("ep", name, "data=2,expert=4")
    assert layouts == {
        "up": "[expert, -, -]",
        "down": "[expert, -, -]",
        "batch0": "[data+expert, -, -]",
        "batch1": "[data+expert, -, -]",
    }


def test_ep_sends_tokens_to_experts() -> None:
    graph, roles = gradient("moe")
    layouts = layouts_for("ep", graph, roles, MeshSpec.of("data=2,expert=4", chip="v5e"))
    sent = {str(layouts[value]) for value in layouts if value.shape == (8, 8, 4, 128)}
    assert sent == {"[expert, data, -, -]"}


def test_ep_splits_experts_that_all_see_every_token() -> None:
    """The first product has no batch of experts: its weights go with those of the second."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(jnp.einsum("btd,edf->ebtf", x, params["up"]))
        made = jnp.einsum("ebtf,efd->ebtd", hidden, params["down"])
        return jnp.mean(jnp.einsum("ebtd,bte->btd", made, jax.nn.softmax(x @ params["router"])) ** 2)

    sizes = {"down": (4, 32, 16), "router": (16, 4), "up": (4, 16, 32)}
    params = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}
    x = jax.ShapeDtypeStruct((8, 8, 16), jnp.float32)
    graph = inline_calls(trace(jax.grad(loss), params, x))
    roles = roles_of(graph, [*leaf_paths("params", params), "x"])
    layouts = layouts_for("ep", graph, roles, MeshSpec.of("data=2,expert=4", chip="v5e"))
    down, router, up = (str(layouts[value]) for value in graph.inputs[:3])
    assert (up, down, router) == ("[expert, -, -]", "[expert, -, -]", "[-, -]")


def test_the_decoder_of_flax() -> None:
    config = DecoderConfig(vocabulary=32, context=8, layers=1, heads=4, width=16)
    model, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    ids = jax.ShapeDtypeStruct((4, 8), jnp.int32)
    graph = inline_calls(trace(lambda state, ids: nnx.merge(model, state)(ids), params, ids))
    roles = roles_of(graph, [*leaf_paths("state", params), "ids"])
    layouts = layouts_for("tp", graph, roles, MeshSpec.of("model=4", chip="v5e"))
    split = {path: str(layouts[value]) for path, value in zip(roles.paths, graph.inputs, strict=True)}
    block = {path.split("/", 3)[-1]: layout for path, layout in split.items() if "/blocks/0/" in path}
    assert {name for name, layout in block.items() if layout == COLUMN} == {
        *(f"attention/{name}/kernel/value" for name in ("query", "key", "value")),
        "up/kernel/value",
    }
    assert {name for name, layout in block.items() if layout == ROW} == {
        "attention/out/kernel/value",
        "down/kernel/value",
    }
    assert {name for name, layout in block.items() if layout == VECTOR} == {
        *(f"attention/{name}/bias/value" for name in ("query", "value")),
        "up/bias/value",
    }


def test_statistics_and_caches_lie_as_what_they_are_made_of() -> None:
    def step(params: Any, cache: Any, x: jax.Array) -> Any:
        hidden = jnp.tanh(x @ params["a"])
        new = {"mean": 0.9 * cache["mean"] + hidden.mean(0), "rows": cache["rows"] + x}
        return jax.tree.map(lambda each: each * 0.9, params), new, hidden @ params["b"]

    params = {"a": jnp.ones((16, 32)), "b": jnp.ones((32, 16))}
    cache = {"mean": jnp.ones(32), "rows": jnp.ones((8, 16))}
    x = jnp.ones((8, 16))
    graph = inline_calls(trace(step, params, cache, x))
    paths = [*leaf_paths("params", params), *leaf_paths("cache", cache), "x"]
    layouts = layouts_for("tp", graph, roles_of(graph, paths), MeshSpec.of("data=2,model=4", chip="v5e"))
    assert [str(layouts[value]) for value in graph.inputs] == [COLUMN, ROW, VECTOR, "[data, -]", "[data, -]"]
    assert [str(layouts[value]) for value in graph.outputs[:4]] == [COLUMN, ROW, VECTOR, "[data, -]"]


def test_micro_batches_are_split_along_their_examples() -> None:
    model = models.mlp(2)

    def step(params: Any, xs: jax.Array, ys: jax.Array) -> Any:
        def add(total: Any, each: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.grad(model.loss)(params, *each)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (xs, ys))[0]

    batch = tuple(jnp.stack([each] * 3) for each in model.batch)
    graph, roles = graph_of(Model(model.loss, model.params, batch), step)
    mesh = MeshSpec.of("data=4", chip="v5e")
    layouts = layouts_for("fsdp", graph, roles, mesh)
    assert [str(layouts[graph.inputs[i]]) for i in roles.batch] == ["[-, data, -]"] * 2
    assert propagate(graph, layouts, mesh)[graph.outputs[2]] == layouts[graph.inputs[2]]


@pytest.mark.parametrize(
    ("preset", "name", "mesh", "message"),
    [
        ("zero", "mlp", "data=8", "'zero' is no preset; there are dp, fsdp, tp, fsdp.tp, sp, ep"),
        (
            "dp",
            "mlp",
            "data=3",
            "dimension 0 of batch0 is 8, .*'data' of 3; the nearest sizes that do: 6 or 9",
        ),
        (
            "fsdp",
            "mlp",
            "data=2,fsdp=7",
            "no parameter has a dimension that divides over data=2,fsdp=7: params/",
        ),
        (
            "tp",
            "mlp",
            "model=7",
            r"nothing to split over model of 7: params/w0 is whole .*dimension 1 \(32\) does not",
        ),
        ("fsdp+tp", "mlp", "model=4", "needs two mesh axes of more than one device"),
        ("sp", "mlp", "model=4", "finds no sequence"),
        ("sp", "recommender", "model=4", "finds no sequence"),
        (
            "sp",
            "dense",
            "data=2,model=16",
            "the sequence, dimension 1 of an array of shape .8, 8, 32., is 8, which does",
        ),
        ("ep", "dense", "data=4", "finds no experts"),
        (
            "ep",
            "moe",
            "data=3",
            "params/up, params/down are whole over data: 8 experts do not divide by 3",
        ),
    ],
)
def test_a_preset_that_has_nothing_to_split_says_so(preset: str, name: str, mesh: str, message: str) -> None:
    graph, roles = gradient(name)
    with pytest.raises(PresetError, match=message):
        arrange(preset, graph, roles, MeshSpec.of(mesh, chip="v5e"))


def test_micro_batches_of_neighbours_are_named() -> None:
    """No split of the whole batch splits each part; the message says how to cut it."""

    def step(params: Any, x: Any) -> Any:
        def part(sums: Any, x: Any) -> Any:
            return sums + jax.grad(lambda w: jnp.sum((x @ w) ** 2))(params["w"]), None

        return jax.lax.scan(part, jnp.zeros((16, 8)), x.reshape(4, -1, 16))[0]

    graph = trace(step, {"w": jnp.ones((16, 8))}, jnp.ones((32, 16)))
    roles, mesh = roles_of(graph, ["params/w", "x"]), MeshSpec.of("data=2", chip="cpu")
    with pytest.raises(PresetError, match=r"4 runs of neighbours in x.*reshape\(-1, 4, .*microbatches=4"):
        arrange("dp", graph, roles, mesh)


def test_without_parameters_or_batch() -> None:
    graph = trace(lambda x: jnp.sin(x), jnp.ones((8, 8)))
    nothing = roles_of(graph, ["x"])
    for preset in ("fsdp", "tp"):
        with pytest.raises(PresetError, match="no input is a parameter"):
            arrange(preset, graph, nothing, MeshSpec.of("data=4", chip="cpu"))
    alone = roles_of(graph, ["params/x"])
    with pytest.raises(PresetError, match="none of the inputs params/x is a batch"):
        arrange("dp", graph, alone, MeshSpec.of("data=4", chip="cpu"))


def test_the_heaviest_set_without_neighbours() -> None:
    path = {"a": {"b"}, "b": {"a", "c"}, "c": {"b"}}
    assert heaviest({"a": 2.0, "b": 3.0, "c": 2.0}, path, [0, 0, 0]) == ("a", "c")
    assert heaviest({"a": 1.0, "b": 3.0, "c": 1.0}, path, [0, 9, 0]) == ("b",)
    assert heaviest({"a": -1.0, "b": 0.0, "c": 1.0}, path, [0, 0, 0]) == ("c",)
