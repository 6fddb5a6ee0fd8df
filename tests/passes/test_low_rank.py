"""Programs on thin factors: what each form computes, which weights stay and why, ranks, training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax import PipelineError, UsageError
from lepton_jax.numerics.low_rank import factorize
from lepton_jax.numerics.low_rank_kernels import tucker_factors

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


def thin(rows: int, columns: int, rank: int) -> Any:
    return floats(rows, rank) @ floats(rank, columns)


def compiled(fun: Any, params: Any, x: Any, options: str, **more: Any) -> Any:
    return lepton.compile(fun, params, x, passes=f"inline,low-rank{{{options}}}", strict=True, **more)


def sites(model: Any) -> dict[str, str]:
    return {site.name: site.done or site.reason for site in model.report().passes.sites}


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected
    )


# forms


def everything(p: Any, x: Any, tokens: Any) -> Any:
    """Products on both sides, batched, with several axes, in loops; rows of tables; bfloat16."""

    def layer(h: Any, w: Any) -> Any:
        return jnp.tanh(h @ w), None

    table, image = p["table"], x.reshape(4, 6, 4)
    h, _ = lax.scan(layer, x, p["layers"])
    many = jnp.einsum("abc,acd->abd", jnp.stack([x, h]), p["batch"])
    heads = jnp.einsum("bk,khd->bhd", x, p["heads"])
    return {
        "left": (p["left"] @ x.T).T + h,
        "many": many,
        "heads": heads,
        "joined": jnp.einsum("bhd,hdo->bo", heads, p["out"]),
        "rows": table[tokens],
        "places": jnp.take(p["columns"], tokens, axis=1, mode="fill", fill_value=0),
        "half": (x.astype(jnp.bfloat16) @ p["half"]).astype(jnp.float32),
        "image": jnp.einsum("bij,ijo->bo", image, p["two"]),
    }


EVERYTHING = {
    "layers": jnp.stack([thin(24, 24, 3), thin(24, 24, 3)]),
    "left": thin(24, 24, 3),
    "batch": jnp.stack([thin(24, 20, 3), thin(24, 20, 3)]),
    "heads": thin(24, 4 * 8, 3).reshape(24, 4, 8),
    "out": thin(4 * 8, 24, 3).reshape(4, 8, 24),
    "table": thin(40, 24, 3),
    "columns": thin(24, 40, 3),
    "half": thin(24, 24, 3).astype(jnp.bfloat16),
    "two": thin(24, 24, 3).reshape(6, 4, 24),
}
TOKENS = jnp.array([[0, 3, 39], [40, -1, 7]])  # 40 is out of bounds


def test_what_has_a_low_rank_is_computed_as_it_was() -> None:
    """All forms of products and tables, in one program: results, gradients of inputs, vmap, export."""
    x = floats(4, 24)
    args = (EVERYTHING, x, TOKENS)
    model = lepton.compile(everything, *args, passes="inline,low-rank{rank=3,goal=smaller}", strict=True)
    expected = everything(*args)
    loose = {"half": 0.05}
    found = model(x, TOKENS)
    for name, result in expected.items():
        close(found[name], result, loose.get(name, 1e-4))
    assert all("rank 3 of" in text for text in sites(model).values()), sites(model)
    assert len(sites(model)) == len(EVERYTHING)
    shapes = {array.shape for array in model.params.arrays}
    assert shapes == {(2, 24, 3), (2, 3, 24), (2, 3, 20), (40, 3), (24, 3), (3, 24), (32, 3), (3, 32)}, shapes
    assert sum(array.dtype == jnp.bfloat16 for array in model.params.arrays) == 2
    assert model.nbytes < 0.35 * sum(a.nbytes for a in EVERYTHING.values())
    (note,) = model.report().passes.notes
    assert "→" in note and "flops" in note

    def total(run: Any) -> Any:
        return lambda x: sum(
            jnp.sum(jnp.sin(y)) for name, y in run(x).items() if name not in ("half", "rows")
        )

    runs = [total(lambda x: model(x, TOKENS)), total(lambda x: everything(EVERYTHING, x, TOKENS))]
    slopes = jax.jit(lambda x: [jax.vmap(jax.grad(run))(x[None]) for run in runs])(x)
    close(slopes[0], slopes[1], 1e-3)
    exported = jax.export.export(jax.jit(lambda x: model(x, TOKENS)))(x)
    assert len(exported.out_avals) == len(expected)


def convolve(kernel: Any, x: Any, layout: Any = ("NHWC", "HWIO", "NHWC"), **options: Any) -> Any:
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)


def images(p: Any, x: Any) -> Any:
    """Strides, dilation, odd padding, other layouts, one axis of space, 1×1."""
    turned = x.transpose(0, 3, 1, 2)
    return [
        convolve(p["plain"], x, window_strides=(2, 1)),
        convolve(p["plain"], x, padding=((2, 0), (1, 3)), rhs_dilation=(2, 1)),
        convolve(p["plain"], x, padding=((1, 2), (2, 1)), lhs_dilation=(1, 2)),
        convolve(p["turned"], turned, ("NCHW", "OIHW", "NHWC")),
        convolve(p["line"], x[:, 0], ("NWC", "WIO", "NWC"), window_strides=(2,)),
        convolve(p["dot"], x),
    ]


def kernels(form: str) -> Any:
    """Kernels of rank 2 in a form, and what else there is."""
    plain = floats(3, 3, 12, 16)
    canonical = plain.transpose(2, 0, 1, 3)
    if form == "spatial":
        made = jnp.einsum("ihr,rwo->ihwo", floats(12, 3, 2), floats(2, 3, 16))
    elif form == "channel":
        made = jnp.einsum("ihwr,ro->ihwo", floats(12, 3, 3, 2), floats(2, 16))
    else:
        made = jnp.einsum("ip,phwq,qo->ihwo", *tucker_factors(canonical, (2, 2)))
    kernel = made.transpose(1, 2, 0, 3)
    line = jnp.einsum("ip,phq,qo->hio", floats(12, 2), floats(2, 3, 2), floats(2, 16))
    return {
        "plain": kernel,
        "turned": made.transpose(3, 0, 1, 2),
        "line": line,
        "dot": thin(12, 16, 2).reshape(1, 1, 12, 16),
    }


def test_kernels_of_low_rank_are_computed_as_they_were() -> None:
    x, forms = floats(2, 7, 6, 12), ("channel", "spatial", "tucker")
    params = {form: kernels(form) for form in forms}
    models = [compiled(images, params[form], x, f"rank=2,form={form},goal=smaller") for form in forms]
    results, expected = jax.jit(
        lambda models, params: ([model(x) for model in models], [images(params[form], x) for form in forms])
    )(models, params)
    close(results, expected)
    for form, model in zip(forms, models, strict=True):
        found = sites(model)
        assert len(found) == 6 and found["p/plain#3"].startswith(form), found
        assert found["p/dot"].startswith("channel")
        assert found["p/line"].startswith("channel" if form == "spatial" else form)


# which weights, and which ranks

LARGE = {"steep": floats(64, 64) * np.float32(np.exp(-np.arange(64) / 8)), "flat": floats(64, 64)}
ROWS = floats(64, 64)


def two(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["steep"]) @ params["flat"]


def test_ranks_by_share_energy_and_budget() -> None:
    """What each option keeps; weights that would gain nothing stay; inputs of other sizes."""
    loud = ROWS * jnp.where(jnp.arange(64) < 6, 10.0, 0.1)
    expected = two(LARGE, loud)
    error = {}
    for options, calibration in (
        ("ratio=0.5", None),
        ("ratio=0.5,weigh=hessian", [loud[:32], loud[32:]]),
        ("budget=0.5,weigh=hessian,multiple=8", [loud]),
        ("energy=0.9,weigh=none", None),
        ("budget=0.3", None),
    ):
        model = compiled(two, LARGE, loud, f"{options},goal=smaller", calibration=calibration)
        share = model.nbytes / sum(a.nbytes for a in LARGE.values())
        error[options] = float(jnp.linalg.norm(model(loud) - expected) / jnp.linalg.norm(expected))
        found = sites(model)
        if "energy" in options:
            assert found["params/flat"] == "factors of such a rank cost as much as the weight itself"
            assert "rank" in found["params/steep"]
        else:
            assert share <= float(options.split("=")[1].split(",")[0]) + 1e-6
        if "budget=0.3" in options:
            assert "others lose less" not in str(found) and model(loud[:3]).shape == (3, 64)
    assert error["ratio=0.5,weigh=hessian"] < 0.5 * error["ratio=0.5"], error
    assert error["budget=0.5,weigh=hessian,multiple=8"] < error["ratio=0.5,weigh=hessian"], error


def test_what_stays_as_it_is() -> None:
    """Not cheaper, not faster, groups, rows that are filled with something else: with its reason."""

    def fun(p: Any, x: Any) -> Any:
        image = x.reshape(1, 4, 4, 16)
        return (
            x @ p["w"],
            convolve(p["depth"], image, feature_group_count=16),
            p["table"].at[jnp.array([99])].get(mode="fill", fill_value=7.0),
            p["bias"] * 2,
        )

    params = {
        "w": floats(16, 16),
        "depth": floats(3, 3, 1, 16),
        "table": floats(40, 16),
        "bias": floats(4, 4),
    }
    x = floats(16, 16)
    found = sites(compiled(fun, params, x, "rank=2"))
    assert found["p/w"].startswith("its factors are no faster here")
    assert found["p/depth"] == "convolutions with groups have kernels of low rank already"
    assert found["p/table"] == "rows out of bounds are filled with 7.0"
    assert found["p/bias"] == "no product, convolution or gather of rows reads it"
    found = sites(compiled(fun, params, x, "rank=9,goal=smaller"))
    assert found["p/w"] == "factors of such a rank cost as much as the weight itself"


def test_options_and_what_is_missing() -> None:
    w, x = floats(16, 16), floats(4, 16)

    def fun(w: Any, x: Any) -> Any:
        return x @ w

    for options, message in {
        "rank=2,ratio=0.5": "say one of rank, ratio, energy and budget",
        "ratio=2": "0 to 1",
        "rank=2,multiple=0": "positive",
        "rank=2,form=tucker,train=adapters": "tucker",
    }.items():
        with pytest.raises(PipelineError, match=message):
            lepton.Pipeline.parse(f"low-rank{{{options}}}")
    little = lepton.optimize(fun, "low-rank{ratio=0.001,goal=smaller}", params="w").trace(w, x).report
    assert "rank 1 of" in little.sites[0].done and "ratio=0.001 is missed" in str(little)
    inline = lepton.optimize(fun, "low-rank{rank=2,goal=smaller}", params="w")
    left, right = factorize(w, 2)
    close(inline(w, x), x @ left @ right)  # at each call
    slope = jax.grad(lambda w: jnp.sum(inline(w, x)))(w)
    assert bool(jnp.isfinite(slope).all()) and float(jnp.abs(slope).max()) > 0
    for options, message in {
        "energy=0.9": "lepton.compile",
        "rank=2,train=factors": "lepton.trainable",
    }.items():
        with pytest.raises(UsageError, match=message):
            lepton.optimize(fun, f"low-rank{{{options}}}", params="w", strict=True)(w, x)
    with pytest.raises(UsageError, match="needs calibration"):
        compiled(fun, w, x, "rank=2,weigh=hessian")
    with pytest.raises(UsageError, match="NaN or infinite"):
        compiled(fun, w.at[0, 0].set(jnp.nan), x, "energy=0.9")


# with other passes, and in training


def test_factors_are_weights_to_other_passes() -> None:
    model = lepton.compile(
        two, LARGE, ROWS, passes="default,low-rank{rank=20,goal=smaller},quantize", strict=True
    )
    codes = [array for array in model.params.arrays if array.dtype == jnp.int8]
    assert sorted(array.size for array in codes) == [20 * 64] * 4
    plain = lepton.compile(two, LARGE, ROWS, passes="default,low-rank{rank=20,goal=smaller}")
    close(model(ROWS), plain(ROWS), 0.05)


def test_codes_of_what_factors_leave() -> None:
    """Less error than codes alone, less still by what calibration saw; nothing else is kept."""
    params = {"w": floats(64, 48), "kernel": floats(3, 3, 8, 8)}
    x = floats(64, 64) * jnp.where(jnp.arange(64) < 6, 20.0, 1.0)

    def fun(params: Any, x: Any) -> Any:
        return x @ params["w"], convolve(params["kernel"], x.reshape(8, 8, 8, 8))

    expected = fun(params, x)
    lost = []
    for passes in (
        "quantize{weights=int3}",
        "low-rank{rank=6,residual=int3,form=channel}",
        "low-rank{rank=6,residual=int3,form=channel,weigh=hessian}",
    ):
        calibration = [x] if "hessian" in passes else None
        model = lepton.compile(
            fun, params, x, passes=f"inline,{passes}", calibration=calibration, strict=True
        )
        lost.append([float(jnp.linalg.norm(a - b)) for a, b in zip(model(x), expected, strict=True)])
    codes, plain, seen = lost
    assert codes[0] > 1.2 * plain[0] > 1.5 * seen[0] and codes[1] > 1.2 * plain[1], lost
    assert codes[1] > 1.2 * seen[1], lost
    assert "residual int3, per channel" in sites(model)["params/w"]
    small = 4 * 6 * (64 + 48 + 72 + 8) + 4 * (48 + 8) + 3 * (64 * 48 + 576) // 8
    assert model.nbytes <= small + 64
    with pytest.raises(PipelineError, match="goes with rank"):
        lepton.Pipeline.parse("low-rank{ratio=0.5,residual=int4}")


def test_factors_are_trained_in_place_of_the_weights() -> None:
    """They start as the model that is compiled at once, learn, and convert to a model that gives the same."""
    params = {"layers": jnp.stack([floats(16, 16), floats(16, 16)])}

    def fun(params: Any, x: Any) -> Any:
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])[0]

    x = floats(32, 16)
    target = fun(params, x)
    once = compiled(fun, params, x, "rank=4,goal=smaller,weigh=hessian", calibration=[x])(x)
    passes = "low-rank{{rank={},goal=smaller,weigh=hessian,train={},adapters=2}}"
    fs = [
        lepton.trainable(fun, params, x, passes=passes.format(*each), calibration=[x], strict=True)
        for each in ((4, "factors"), (2, "adapters"))
    ]
    shapes = [jax.tree.map(jnp.shape, f.params["learned"]["params/layers"]) for f in fs]
    assert shapes[0] == {"weight-factors": ((2, 16, 4), (2, 4, 16))}
    assert shapes[1] == {"weight-adapters": ((2, 16, 2), (2, 2, 16))}
    tx = optax.adam(1e-2)

    @jax.jit
    def trained(start: Any) -> Any:
        def loss(now: Any) -> Any:
            return sum(jnp.mean((f(p, x) - target) ** 2) for f, p in zip(fs, now, strict=True))

        def step(carry: Any, _: Any) -> Any:
            now, state = carry
            value, slopes = jax.value_and_grad(loss)(now)
            updates, state = tx.update(slopes, state, now)
            return (optax.apply_updates(now, updates), state), (value, slopes[0]["params"])

        first = [f(p, x) for f, p in zip(fs, start, strict=True)]
        (after, _), rest = lax.scan(step, (start, tx.init(start)), None, length=60)
        return after, rest, first, [f(p, x) for f, p in zip(fs, after, strict=True)]

    after, (losses, of_weights), first, last = trained([f.params for f in fs])
    close(first, [once, once], 1e-3)
    assert losses[-1] < 0.8 * losses[0] and not np.asarray(of_weights["layers"]).any()
    for f, numbers, result in zip(fs, after, last, strict=True):
        model = f.compile(numbers)
        close(model(x), result, 1e-4)
        assert sorted(a.shape for a in model.params.arrays) == [(2, 4, 16), (2, 16, 4)]
