"""What can be taught, and by what: modules, quantised and masked students; shapes that have to be fitted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import equinox
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lepton_jax as lepton
from lepton_jax.distill import AttentionMaps, Contrastive, Features, Logits, Relations, loss

RNG = np.random.default_rng(0)
X = list(RNG.standard_normal((3, 8, 4)).astype(np.float32))
W = jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32)


def teacher(x: Any) -> Any:
    return jnp.sin(x) @ W


def linear(w: Any, x: Any) -> Any:
    return x @ w


class Flat(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3)(x)


class Normed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.down(self.drop(jnp.tanh(self.norm(self.up(x)))))


def test_an_nnx_module_trains_with_running_means_and_dropout_and_a_linen_module_teaches() -> None:
    module: Any = Normed(nnx.Rngs(0))
    flat = Flat()
    variables = flat.init(jax.random.key(1), X[0])
    before = nnx.to_pure_dict(nnx.state(module))
    kernel = np.asarray(before["up"]["kernel"])
    found = lepton.distill((flat, variables), module, optax.adam(1e-2), X, steps=3, frozen="params/down")
    assert found.params["down"]["kernel"] is not None
    np.testing.assert_array_equal(found.params["down"]["kernel"], before["down"]["kernel"])
    assert np.abs(found.params["up"]["kernel"] - kernel).max() > 1e-3
    assert np.abs(found.state["norm"]["mean"]).max() > 0
    assert int(found.state["drop"]["rngs"]["count"]) == 3
    np.testing.assert_array_equal(module.up.kernel[...], kernel)
    nnx.update(module, found.params, found.state)
    np.testing.assert_array_equal(module.up.kernel[...], found.params["up"]["kernel"])
    module.eval()
    f = loss(module, (flat, variables), [Logits()], X[0])
    assert jax.eval_shape(f, f.params, X[0])[0].shape == ()


def test_linen_and_equinox_modules_and_what_has_a_function_and_parameters() -> None:
    flat = Flat()
    variables = flat.init(jax.random.key(0), X[0])
    module = equinox.nn.Linear(4, 3, key=jax.random.key(0))
    program = SimpleNamespace(fun=linear, params=jnp.ones((4, 3)))
    f = loss(teacher, (flat, variables), [Logits("mse")], X[0])
    g = loss(teacher, module, [Logits("cosine")], X[0][0])
    h = loss(module_of(W), program, [Logits("reverse")], X[0])

    @jax.jit
    def run(x: Any) -> Any:
        return [jax.grad(each, has_aux=True)(each.params, y)[0] for each, y in ((f, x), (g, x[0]), (h, x))]

    for each, slopes in zip((f, g, h), run(X[0]), strict=True):
        assert all(np.abs(slope).max() > 0 for slope in jax.tree.leaves(slopes))
        assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(jnp.shape, each.params)
    assert jax.tree.map(jnp.shape, f.params["student"]) == jax.tree.map(jnp.shape, variables)
    assert equinox.combine(g.params["student"], module)(X[0][0]).shape == (3,)


def module_of(w: Any) -> Any:
    return lepton.compile(linear, w, X[0], passes="none")


def test_a_float_model_teaches_its_own_quantised_and_sparse_self() -> None:
    start = {"w": W}

    def network(params: Any, x: Any) -> Any:
        with jax.named_scope("out"):
            return x @ params["w"]

    passes = "default,quantize{weights=int4,train=lsq}"
    f = lepton.trainable(network, {"w": W + 0.3}, X[0], passes=passes)
    terms = [Logits("mse"), Features("out", weight=0.1)]
    found = lepton.distill((network, start), f, optax.adam(1e-2), X, epochs=10, terms=terms, report_every=3)
    assert found.history[-1].loss < 0.5 * found.history[0].loss
    model = f.compile(found.params)
    np.testing.assert_allclose(model(X[0]), f(found.params, X[0]), rtol=1e-5, atol=1e-5)
    tx = lepton.sparsify(optax.adam(1e-2), 0.5, method="straight_through")
    sparse = lepton.distill((network, start), (network, start), tx, X, steps=5, view=lepton.masked)
    kept = lepton.masked(sparse.params, sparse.opt_state)
    assert float(jnp.mean(kept["w"] == 0)) == 0.5 and float(jnp.mean(sparse.params["w"] == 0)) == 0


def convolved(params: Any, x: Any) -> Any:
    with jax.named_scope("image"):
        x = x[..., None] * params["channels"]
        side = params["pool"].shape[0]
        x = x.reshape(len(x), side, x.shape[1] // side, side, x.shape[2] // side, -1).mean((2, 4))
    return x.mean((1, 2))[:, :2]


def image_params(width: int, side: int) -> Any:
    return {"channels": jnp.arange(1.0, width + 1), "pool": jnp.zeros(side)}


def test_widths_and_positions_are_fitted() -> None:
    x = jnp.asarray(RNG.standard_normal((4, 8, 8)), jnp.float32)
    big, small = (convolved, image_params(6, 8)), (convolved, image_params(3, 4))
    pooled = (
        AttentionMaps("image"),
        Relations("image", angle=0.0),
        Contrastive("image", width=5),
        Features("image"),
    )
    f = loss(big, small, pooled, x)
    kernels = f.params["projections"]
    assert kernels["features image"]["kernel"].shape == (3, 6)
    assert kernels["contrastive image"]["teacher"].shape == (6, 5)
    _, aux = jax.jit(f)(f.params, x)
    # both are the same image in other widths: where it is active, and how images stand, are nearly alike
    assert float(aux.terms["attentionmaps image"]) < 0.5 and float(aux.terms["relations image"]) < 0.05
    assert all(np.isfinite(value) for value in aux.terms.values())
    odd = (convolved, {"channels": jnp.ones(6), "pool": jnp.zeros(1)}), (convolved, image_params(6, 8))
    g = loss(*odd, [Features("image")], x)
    assert not g.params["projections"] and jax.eval_shape(g, g.params, x)[0].shape == ()


def test_what_is_refused() -> None:
    model = module_of(W)
    cases: list[tuple[Any, Any, str]] = [
        (teacher, model, "a compiled model cannot be trained"),
        (teacher, teacher, "has no parameters to train"),
        (teacher, (linear, W, None, None), "not 4 things"),
        (teacher, (linear, jnp.zeros((4, 3), int)), "nothing to train"),
        (3, (linear, W), "a teacher is a function of inputs"),
        (teacher, (lambda w, s, x: x @ w, W, 0.0), r"returns \(output, new state\)"),
        (lambda x: (x, x), (linear, W), "returns several arrays: say which with logits="),
    ]
    for teaching, student, message in cases:
        with pytest.raises(lepton.UsageError, match=message):
            f = loss(teaching, student, [Logits()], X[0])
            f(f.params, X[0])
    with pytest.raises(lepton.UsageError, match=r"positions .* cannot be averaged down"):
        sides = (convolved, image_params(6, 2)), (convolved, image_params(6, 3))
        f = loss(*sides, [Features("image")], jnp.ones((2, 6, 6)))
        f(f.params, jnp.ones((2, 6, 6)))
