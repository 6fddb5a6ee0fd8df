"""Pipelines on virtual devices: losses and gradients are those of one device."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax.models.decoder import Decoder, DecoderConfig
from lepton_jax.parallel.pipeline import StageError
from lepton_jax.parallel.pipeline.packing import Packing

TOLERANCE = 2e-6
"""Of the norm of all gradients, and of the loss: float32, summed in another order."""


def mesh(*shape: int, names: tuple[str, ...] = ("stage",)) -> Mesh:
    return Mesh(np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape), names)


def same(expected: Any, found: Any) -> None:
    """Assert that two losses with gradients agree."""
    jax.tree.map(lambda a, b: None, expected, found)  # raises if their structures differ
    pairs = list(zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True))
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    right, wrong = (np.concatenate([np.ravel(x) for x in side]) for side in zip(*pairs, strict=True))
    assert np.linalg.norm(right - wrong) <= TOLERANCE * np.linalg.norm(right)


def weights(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32) / shape[-2] ** 0.5


def unequal(params: Any, x: Any, labels: Any, scale: Any) -> Any:
    """Layers of all widths, a tied matrix, a skip, numbers of two kinds, a parameter nobody reads."""
    h = first = x @ params["tied"]
    for w, b in zip(params["w"], params["b"], strict=True):
        h = jnp.tanh(h @ w + b) * scale
        top = jnp.argmax(h, axis=-1)
    h = h @ params["out"] * first + top[:, None]
    return jnp.mean(((h @ params["tied"].T) - labels) ** 2)


WIDTHS = (6, 20, 7, 12)
UNEQUAL = {
    "b": [weights(1, n)[0] for n in WIDTHS[1:]],
    "out": weights(12, 6),
    "spare": weights(2, 2),
    "tied": weights(5, 6),
    "w": [weights(a, b) for a, b in itertools.pairwise(WIDTHS)],
}
EXAMPLES = (weights(16, 5), weights(16, 5), np.float32(0.5))


def test_unequal_stages_give_the_loss_and_the_gradients_of_one_device() -> None:
    expected = jax.jit(jax.value_and_grad(unequal))(UNEQUAL, *EXAMPLES)
    for name, devices, virtual in (("zb-h1", 3, 1), ("interleaved", 2, 2)):
        step = lepton.pipelined(unequal, mesh(devices), microbatches=4, schedule=name, virtual=virtual)
        same(expected, step(UNEQUAL, *EXAMPLES))


def decoder() -> tuple[Any, Any, Any]:
    config = DecoderConfig(vocabulary=16, context=4, layers=1, heads=2, width=8, mlp_ratio=2)
    rest, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype) / 4, nnx.to_pure_dict(state))

    def loss(params: Any, tokens: Any) -> Any:
        logits = nnx.merge(rest, params)(tokens[:, :-1])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1))

    tokens = rng.integers(0, 16, (8, 5), dtype=np.int32)
    return loss, params, tokens


def test_a_decoder_with_the_batch_on_another_axis() -> None:
    loss, params, tokens = decoder()
    expected = jax.jit(jax.value_and_grad(loss))(params, tokens)
    step = lepton.pipelined(
        loss,
        mesh(2, 4, names=("stage", "data")),
        microbatches=2,
        schedule="eager-1f1b",
        data="data",
        shared=["params/tokens"],
    )
    same(expected, step(params, tokens))
    assert list(step.stages(params, tokens).shared.values()) == [(0, 1)]


def scanned(params: Any, x: Any) -> Any:
    def layer(h: Any, w: Any) -> tuple[Any, None]:
        return lepton.stage_boundary(h + jnp.tanh(h @ w["a"]) @ w["b"]), None

    h, _ = jax.lax.scan(layer, x @ params["first"], params["layers"])
    return jnp.mean((h @ params["last"]) ** 2)


SCANNED = {
    "first": weights(4, 8),
    "last": weights(8, 2),
    "layers": {"a": weights(8, 8, 16), "b": weights(8, 16, 8)},
}
X = weights(96, 4)
ONE_DEVICE = jax.jit(jax.value_and_grad(scanned))


def test_forward_alone_and_one_device() -> None:
    expected = ONE_DEVICE(SCANNED, X)
    same(expected[0], lepton.pipelined(scanned, mesh(3), microbatches=8, marks="ignore").loss(SCANNED, X))
    same(expected, lepton.pipelined(lepton.optimize(scanned), mesh(1), microbatches=2)(SCANNED, X))


def test_layers_of_a_loop_stay_split_over_a_tensor_axis() -> None:
    devices = jax.make_mesh((4, 2), ("stage", "model"))  # its axes are explicit
    split = {"first": P(), "last": P(), "layers": {"a": P("stage", None, "model"), "b": P("stage", "model")}}
    placed = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(devices, spec)), SCANNED, split)
    step = lepton.pipelined(scanned, devices, microbatches=12)
    with jax.set_mesh(devices):
        loss, grads = step(placed, X)
    same(ONE_DEVICE(SCANNED, X), (loss, grads))
    assert grads["layers"]["a"].sharding.spec == P("stage", None, "model")
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)
    assert step.lower(placed, X).as_text() == step.lower(described, X).as_text()
    shapes = [x.shape for x in jax.eval_shape(step.packed(SCANNED, X).pack, SCANNED)["own"]]
    # all layers of a stage lie in two buffers, and the middle stages are one branch of the program
    assert shapes[:2] == [(4, 1, 2, 8, 16), (4, 1, 2, 16, 8)]


def test_one_forward_one_backward_holds_less() -> None:
    found = {}
    for name in ("gpipe", "1f1b"):
        step = lepton.pipelined(scanned, mesh(2), microbatches=12, schedule=name)
        compiled = step.lower(SCANNED, X).compile()
        found[name] = (compiled.memory_analysis().temp_size_in_bytes, step.packed(SCANNED, X).held_bytes)
        same(ONE_DEVICE(SCANNED, X), compiled(SCANNED, X))
    saved, predicted = (a - b for a, b in zip(found["gpipe"], found["1f1b"], strict=True))
    assert predicted == (12 - 2) * 8 * 8 * 4  # a microbatch's activations for each that is not live
    assert saved >= predicted


def test_only_products_for_parameters_wait() -> None:
    packed = lepton.pipelined(scanned, mesh(4), microbatches=12, schedule="zb-h1").packed(SCANNED, X)
    for chunk in packed.chunks:
        first, second = chunk.halves.inputs, chunk.halves.params
        assert chunk.halves.early == ()
        assert {node.op for node in second.walk()} == {"scan", "dot_general", "transpose"}
        layers = [node for node in first if node.op == "scan"]
        assert [sum(each.op == "dot_general" for each in node.regions[0]) for node in layers] == [2, 2]
        assert sum(node.op == "dot_general" for node in second.walk()) == len(chunk.part.pieces)


def test_parameters_stay_where_the_stages_are() -> None:
    step = lepton.pipelined(scanned, mesh(2), microbatches=3, schedule="zb-h1")
    packed = step.packed(SCANNED, X)
    unpack = jax.jit(packed.unpack)
    buffers = jax.device_put(jax.jit(packed.pack)(SCANNED), packed.shardings())
    jax.tree.map(np.testing.assert_array_equal, unpack(buffers), SCANNED)
    nothing = Packing([[jax.ShapeDtypeStruct((0, 3), "float32")], []])  # of the second stage
    assert [each.shape for each in nothing.put(1, [])] == [(0, 3)]

    @jax.jit
    def train(buffers: Any, x: Any) -> Any:
        loss, grads = packed(buffers, x)
        return loss, jax.tree.map(lambda w, g: w - 0.1 * g, buffers, grads)

    loss, after = train(buffers, X)
    expected, grads = jax.device_get(ONE_DEVICE(SCANNED, X))
    same((expected, jax.tree.map(lambda w, g: w - 0.1 * g, SCANNED, grads)), (loss, unpack(after)))
    assert all(x.sharding.spec == P("stage") for x in after["own"])


def test_errors_name_the_mistake() -> None:
    devices = mesh(2)
    with pytest.raises(ValueError, match="'pipe' is not an axis of the mesh; its axes are stage"):
        lepton.pipelined(scanned, devices, "pipe", microbatches=4)
    with pytest.raises(ValueError, match="name one axis twice"):
        lepton.pipelined(scanned, devices, microbatches=4, data="stage")
    with pytest.raises(ValueError, match="marks is 'use' or 'ignore', not 'all'"):
        lepton.pipelined(scanned, devices, microbatches=4, marks="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="memory is a number of bytes, as 14e9, not '14GB'"):
        lepton.pipelined(scanned, devices, microbatches=4, memory="14GB")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"as jax.make_mesh\(\(2,\), \('stage',\)\), not 'stage=2'"):
        lepton.pipelined(scanned, "stage=2", microbatches=4)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"96 examples, which 36 microbatches do not divide: 72 or 108 examples .* or 32 or 48 microb",
    ):
        lepton.pipelined(scanned, devices, microbatches=36)(SCANNED, X)
    with pytest.raises(
        ValueError, match=r"key has 2 examples, .* make it by jax.random.key: that is one number"
    ):
        lepton.pipelined(lambda params, x, key: scanned(params, x), devices, microbatches=4)(
            SCANNED, X, jax.random.PRNGKey(0)
        )
    with pytest.raises(ValueError, match=r"give lepton.optimize\(fun\) no mesh= and no shard="):
        lepton.pipelined(lepton.optimize(scanned, mesh="data=2", shard="dp"), devices, microbatches=4)
    with pytest.raises(ValueError, match="params/last has no gradient: its dtype is int32"):
        lepton.pipelined(scanned, devices, microbatches=4)({**SCANNED, "last": np.ones((8, 2), np.int32)}, X)
    with pytest.raises(ValueError, match=r"a pipeline wants a loss, one floating-point number; .* float32"):
        lepton.pipelined(lambda params, x: x @ params["first"], devices, microbatches=4)(SCANNED, X)
    with pytest.raises(StageError, match="2 stages of a program with 1 layers"):
        lepton.pipelined(lambda w, x: jnp.mean(x @ w), devices, microbatches=4)(SCANNED["first"], X)
