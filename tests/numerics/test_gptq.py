"""GPTQ against its paper's algorithm in numpy and against rounding; Hessians of dots and convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.numerics import Scheme, dequantize, fake_quantize, quantize
from lepton_jax.numerics.gptq import gptq
from lepton_jax.numerics.hessian import (
    Hessian,
    MatrixLayout,
    conv_layout,
    empty_hessian,
    merge_hessians,
    scaled_hessian,
    update_conv_hessian,
    update_hessian,
)
from lepton_jax.numerics.sensitivity import damage

INPUTS, OUTPUTS = 48, 20


def correlated(rows: int, inputs: int = INPUTS, seed: int = 0) -> Any:
    """Inputs as networks have them: correlated, and some much larger than others."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs) * np.exp(rng.standard_normal(inputs))
    return np.float32(rng.standard_normal((rows, inputs)) @ mix)


def normal(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = correlated(200)
H = X.T @ X
W = normal(INPUTS, OUTPUTS)


def paper(w: Any, hessian: Any, round_row: Any, damping: float, order: Any) -> Any:
    """Algorithm 1 of the paper, by rows, without blocks, in float64."""
    w, hessian = np.array(w, np.float64)[order], np.array(hessian, np.float64)[order][:, order]
    hessian += damping * np.diagonal(hessian).mean() * np.eye(len(w))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    values = np.zeros_like(w)
    for i in range(len(w)):
        values[i] = round_row(w[i], order[i])
        w[i:] -= np.outer(upper[i, i:], (w[i] - values[i]) / upper[i, i])
    found = np.zeros_like(values)
    found[order] = values
    return found


def test_gives_what_the_papers_algorithm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = Scheme("int4", symmetric=False, shared=(0,), group=16)

    @jax.jit
    def run(w: Any, hessian: Any) -> Any:
        solved = [gptq(w, hessian, scheme, act_order=False)]
        with monkeypatch.context() as patch:  # as a weight that is too large for one loop
            patch.setattr("lepton_jax.numerics._rows._SMALL", 0)
            solved.append(gptq(w, hessian, scheme, act_order=True, block=20))
        return quantize(w, scheme), solved, [dequantize(one.quantized, scheme) for one in solved]

    plain, solved, values = run(W, H)  # in blocks that do not divide
    scale, zero = (np.asarray(part, np.float64) for part in (plain.scale, plain.zero))

    def round_row(row: Any, i: int) -> Any:
        step, shift = scale[i // 16], zero[i // 16]
        return (np.clip(np.round(row / step) + shift, -8, 7) - shift) * step

    orders = np.arange(INPUTS), np.argsort(-np.diagonal(H), kind="stable")
    for found, value, order in zip(solved, values, orders, strict=True):
        np.testing.assert_allclose(value, paper(W, H, round_row, 0.01, order), atol=1e-5)
        np.testing.assert_allclose(found.damping, [0.01], rtol=1e-6)
        assert not np.asarray(found.rounded).any()
        codes, scales, zeros = found.quantized
        assert codes.dtype == plain.codes.dtype and codes.shape == W.shape
        np.testing.assert_array_equal(scales, plain.scale)
        np.testing.assert_array_equal(zeros, plain.zero)


def lost(change: Any, hessian: Any) -> float:
    """Twice `damage`, in numpy."""
    change, hessian = (np.asarray(array, np.float64) for array in (change, hessian))
    return float(np.sum(change * (hessian @ change)))


SCHEMES = [
    Scheme("int4", shared=(0,)),
    Scheme("int3", symmetric=False, shared=(0,), group=20),  # does not divide
    Scheme("nf4", group=(16, 10), group_axis=(0, 1)),
    Scheme("mxfp4", group_axis=0),
]


def test_beats_rounding_in_every_format() -> None:
    seen, unseen = X[:150].T @ X[:150], X[150:].T @ X[150:]  # what it is made for, and what it never saw

    @partial(jax.jit, static_argnums=0)
    def values(scheme: Scheme) -> Any:
        found = [fake_quantize(W, scheme), dequantize(gptq(W, seen, scheme).quantized, scheme)]
        if scheme is SCHEMES[0]:
            found.append(dequantize(gptq(W, seen, scheme, sweeps=2).quantized, scheme))
        return found

    for scheme in SCHEMES:
        changes = [np.asarray(value, np.float64) - W for value in values(scheme)]
        rounding, once, *swept = [[lost(change, h) for h in (seen, unseen)] for change in changes]
        assert once[0] < 0.6 * rounding[0], scheme
        assert once[1] < rounding[1], scheme
        assert all(more[0] < 1.01 * once[0] for more in swept), scheme


def test_damping_survives_bad_hessians() -> None:
    scheme = Scheme("int4", shared=(0,))
    dead = X.copy()
    dead[:, [3, 17]] = 0
    few = X[:7]
    sizes = np.sqrt(np.diagonal(H))
    indefinite = 1.5 * H / np.outer(sizes, sizes) - 0.5 * np.eye(INPUTS)
    assert np.linalg.eigvalsh(indefinite)[0] < -0.1
    hessians = {
        "dead inputs": dead.T @ dead,
        "rank 7": few.T @ few,
        "rank 1": np.ones((INPUTS, INPUTS)),
        "zero": np.zeros((INPUTS, INPUTS)),
        "indefinite": indefinite,
        "tiny": H * 1e-30,
        "huge": H * 1e30,
        "nan": np.where(np.eye(INPUTS) > 0, np.nan, H),
        "infinite": np.where(np.eye(INPUTS) > 0, np.inf, H),
    }
    stacked = np.stack(list(hessians.values())).astype(np.float32)

    @jax.jit
    def run(w: Any, stacked: Any) -> Any:
        found = jax.vmap(partial(gptq, scheme=scheme), in_axes=(None, 0))(w, stacked)  # as layers of a scan
        plain = quantize(w, scheme)
        values = [jax.vmap(lambda q: dequantize(q, scheme))(found.quantized), dequantize(plain, scheme)]
        return found, plain.codes, values

    found, rtn, (decoded, rounding) = jax.tree.map(np.asarray, run(W, stacked))
    values = dict(zip(hessians, decoded, strict=True))
    codes = dict(zip(hessians, np.asarray(found.quantized.codes), strict=True))
    rounded = dict(zip(hessians, found.rounded[:, 0].tolist(), strict=True))
    damping = dict(zip(hessians, found.damping[:, 0].tolist(), strict=True))
    assert [name for name, flag in rounded.items() if flag] == ["nan", "infinite"]
    for name in ("zero", "nan", "infinite"):
        np.testing.assert_array_equal(codes[name], rtn, err_msg=name)
    assert damping["indefinite"] > 0.09 and damping["rank 7"] < 0.011
    for name in ("dead inputs", "rank 7", "rank 1", "tiny", "huge"):
        off = [lost(v - W, hessians[name]) for v in (rounding, values[name])]
        assert off[1] < 0.6 * off[0], name
    np.testing.assert_array_equal(codes["dead inputs"][[3, 17]], rtn[[3, 17]])
    np.testing.assert_array_equal(codes["tiny"], codes["huge"])


def test_layouts_agree() -> None:
    scheme, of_split = (Scheme("int3", shared=axes, narrow=True) for axes in ((0,), (1, 3)))
    split = W.reshape(6, 8, 4, 5).transpose(2, 0, 3, 1)  # contracted over (6, 8)
    both = np.stack([W, 2 * W], axis=1)  # batch in the middle, with one Hessian each

    @jax.jit
    def run(split: Any, both: Any, h: Any, two: Any) -> Any:
        one = gptq(split, h, of_split, layout=MatrixLayout((1, -1))).quantized
        return one, gptq(both, two, scheme, layout=MatrixLayout((0,), batch=(1,))).quantized.codes

    one, batched = jax.tree.map(np.asarray, run(split, both, H, np.stack([H, 9 * H])))
    scale = np.abs(W).max(0) / 3
    order = np.argsort(-np.diagonal(H), kind="stable")
    expected = paper(W, H, lambda row, _: np.clip(np.round(row / scale), -3, 3) * scale, 0.01, order)
    turned = one.codes.transpose(1, 3, 0, 2).reshape(W.shape)
    np.testing.assert_allclose(turned * scale, expected, atol=1e-5)
    np.testing.assert_allclose(one.scale.ravel(), scale, rtol=1e-6)
    np.testing.assert_array_equal(batched[:, 0], turned)
    np.testing.assert_array_equal(batched[:, 1], turned)
    empty = jax.eval_shape(lambda w, h: gptq(w, h, scheme).quantized.codes, W[:, :0], H)
    assert empty.shape == (INPUTS, 0)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"dims": ("NHWC", "HWIO", "NHWC"), "x": (4, 7, 6, 5), "w": (3, 3, 5, 8), "strides": (1, 1)},
    "strided, grouped": {
        "dims": ("NCHW", "OIHW", "NCHW"), "x": (3, 6, 9, 8), "w": (8, 3, 3, 2), "strides": (2, 1),
        "groups": 2, "rhs_dilation": (1, 2), "padding": [(1, 0), (-1, 2)],
    },
    "depthwise": {
        "dims": ("NHWC", "HWIO", "NHWC"), "x": (6, 8, 8, 4), "w": (3, 3, 1, 8), "strides": (1, 1),
        "groups": 4,
    },
    "transposed": {
        "dims": ("NWC", "WIO", "NWC"), "x": (9, 6, 5), "w": (4, 5, 6), "strides": (1,), "lhs_dilation": (2,),
        "padding": [(2, 3)],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CONVOLUTIONS[name]
    groups, padding = case.get("groups", 1), case.get("padding", "SAME")
    w, x = normal(*case["w"]), normal(*case["x"], seed=2)
    x = x + np.roll(x, 1, 1) + np.float32(0.5)  # neighbours are correlated
    spec = lax.conv_dimension_numbers(x.shape, w.shape, case["dims"]).rhs_spec
    size = w.size // w.shape[spec[0]]

    def convolve(kernel: Any) -> Any:
        return lax.conv_general_dilated(
            x, kernel, case["strides"], padding, dimension_numbers=case["dims"], feature_group_count=groups,
            lhs_dilation=case.get("lhs_dilation"), rhs_dilation=case.get("rhs_dilation"),
            precision="highest",
        )  # fmt: skip

    def update(state: Hessian) -> Hessian:
        return update_conv_hessian(
            state, x, w.shape, dimension_numbers=case["dims"], window_strides=case["strides"],
            padding=padding, lhs_dilation=case.get("lhs_dilation"), rhs_dilation=case.get("rhs_dilation"),
            groups=groups,
        )  # fmt: skip

    layout = conv_layout(spec, groups)
    change = normal(*w.shape, seed=3)
    scheme = Scheme("int4", shared=tuple(axis for axis in range(w.ndim) if axis != spec[0]))

    @jax.jit
    def run(w: Any, change: Any) -> Any:
        start = empty_hessian(size, (groups,) if groups > 1 else ())
        hessian, parts, rounded = update(start), None, []
        if name == "plain":  # the same in parts that fit in memory
            with monkeypatch.context() as patch:
                patch.setattr("lepton_jax.numerics.hessian._CHUNK", 3000)
                parts = update(start)
        if name in ("plain", "depthwise"):
            solved = gptq(w, hessian.matrix, scheme, layout=layout).quantized
            rounded = [fake_quantize(w, scheme), dequantize(solved, scheme)]
        outputs = [jnp.sum(jnp.square(convolve(v))) for v in (change, *(v - w for v in rounded))]
        return hessian, parts, damage(change, hessian.matrix, layout=layout), outputs

    hessian, parts, found, (expected, *errors) = jax.tree.map(np.asarray, run(w, change))
    np.testing.assert_allclose(2 * found, expected, rtol=1e-4)
    positions = jax.eval_shape(convolve, w).size / w.shape[spec[0]]
    assert hessian.rows.max() == positions == hessian.rows.min()
    for a, b in zip(parts or (), hessian, strict=bool(parts)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    assert (name == "plain") == (parts is not None)
    assert not errors or errors[1] < 0.8 * errors[0]
    assert bool(errors) == (name in ("plain", "depthwise"))


def test_hessians_add_up() -> None:
    x = correlated(60).reshape(3, 20, INPUTS)
    x[1, 4, 0], x[2, 2, 5] = np.nan, np.inf
    mask = np.arange(60).reshape(3, 20) >= 5
    kept = mask & np.isfinite(x).all(-1)
    expected = x[kept].T @ x[kept]
    # Other axes, in another order; and batch by batch.
    turned = x.reshape(3, 20, 6, 8).transpose(2, 0, 3, 1)
    scale = np.exp(normal(INPUTS))

    @jax.jit
    def run(x: Any, turned: Any, mask: Any, clean: Any) -> Any:
        start = empty_hessian(INPUTS)
        whole = update_hessian(start, x, mask=mask)
        again = update_hessian(start, turned, axes=(0, 2), mask=mask)
        apart = update_hessian(empty_hessian(INPUTS, (3,)), x, batch=(0,), mask=mask)
        single = [update_hessian(start, part, mask=keep) for part, keep in zip(x, mask, strict=True)]
        merged = merge_hessians(merge_hessians(single[0], single[1]), single[2])
        scaled = scaled_hessian(update_hessian(start, clean), scale), update_hessian(start, clean / scale)
        return (whole, again, Hessian(*(part.sum(0) for part in apart)), merged), scaled

    found, (scaled, divided) = run(x, turned, mask, X)
    np.testing.assert_allclose(found[0].matrix, expected, rtol=1e-4, atol=1e-3)
    for one in found:
        np.testing.assert_allclose(one.matrix, found[0].matrix, rtol=1e-4, atol=1e-3)
        assert (float(one.rows), float(one.nonfinite)) == (53, 2)
    np.testing.assert_allclose(scaled.matrix, divided.matrix, rtol=1e-3, atol=1e-3)


def test_wrong_use() -> None:
    scheme = Scheme("int4", shared=(0,))
    with pytest.raises(
        ValueError, match=r"Hessian has shape \(3, 3\), the weight \(48, 20\) needs \(48, 48\)"
    ):
        gptq(W, jnp.eye(3), scheme)
    with pytest.raises(ValueError, match="damping and block must be positive"):
        gptq(W, H, scheme, damping=0.0)
    with pytest.raises(ValueError, match="an axis is named twice"):
        MatrixLayout((0,), batch=(0,))
    with pytest.raises(ValueError, match="either batch axes or groups"):
        MatrixLayout((0,), batch=(1,), groups=2)
    with pytest.raises(ValueError, match="the weight has 2 axes, the layout names"):
        gptq(W, H, scheme, layout=MatrixLayout((2,)))
    with pytest.raises(ValueError, match="20 outputs do not split into 3 groups"):
        gptq(W, H, scheme, layout=MatrixLayout((0,), groups=3))
    with pytest.raises(ValueError, match=r"Hessian of shape \(4, 4\) cannot take inputs of shape \(48,\)"):
        update_hessian(empty_hessian(4), jnp.asarray(X))
    with pytest.raises(ValueError, match="Hessians of different weights"):
        merge_hessians(empty_hessian(4), empty_hessian(5))
