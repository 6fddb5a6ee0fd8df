"""SparseGPT against its paper's algorithm in numpy, and against Wanda and magnitudes."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import Scheme, dequantize
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.masks import Block, NofM, Pattern, Unstructured
from lepton_jax.numerics.sparsegpt import sparsegpt
from lepton_jax.numerics.wanda import wanda

INPUTS, OUTPUTS = 24, 12
RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((INPUTS, INPUTS)) / 5 * np.exp(RNG.standard_normal(INPUTS))
X: Any = (RNG.standard_normal((90, INPUTS)) @ MIX).astype(np.float32)
H: Any = X.T @ X
W: Any = RNG.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
PAIRS = NofM(2, 4)


def paper(sparsity: float, block: int, pairs: bool) -> Any:
    """Algorithm 1 of the paper, by rows, in float64."""
    w, hessian = W.astype(np.float64), H.astype(np.float64)
    hessian += 0.01 * np.diagonal(hessian).mean() * np.eye(INPUTS)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    gone = np.zeros(W.shape, bool)
    for i in range(INPUTS):
        size = 4 if pairs else block
        if i % size == 0:
            scores = (w[i : i + size] / np.diagonal(upper)[i : i + size, None]) ** 2
            if pairs:
                gone[i : i + size] = np.argsort(np.argsort(scores, 0), 0) < 2
            else:
                gone[i : i + size] = scores <= np.sort(scores, None)[int(sparsity * scores.size) - 1]
        value = np.where(gone[i], 0, w[i])
        w[i:] -= np.outer(upper[i, i:], (w[i] - value) / upper[i, i])
        w[i] = value
    return w


def lost(found: Any, hessian: Any = H) -> float:
    """The squared error of the output."""
    change = np.asarray(found, np.float64) - W
    return float(np.sum(change * (np.asarray(hessian, np.float64) @ change)))


PATTERNS: dict[str, Pattern] = {
    "single": Unstructured(),
    "pairs": PAIRS,
    "blocks": Block((4, 3)),
}


def test_is_the_papers_algorithm_and_loses_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's numbers; less is lost than by Wanda, and by Wanda than by magnitudes; sweeps lose less."""

    @jax.jit
    def run(w: Any, hessian: Any, share: Any) -> Any:
        found = {}
        for name, pattern in PATTERNS.items():
            prune = partial(sparsegpt, w, hessian, share, pattern=pattern, block=12)
            norms = jnp.sqrt(jnp.diagonal(hessian))
            kept = wanda(w, norms, share, pattern=pattern), pattern.mask(jnp.abs(w), share)
            swept = prune(sweeps=2) if name == "pairs" else None
            found[name] = prune(), swept, [jnp.where(mask, w, 0) for mask in kept]
        with monkeypatch.context() as patch:  # as a weight that is too large for one loop
            patch.setattr("lepton_jax.numerics._rows._SMALL", 0)
            again = sparsegpt(w, hessian, mask=found["single"][0].mask, block=11)
            large = sparsegpt(w, hessian, share, pattern=PAIRS, block=10, sweeps=2).weight
        return found, again, large

    found, again, large = run(W, H, 0.5)
    np.testing.assert_allclose(large, found["pairs"][1].weight, atol=1e-5)
    np.testing.assert_allclose(found["single"][0].weight, paper(0.5, 12, False), atol=1e-5)
    np.testing.assert_allclose(found["pairs"][0].weight, paper(0.5, 12, True), atol=1e-5)
    np.testing.assert_allclose(again.weight, found["single"][0].weight, atol=1e-5)
    for name, (once, swept, others) in found.items():
        by_inputs, by_size = map(lost, others)
        assert lost(once.weight) < by_inputs < by_size, name
        assert swept is None or lost(swept.weight) < 0.9 * lost(once.weight)
        for one in (once, swept or once):
            np.testing.assert_array_equal(np.asarray(one.weight) != 0, one.mask, err_msg=name)
            assert one.weight.dtype == jnp.float32 and not one.plain.any() and one.quantized is None
        units = np.asarray(PATTERNS[name].units(once.mask)) > 0
        assert abs(units.mean() - 0.5) <= 1 / units.shape[0] / 2 or name == "pairs", name
        alike = PATTERNS[name].spread(jnp.asarray(units), W.shape)
        np.testing.assert_array_equal(alike, once.mask, err_msg=name)
    groups = np.asarray(found["pairs"][0].mask).reshape(6, 4, OUTPUTS).sum(1)
    assert (groups == 2).all()
    for share in (0.0, 1.0):
        weight = np.asarray(run(W, H, share)[0]["single"][0].weight)
        np.testing.assert_array_equal(weight, W * (1 - share))


