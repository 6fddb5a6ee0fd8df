"""Masks: which weights go, what is kept of them, and what else reads them."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.numerics.masks import Unstructured
from lepton_jax.numerics.wanda import wanda
from tests.passes._quantize import Case, done, floats, joined, kept_of, reasons

CONV = lax.ConvDimensionNumbers((0, 3, 1, 2), (0, 1, 2, 3), (0, 3, 1, 2))


def convolution(kernel: Any, x: Any) -> Any:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=CONV, feature_group_count=x.shape[3] // kernel.shape[1]
    )


def layers(stack: Any, x: Any) -> Any:
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0]


CASES = {
    "dot": Case(lambda w, x: x @ w, floats(16, 8), floats(40, 16)),
    "turned": Case(lambda w, x: jnp.tanh(w @ x), floats(8, 16), floats(16, 40)),
    "summed": Case(lambda w, x: jnp.einsum("gbi,gij->gbj", x, w), floats(2, 16, 8), floats(2, 40, 16)),
    "groups": Case(convolution, floats(8, 4, 3, 3), floats(2, 6, 6, 8)),
    "loop": Case(layers, floats(3, 16, 16, scale=0.3), floats(40, 4) @ floats(4, 16)),
    "tied": Case(lambda w, x: jnp.tanh(x @ w) @ w, floats(16, 16), floats(40, 16)),
}

FUN, PARAMS, X = joined(CASES)


def halved(weight: Any) -> Any:
    """The larger half of a weight."""
    sizes = np.abs(weight)
    return np.where(sizes > np.sort(sizes, None)[weight.size // 2 - 1], weight, 0)


@pytest.fixture(scope="module")
def by_size() -> lepton.Model:
    return lepton.compile(FUN, PARAMS, X, passes="prune", strict=True)


def test_half_of_each_weight_goes_where_weights_are_prepared(by_size: lepton.Model) -> None:
    """The smallest are zero in what is kept; results are those of the pruned weights, and dense elsewhere."""
    weights = {name: halved(np.asarray(case.params)) for name, case in CASES.items()}
    weights["loop"] = np.stack([halved(np.asarray(each)) for each in PARAMS["loop"]])
    exact, found = jax.jit(FUN)(weights, X), by_size(X)
    for name in CASES:
        (kept,) = kept_of(by_size.params, name)
        np.testing.assert_array_equal(np.asarray(kept).reshape(weights[name].shape), weights[name])
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-4, atol=1e-4, err_msg=name)
    report = by_size.report()
    assert done(report.passes.sites)["params/dot"] == "50.0% of 128 weights zero, by magnitude, unstructured"
    assert done(report.passes.sites)["params/tied#2"]
    assert not reasons(report.passes.sites)
    assert report.zeros["params/dot"] == 0.5 and "float32[16, 8], 50.0% zero" in str(report)
    assert "sort" not in str(jax.make_jaxpr(by_size)(X))
    assert by_size.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))


MIXED = {
    "importance=wanda": "dot",
    "pattern=channel": "turned",
    'importance=wanda,pattern="2:4"': "summed",
    "importance=wanda,distribution=erk": "groups",
    "importance=sparsegpt,sweeps=0": "loop",
    'pattern="4x4",sparsity=0.25': "tied",
}


def test_what_calibration_saw_decides_and_patterns_hold(by_size: lepton.Model) -> None:
    """Each weight in its own way, by a pass for each; SparseGPT loses less than magnitudes."""
    scaled = {name: x * np.geomspace(0.1, 3, x.size).reshape(x.shape) for name, x in X.items()}
    passes = ",".join(f'prune{{{options},only="params/{name}"}}' for options, name in MIXED.items())
    model = lepton.compile(FUN, PARAMS, X, passes=passes, calibration=[scaled], strict=True)
    kept = {
        name: np.asarray(kept_of(model.params, name)[0]).reshape(case.params.shape)
        for name, case in CASES.items()
    }
    norms = np.sqrt((np.asarray(scaled["dot"]) ** 2).sum(0))
    np.testing.assert_array_equal(kept["dot"] != 0, wanda(PARAMS["dot"], norms))
    assert sorted((kept["turned"] != 0).sum(1)) == [0] * 4 + [16] * 4
    assert ((np.moveaxis(kept["summed"], 1, -1).reshape(-1, 4) != 0).sum(-1) == 2).all()
    blocks = kept["tied"].reshape(4, 4, 4, 4).transpose(0, 2, 1, 3).reshape(16, 16)
    assert sorted((blocks != 0).sum(1)) == [0] * 4 + [16] * 12
    assert ((kept["groups"] == 0).mean((1, 2, 3)) == 0.5).all()
    assert ((kept["loop"] == 0).mean((1, 2)) == 0.5).all()
    runs = (jax.jit(partial(FUN, PARAMS)), by_size, model)
    exact, size, best = (np.asarray(run(scaled)["loop"]) for run in runs)
    assert np.linalg.norm(best - exact) < 0.9 * np.linalg.norm(size - exact)
    assert model.params.form.names == by_size.params.form.names
    last = [site for site in model.report().passes.sites if site.done]
    assert [site.name for site in last] == [f"params/{name}" for name in MIXED.values()] + ["params/tied#2"]
    assert last[2].done == "50.0% of 256 weights zero, by wanda, 2:4"


def net(params: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ params["up"] + params["bias"])
    return jax.nn.relu(h @ params["mid"]) @ params["down"]


NET = {"up": floats(16, 32), "bias": floats(32), "mid": floats(32, 32) * 10, "down": floats(32, 4)}
ROWS = floats(64, 16)


def shares(options: str, **named: Any) -> dict[str, float]:
    """The share of each of the net's weights that is gone, and of all."""
    model = lepton.compile(net, NET, ROWS, passes=f"prune{{{options}}}", strict=True, **named)
    found = {name.split("/")[1]: np.asarray(array) == 0 for name, array in model.params.items()}
    del found["bias"]
    every = np.concatenate([each.reshape(-1) for each in found.values()])
    return {"all": float(every.mean())} | {name: float(each.mean()) for name, each in found.items()}


