"""Weights alone on a CPU with dot products of int8: activations are multiplied as two or three numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.numerics.packing import pack, pieces, unpack_pieces
from lepton_jax.passes.quantize._quantize import digits, forms

WEIGHTS = (
    "int8",
    "int4",
    "int3",
    "int2",
    "int6",
    "int8,symmetric=false",
    "int4,symmetric=false",
    "int8,per=tensor",
)


@pytest.fixture(autouse=True)
def with_dot_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "has_dot_products", lambda: True)


def floats(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def model_of(fun: Callable[..., Any], params: Any, *args: Any, weights: str = "int8") -> lepton.Model:
    return lepton.compile(fun, params, *args, passes=f"deploy,quantize{{weights={weights}}}")


def is_in_digits(model: lepton.Model) -> bool:
    return "activations in digits of int8" in str(model.report())


def distance(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


PLACES: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]] = {
    "on the right": (lambda w, x: x @ w, (128, 160), (5, 128)),
    "on the left": (lambda w, x: w @ x, (160, 128), (128, 5)),
    "turned": (lambda w, x: x @ w.T, (160, 128), (2, 3, 128)),
    "two sums": (lambda w, x: jnp.einsum("abk,hkd->abhd", x, w), (4, 128, 40), (2, 3, 128)),
    "heads summed": (lambda w, x: jnp.einsum("hab,hak->bk", x, w), (4, 32, 160), (4, 32, 7)),
    "a vector": (lambda w, x: x @ w, (128, 160), (128,)),
}


@pytest.mark.parametrize("place", PLACES)
def test_products_are_those_of_decoded_weights(place: str) -> None:
    fun, weight, shape = PLACES[place]
    w, x = floats(*weight), floats(*shape, seed=1)
    model = model_of(fun, w, x)
    exact = model_of(fun, w, x, weights="int8,products=floats")
    assert is_in_digits(model) and not is_in_digits(exact)
    assert distance(model(x), exact(x)) < 2e-4
    assert model.nbytes == exact.nbytes


@pytest.mark.parametrize("weights", WEIGHTS)
def test_formats_in_blocks(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_jax.passes.quantize._quantize.blocks.BLOCK", 2**12)
    w, x = floats(128, 200), floats(7, 128, seed=1)
    model = model_of(lambda w, x: x @ w, w, x, weights=weights)
    exact = model_of(lambda w, x: x @ w, w, x, weights=f"{weights},products=floats")
    assert is_in_digits(model)
    assert distance(model(x), exact(x)) < 2e-4
    assert distance(model(x[:4]), exact(x[:4])) < 2e-6  # three digits
    assert model.nbytes == exact.nbytes


def test_asked_for_precision_has_three_digits() -> None:
    w, x = floats(128, 160), floats(9, 128, seed=1)
    fun = lambda w, x: jnp.dot(x, w, precision="highest")  # noqa: E731
    exact = model_of(fun, w, x, weights="int8,products=floats")
    assert distance(model_of(fun, w, x)(x), exact(x)) < 2e-6


@pytest.mark.parametrize("unsigned", [False, True])
def test_derivatives_are_those_of_the_decoded_weight(unsigned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "keeps_unsigned", lambda *_: unsigned)
    w, x = floats(128, 160), floats(6, 128, seed=1)
    model = model_of(lambda w, x: jnp.tanh(x @ w / 8), w, x)
    exact = model_of(lambda w, x: jnp.tanh(x @ w / 8), w, x, weights="int8,products=floats")
    assert ("u8" in str(jax.make_jaxpr(model)(x))) == unsigned

    def loss(of: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: jnp.sum(of(x) ** 2)

    assert distance(jax.grad(loss(model))(x), jax.grad(loss(exact))(x)) < 1e-3
    moved = [jax.jvp(jax.grad(loss(of)), (x,), (x,))[1] for of in (model, exact)]
    assert distance(*moved) < 1e-3
    batch = jnp.stack([x, 2 * x])
    assert distance(jax.vmap(model)(batch), exact(batch.reshape(12, 128)).reshape(2, 6, 160)) < 2e-4


def test_rows_are_apart() -> None:
    """What is not finite spoils its own row; a row of zeros is zero; a large element costs 2⁻¹⁵ of itself."""
    w, x = floats(128, 160), np.array(floats(8, 128, seed=1))
    x[1, 3], x[2, 5], x[3], x[4, 0] = np.nan, np.inf, 0, 1e6
    x[5] *= 1e-30
    model = model_of(lambda w, x: x @ w, w, jnp.asarray(x))
    exact = model_of(lambda w, x: x @ w, w, jnp.asarray(x), weights="int8,products=floats")
    y, z = np.asarray(model(x)), np.asarray(exact(x))
    assert not np.isfinite(y[1:3]).any() and np.isfinite(np.delete(y, (1, 2), 0)).all()
    assert (y[3] == 0).all()
    assert (abs(y[4] - z[4]) <= 2**-15 * 1e6 * abs(np.asarray(w)).sum(0)).all()
    assert distance(y[5] * 1e30, z[5] * 1e30) < 2e-4


def test_half_precision() -> None:
    w, x = floats(128, 160).astype(jnp.bfloat16), floats(6, 128, seed=1).astype(jnp.bfloat16)
    model = model_of(lambda w, x: x @ w, w, x)
    assert is_in_digits(model) and model(x).dtype == jnp.bfloat16
    exact = w.astype(jnp.float32)
    assert distance(model(x).astype(jnp.float32), x.astype(jnp.float32) @ exact) < 2e-2


def test_layers_in_a_loop() -> None:
    w, x = floats(3, 128, 128) / 11, floats(6, 128, seed=1)

    def net(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    model = model_of(net, w, x)
    exact = model_of(net, w, x, weights="int8,products=floats")
    assert is_in_digits(model) and distance(model(x), exact(x)) < 4e-4
    assert model.nbytes == exact.nbytes


def test_a_tied_table_is_kept_once() -> None:
    table, tokens = floats(160, 128), jnp.array([3, 1, 5, 0, 7])
    model = model_of(lambda t, i: jnp.tanh(t[i]) @ t.T, table, tokens)
    exact = model_of(lambda t, i: jnp.tanh(t[i]) @ t.T, table, tokens, weights="int8,products=floats")
    assert is_in_digits(model) and model.nbytes <= table.size + 4 * 160 + 64
    assert distance(model(tokens), exact(tokens)) < 2e-4


def test_any_number_of_rows() -> None:
    w, x = floats(128, 160), floats(6, 128, seed=1)
    model = model_of(lambda w, x: x @ w, w, x)
    (rows,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(model.jit)(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), model.params),
        jax.ShapeDtypeStruct((rows, 128), jnp.float32),
    )
    assert distance(exported.call(model.params, x), model(x)) < 2e-4
    assert model(x[:0]).shape == (0, 160)


LEFT: dict[str, tuple[str, tuple[int, ...]]] = {
    "groups": ("int4,group=32", (128, 160)),
    "a table of values": ("nf4", (128, 160)),
    "few elements": ("int8", (16, 16)),
    "shared exponents": ("mxfp4", (128, 160)),
    "codes that end within a byte": ("int3", (132, 160)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_decoded(name: str) -> None:
    weights, shape = LEFT[name]
    w, x = floats(*shape), floats(3, shape[0], seed=1)
    model = model_of(lambda w, x: x @ w, w, x, weights=weights)
    assert not is_in_digits(model)
    assert distance(model(x), x @ w) < 0.5


def test_without_dot_products_weights_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "has_dot_products", lambda: False)
    w, x = floats(128, 160), floats(3, 128, seed=1)
    assert not is_in_digits(model_of(lambda w, x: x @ w, w, x))


@pytest.mark.parametrize("count", [2, 3])
def test_digits_add_up(count: int) -> None:
    x = floats(3, 50)
    scale = jnp.max(abs(x), 1, keepdims=True) / 127
    parts = jnp.split(digits.digits_of(x, scale, count), count)
    total = sum(part.astype(jnp.float32) * 128.0**-i for i, part in enumerate(parts)) * scale
    assert float(jnp.max(abs(total - x) / scale)) <= max(
        128.0 ** (1 - count) * 0.51, 5e-5
    )  # as exact as float32


@pytest.mark.parametrize("bits", range(1, 9))
def test_pieces_follow_one_another(bits: int) -> None:
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 40)).astype(np.int8)
    found = unpack_pieces(pack(jnp.asarray(codes), bits, 1), bits, 40, 1)
    assert len(found) == pieces(bits)
    assert (np.concatenate(found, 1) == codes).all()


@pytest.mark.parametrize(
    "options", ["activations=dynamic", "activations=dynamic,rows=tensor", "activations=static"]
)
def test_packed_codes_with_activations_in_codes(options: str) -> None:
    w, x = floats(128, 160), floats(7, 128, seed=1)
    small, fast = (
        lepton.compile(
            lambda w, x: jnp.tanh(x @ w),
            w,
            x,
            passes=f"deploy,quantize{{weights=int4,{options},store={store}}}",
            calibration=[(x,)] if "static" in options else None,
        )
        for store in ("small", "fast")
    )
    assert small.nbytes < fast.nbytes * 0.6
    assert float(jnp.max(abs(small(x) - fast(x)))) < 1e-5
    assert "concatenate" not in str(jax.make_jaxpr(small)(x))  # the codes are not put together


def test_groups_on_a_cpu_leave_activations_in_floats() -> None:
    w, x = floats(128, 160), floats(7, 128, seed=1)
    passes = "deploy,quantize{weights=int4,group=32,activations=dynamic}"
    model = lepton.compile(lambda w, x: x @ w, w, x, passes=passes)
    assert "activations stay in floats: a cpu multiplies codes in groups slower than floats" in str(
        model.report()
    )
    assert "i32" in str(
        jax.make_jaxpr(lepton.compile(lambda w, x: x @ w, w, x, passes=passes, target="tpu"))(x)
    )