def test_survives_bad_hessians_and_short_floats() -> None:
    """Singular Hessians get damped, zero ones and those with NaN fall back on magnitudes."""
    dead = X.copy()
    dead[:, [3, 17]] = 0
    hessians = {
        "dead inputs": dead.T @ dead,
        "rank 5": X[:5].T @ X[:5],
        "tiny": H * 1e-30,
        "huge": H * 1e30,
        "zero": np.zeros_like(H),
        "nan": np.where(np.eye(INPUTS) > 0, np.nan, H),
    }
    stacked = np.stack(list(hessians.values())).astype(np.float32)
    scheme = Scheme("int4", shared=(0,))

    @jax.jit
    def run(w: Any, stacked: Any) -> Any:
        layers = jax.vmap(partial(sparsegpt, block=INPUTS), in_axes=(None, 0))(w, stacked)
        joint = sparsegpt(w, stacked[2], scheme=scheme, block=INPUTS)
        short = sparsegpt(w.astype(jnp.bfloat16), stacked[2])
        nothing = sparsegpt(w[:, :0], stacked[2])
        return layers, joint, dequantize(joint.quantized, scheme), short, nothing

    layers, joint, decoded, short, nothing = run(W, stacked)
    half = Unstructured().mask(jnp.abs(W), 0.5)
    for i, name in enumerate(hessians):
        weight = np.asarray(layers.weight[i])
        assert np.isfinite(weight).all() and (weight == 0).mean() == 0.5, name
        if name in ("zero", "nan"):
            np.testing.assert_array_equal(weight, np.where(half, W, 0), err_msg=name)
        else:
            assert lost(weight, hessians[name]) < 0.5 * lost(np.where(half, W, 0), hessians[name]), name
        assert bool(layers.plain[i, 0]) == (name == "nan")
    assert not layers.mask[0][jnp.array([3, 17])].any()
    np.testing.assert_array_equal(layers.mask[2], layers.mask[3])
    assert short.weight.dtype == jnp.bfloat16 and float((short.weight == 0).mean()) == 0.5
    assert lost(short.weight) < lost(np.where(half, W, 0))
    assert jax.eval_shape(sparsegpt, jnp.zeros((INPUTS, 2), jnp.float16), H).weight.dtype == jnp.float16
    np.testing.assert_array_equal(np.where(joint.mask, decoded, 0), joint.weight)
    np.testing.assert_array_equal(decoded, joint.weight)  # a zero is the code zero
    assert float((~joint.mask).mean()) == 0.5 and lost(joint.weight) < lost(np.where(half, W, 0))
    assert nothing.weight.shape == (INPUTS, 0)


def test_layouts_agree() -> None:
    """Several contracted axes, batches, and patterns along another axis than the last."""
    split = W.reshape(6, 4, 3, 4).transpose(2, 0, 3, 1)  # contracted over axes 1 and 3, sizes 6 and 4
    both = np.stack([W, 2 * W], axis=1)
    turned = W.reshape(4, 6, OUTPUTS).transpose(1, 0, 2)  # rows in an order where pairs are apart
    order = np.arange(INPUTS).reshape(4, 6).T.reshape(-1)

    @jax.jit
    def run(h: Any, two: Any) -> Any:
        return (
            sparsegpt(W, h, pattern=PAIRS).weight,
            sparsegpt(split, h, pattern=PAIRS, layout=MatrixLayout((1, -1))).weight,
            sparsegpt(both, two, pattern=PAIRS, layout=MatrixLayout((0,), batch=(1,))).weight,
            sparsegpt(
                turned[..., None], h[order][:, order], pattern=PAIRS, layout=MatrixLayout((0, 1)), along=1
            ).weight,
        )

    one, apart, batched, other = map(np.asarray, run(H, np.stack([H, 9 * H])))
    np.testing.assert_allclose(apart.transpose(1, 3, 0, 2).reshape(W.shape), one, atol=1e-5)
    np.testing.assert_allclose(batched, np.stack([one, 2 * one], 1), atol=1e-5)
    assert ((other != 0).sum(1) == 2).all()


def test_wanda_ranks_within_outputs() -> None:
    """Each output loses the same share, whatever its size."""
    kept = np.asarray(jax.jit(wanda)(W * np.geomspace(1, 100, OUTPUTS), np.ones(INPUTS), 0.25))
    assert (kept.sum(0) == 18).all()
    with pytest.raises(ValueError, match="has norms of inputs"):
        wanda(W, jnp.ones(3))


def test_wrong_use() -> None:
    """What does not fit is named."""
    with pytest.raises(ValueError, match=r"Hessian has shape \(3, 3\)"):
        sparsegpt(W, jnp.eye(3))
    with pytest.raises(ValueError, match="sweeps not negative"):
        sparsegpt(W, H, sweeps=-1)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\)"):
        sparsegpt(W, H, mask=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="6 inputs do not split into groups of 4"):
        sparsegpt(W.reshape(4, 6, OUTPUTS), H, pattern=PAIRS, layout=MatrixLayout((0, 1)))
    with pytest.raises(ValueError, match="axis 1 is not contracted"):
        sparsegpt(W, H, along=1)