def test_shares_of_weights() -> None:
    """By one ranking, by Erdős and Rényi, and by what results lose."""
    ranked = shares("among=global,sparsity=0.4")
    assert abs(ranked["all"] - 0.4) < 1e-3 and ranked["mid"] < 0.2 < 0.7 < min(ranked["up"], ranked["down"])
    small = shares("distribution=erk,sparsity=0.4")
    assert abs(small["all"] - 0.4) < 1e-2 and small["down"] == 0 < small["up"] < small["mid"]
    blocks = shares('importance=wanda,among=global,pattern="4x4"', calibration=[ROWS])
    weighed = shares("distribution=sensitivity", calibration=[ROWS])
    for found in (blocks, weighed):
        assert abs(found["all"] - 0.5) < 2e-2 and found["down"] <= found["up"] < found["mid"], found


def two(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def test_pruned_weights_are_quantised_by_what_follows() -> None:
    """Zeros are the code zero, under GPTQ too, and sites keep their names."""
    how = 'importance=sparsegpt,sweeps=0,only="params/up"'
    then = 'weights=int4,method=gptq,store=fast,only="params/up"'
    passes = f"prune{{{how}}},quantize{{{then}}}"
    params = {"up": NET["up"], "down": NET["down"]}
    model = lepton.compile(two, params, ROWS, passes=passes, calibration=[ROWS], strict=True)
    (codes,) = [array for array in model.params.values() if array.dtype == jnp.int8]
    assert 0.5 <= np.mean(np.asarray(codes) == 0) < 0.7
    both = [site.by for site in model.report().passes.sites if site.name == "params/up" and site.done]
    assert both == ["prune", "quantize"]


def test_in_line_masks_are_found_at_each_call() -> None:
    """Gradients reach what stays; under jit and vmap; the graph says what is done; twice is once."""
    f = lepton.optimize(net, "prune{sparsity=0.75}", params="params")
    gradients = jax.jit(jax.grad(lambda p, x: jnp.sum(f(p, x) ** 2)))(NET, ROWS)
    for name in ("up", "mid", "down"):
        stays = np.asarray(Unstructured().mask(jnp.abs(NET[name]), 0.75))
        assert not np.asarray(gradients[name])[~stays].any(), name
        assert np.asarray(gradients[name])[stays].any(), name
    both = jax.vmap(f, in_axes=(None, 0))(NET, ROWS.reshape(2, 32, 16))
    np.testing.assert_allclose(both.reshape(64, 4), f(NET, ROWS), rtol=1e-4, atol=1e-3)
    text = lepton.optimize(lambda w, x: x @ w, "prune", params="w").trace(NET["up"], ROWS).graph.to_text()
    for part in ("sort", "stop_gradient", "ge ", "select_n", "dot_general"):
        assert part in text


def test_outputs_of_groups_are_ranked_together_and_shares_are_true() -> None:
    """A depthwise kernel has one output a group; what is reported is what goes, where units do not divide."""
    kernel, x = floats(8, 1, 3, 3), floats(2, 6, 6, 8)
    model = lepton.compile(convolution, kernel, x, passes="prune{pattern=channel}", strict=True)
    (kept,) = model.params.values()
    largest = np.argsort(np.abs(kernel).sum((1, 2, 3)))[4:]
    assert sorted(np.flatnonzero(np.asarray(kept).any((1, 2, 3)))) == sorted(largest)
    for options, words in {
        'pattern="64x64"': "0.0% of 1 blocks zero",
        'pattern="5x3"': "50.0% of 44 blocks zero",
        'pattern="2:4",sparsity=0': "0.0% of 512 weights zero",
    }.items():
        f = lepton.optimize(lambda w, x: x @ w, f"prune{{{options}}}", params="w")
        assert done(f.trace(NET["up"], ROWS).report.sites)["w"].startswith(words), options


def head(params: Any, x: Any) -> Any:
    h = params["table"][x]
    return {"tied": h @ params["table"].T, "outer": jnp.einsum("ab,c->abc", params["w"], h[0])}


def test_what_is_left_is_said_and_why() -> None:
    """Tables, weights that something else reads, outer products; empty selections and wrong settings."""
    odd = lepton.compile(
        two,
        {"up": floats(6, 8), "down": floats(8, 2)},
        floats(3, 6),
        passes='prune{pattern="2:4"}',
        strict=True,
    )
    assert reasons(odd.report().passes.sites) == {"params/up": "6 inputs do not split into groups of 4"}
    params = {"table": floats(10, 8), "w": floats(2, 3), "unused": floats(2, 2)}
    model = lepton.compile(head, params, jnp.arange(4), passes="prune", strict=True)
    why = reasons(model.report().passes.sites)
    assert why["params/table"] == "gather is not selected"
    assert "a gather that is not selected, reads it as it is" in why["params/table#2"]
    assert why["params/unused"] == "no product, convolution or gather of rows reads it"
    assert not np.asarray(model.params["params/table"] == 0).any()
    whole = lepton.compile(
        head,
        params,
        jnp.arange(4),
        passes='movement,prune{ops="gather dot_general",skip="params/w"}',
        strict=True,
    )
    assert len([name for name in whole.params if "table" in name]) == 1
    assert float((whole.params["params/table"] == 0).mean()) == 0.5


WRONG = {
    "prune{importance=fisher}": (lepton.UsageError, "lepton.sparsify(optimizer, 0.5, importance='fisher')"),
    "prune{importance=wanda}": (lepton.UsageError, "needs calibration"),
    'prune{pattern="3"}': (lepton.PipelineError, "pattern is unstructured, channel, n:m as 2:4"),
    "prune{sparsity=2.0}": (lepton.PipelineError, "sparsity is 0 to 1"),
    "prune{importance=sparsegpt,among=global}": (lepton.PipelineError, "distribution=sensitivity"),
    "prune{distribution=erk,among=global}": (lepton.PipelineError, "among=global has no distribution"),
    'prune{pattern="2:4",distribution=erk}': (lepton.PipelineError, "has its own share"),
    "prune{pattern=channel,among=global}": (lepton.PipelineError, "ranked within a layer"),
    'prune{only="params/none"}': (lepton.UsageError, "params/none"),
}


def test_wrong_use_is_refused() -> None:
    """Each with what to do instead; weights and inputs that are not finite too."""
    for passes, (kind, words) in WRONG.items():
        with pytest.raises(kind, match=re.escape(words)):
            lepton.compile(net, NET, ROWS, passes=passes, strict=True)
    spoilt = NET | {"up": NET["up"].at[0, 0].set(jnp.nan)}
    with pytest.raises(lepton.PrepareError, match="params/up has NaN"):
        lepton.compile(net, spoilt, ROWS, passes="prune")
    with pytest.raises(lepton.CalibrationError, match="NaN or infinities"):
        lepton.compile(
            net, NET, ROWS, passes="prune{importance=sparsegpt}", calibration=[ROWS.at[0, 0].set(jnp.inf)]
        )
