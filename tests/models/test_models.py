from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lepton_jax.models import Decoder, DecoderConfig, LeptonNet, LeptonNetConfig, create

SMALL_NET = LeptonNetConfig(widths=(4, 8))
SMALL_DECODER = DecoderConfig(vocabulary=17, context=12, layers=2, heads=2, width=16)


@pytest.fixture(scope="module")
def net() -> LeptonNet:
    return create(lambda: LeptonNet(SMALL_NET, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return create(lambda: Decoder(SMALL_DECODER, rngs=nnx.Rngs(0)))


def apply(model: LeptonNet | Decoder, inputs: jax.Array) -> jax.Array:
    """The model's logits, compiled as one program."""
    logits: jax.Array = jax.jit(model)(inputs)
    return logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_lepton_net_gives_float32_logits(dtype: str, train: bool, size: tuple[int, int]) -> None:
    config = LeptonNetConfig(image_channels=3, classes=5, widths=(4, 8, 8), blocks_per_stage=2, dtype=dtype)

    def logits(images: jax.Array) -> jax.Array:
        return LeptonNet(config, rngs=nnx.Rngs(0))(images, train=train)

    shape = jax.eval_shape(logits, jnp.zeros((2, *size, 3)))
    assert shape.shape == (2, 5)
    assert shape.dtype == jnp.float32


def test_lepton_net_halves_resolution_and_changes_width_at_each_stage() -> None:
    def shapes(images: jax.Array) -> list[jax.Array]:
        model = LeptonNet(LeptonNetConfig(widths=(4, 8, 16)), rngs=nnx.Rngs(0))
        assert [block.shortcut is None for block in model.blocks] == [True, False, False]
        return [images := block(images, train=False) for block in model.blocks]

    outputs = jax.eval_shape(shapes, jnp.zeros((1, 8, 8, 4)))
    assert [output.shape for output in outputs] == [(1, 8, 8, 4), (1, 4, 4, 8), (1, 2, 2, 16)]


def test_lepton_net_updates_running_statistics_only_in_training(net: LeptonNet) -> None:
    graphdef, state = nnx.split(net)
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))

    def statistics(train: bool) -> list[np.ndarray[Any, Any]]:
        def run(state: Any, images: jax.Array) -> Any:
            model = nnx.merge(graphdef, state, copy=True)
            model(images, train=train)
            return nnx.state(model, nnx.BatchStat)

        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(run)(state, images))]

    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(net, nnx.BatchStat))]
    assert all(np.array_equal(one, other) for one, other in zip(before, statistics(False), strict=True))
    assert not any(np.array_equal(one, other) for one, other in zip(before, statistics(True), strict=True))


def test_lepton_net_in_use_treats_each_image_alone(net: LeptonNet) -> None:
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    logits = apply(net, images)
    assert bool(jnp.all(jnp.isfinite(logits)))
    np.testing.assert_allclose(logits[1:2], apply(net, images[1:2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 1), (2, 8, 8, 3)])
def test_lepton_net_names_the_images_it_expects(net: LeptonNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects images \[batch, height, width, 1\]"):
        net(jnp.ones(shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied_head", [False, True])
def test_decoder_gives_float32_logits(dtype: str, tied_head: bool) -> None:
    config = DecoderConfig(
        vocabulary=11, context=9, layers=1, heads=2, width=8, tied_head=tied_head, dtype=dtype
    )

    def logits(tokens: jax.Array) -> jax.Array:
        model = Decoder(config, rngs=nnx.Rngs(0))
        assert (model.head is None) == tied_head
        return model(tokens)

    shape = jax.eval_shape(logits, jnp.zeros((3, 5), jnp.int32))
    assert shape.shape == (3, 5, 11)
    assert shape.dtype == jnp.float32


@pytest.mark.parametrize("position", [0, 4, 11])
def test_decoder_logits_ignore_later_tokens(decoder: Decoder, position: int) -> None:
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 17)
    changed = tokens.at[:, position].set((tokens[:, position] + 5) % 17)
    one, other = apply(decoder, tokens), apply(decoder, changed)
    np.testing.assert_array_equal(one[:, :position], other[:, :position])
    assert bool(jnp.all(jnp.any(one[:, position:] != other[:, position:], axis=-1)))


def test_decoder_knows_the_order_of_tokens(decoder: Decoder) -> None:
    tokens = jnp.tile(jnp.arange(12), (2, 1))  # the shape of the test above, compiled once
    one, other = (
        apply(decoder, tokens)[0, -1],
        apply(decoder, tokens.at[:, :2].set(jnp.asarray([1, 0])))[0, -1],
    )
    assert float(jnp.max(jnp.abs(one - other))) > 1e-4


@pytest.mark.parametrize("shape", [(12,), (2, 13)])
def test_decoder_names_the_tokens_it_expects(decoder: Decoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="length at most 12"):
        decoder(jnp.zeros(shape, jnp.int32))


def test_configs_refuse_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        LeptonNetConfig(widths=())
    with pytest.raises(ValueError, match="positive"):
        LeptonNetConfig(classes=0)
    with pytest.raises(ValueError, match="positive"):
        DecoderConfig(layers=0)
    with pytest.raises(ValueError, match="width 10 is not a multiple of its heads 4"):
        DecoderConfig(width=10, heads=4)


def test_create_makes_what_the_constructor_makes() -> None:
    config = DecoderConfig(vocabulary=5, context=4, layers=1, heads=1, width=4)
    made, built = create(lambda: Decoder(config, rngs=nnx.Rngs(3))), Decoder(config, rngs=nnx.Rngs(3))
    assert made.config == config
    assert nnx.graphdef(made) == nnx.graphdef(built)
    for one, other in zip(jax.tree.leaves(nnx.state(made)), jax.tree.leaves(nnx.state(built)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["block1/attention", "block0/mlp", "embed", "head"])
def test_decoder_scopes_address_its_parts(decoder: Decoder, name: str) -> None:
    lowered = jax.jit(decoder).lower(jnp.zeros((1, 4), jnp.int32))
    assert f"/{name}/" in lowered.as_text(debug_info=True)


def test_lepton_net_learns_a_fixed_batch(net: LeptonNet) -> None:
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    losses = fit(net, lambda model: model(images, train=True), jnp.arange(8))
    assert losses[-1] < 0.5 * losses[0]


def test_decoder_learns_a_fixed_batch(decoder: Decoder) -> None:
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 17)
    losses = fit(decoder, lambda model: model(tokens[:, :-1]), tokens[:, 1:])
    assert losses[-1] < 0.5 * losses[0]


def fit(
    model: nnx.Module, logits: Callable[[Any], jax.Array], targets: jax.Array, steps: int = 40
) -> list[float]:
    """The losses of a few steps of Adam."""
    graphdef, params = nnx.graphdef(model), nnx.state(model, nnx.Param)
    others = nnx.state(model, nnx.Not(nnx.Param))
    transform = optax.adam(1e-2)

    def loss_of(params: Any) -> jax.Array:
        outputs = logits(nnx.merge(graphdef, params, others, copy=True))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        params, moments = carry
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, moments = transform.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    run = jax.jit(lambda params: jax.lax.scan(step, (params, transform.init(params)), length=steps))
    return [float(loss) for loss in run(params)[1]]
