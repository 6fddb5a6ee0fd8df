"""`lepton.sensitivity`: the sites that hurt most, measured and estimated, and pipelines made of that."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from tests.passes._quantize import RNG, floats

PARAMS: dict[str, Any] = {
    "table": floats(16, 32),
    "up": floats(32, 48, scale=0.2),
    "stack": floats(2, 48, 48, scale=0.1),
    "kernel": floats(3, 3, 1, 4, scale=0.3),
    "loud": floats(48, 8, scale=0.2),
}
TOKENS = jnp.asarray(RNG.integers(0, 16, (3, 5)))
DATA = [jnp.asarray(RNG.integers(0, 16, (3, 5))) for _ in range(2)]


def program(p: Any, tokens: Any) -> Any:
    """A table, products, a loop, a convolution; what `loud` makes is most of the result."""
    h = jax.nn.relu(p["table"][tokens] @ p["up"])
    h, _ = jax.lax.scan(lambda h, w: (h + 0.02 * jnp.tanh(h @ w), None), h, p["stack"])
    numbers = ("NHWC", "HWIO", "NHWC")
    image = jax.lax.conv_general_dilated(h[..., None], p["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
    return {"small": 0.01 * image.mean(), "large": 10 * h @ p["loud"]}


def test_sites_are_ranked_and_pipelines_follow() -> None:
    passes = "cleanup,quantize{weights=int3,search=mse}"
    found = lepton.sensitivity(program, PARAMS, TOKENS, data=DATA, passes=passes, strict=True)
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {f"p/{name}" for name in PARAMS}
    assert [row.error for row in found.rows] == sorted((row.error for row in found.rows), reverse=True)
    assert rows["p/loud"].error > 20 * rows["p/stack"].error > 0
    assert rows["p/kernel"].error < 0.01 * rows["p/loud"].error
    loud, estimate = rows["p/loud"], rows["p/loud"].estimate
    assert estimate is not None and estimate == pytest.approx(
        loud.error, rel=0.02
    )  # it alone makes the result
    assert rows["p/table"].estimate is None
    assert rows["p/stack"].bytes_before == 4 * 2 * 48 * 48 and rows["p/stack"].saved > 0
    assert "p/loud" in str(found) and "estimate" in str(found)

    alone = 'cleanup,quantize{only="p/loud",weights=int3,search=mse}'
    model = lepton.compile(program, PARAMS, DATA[0], passes=alone)
    exact, result = jax.jit(program)(PARAMS, DATA[0]), model(DATA[0])
    error = jnp.linalg.norm(result["large"] - exact["large"]) / jnp.linalg.norm(exact["large"])
    assert float(error) == pytest.approx(loud.error, rel=0.3)  # of one batch, the other measured on two

    worst = found.rows[0].name
    mixed = found.mixed(keep=1)
    assert mixed.count("quantize{") == 2 and f'only="{worst}"' in mixed
    better = lepton.compile(program, PARAMS, TOKENS, passes=mixed, strict=True)
    done = {site.name: site.done for site in better.report().passes.sites}
    assert (done[worst].startswith("int8") and done["p/up"].startswith("int3")) or worst == "p/up"
    assert "skip=" in found.mixed(keep=1, high=None)
    assert found.mixed(keep=0) == found.mixed(error=10.0) == str(lepton.Pipeline.parse(passes))
    assert found.mixed(nbytes=10**6, high=None).count("p/") == len(PARAMS)


def test_a_corrected_bias_counts() -> None:
    """One site alone is what the model with that site alone is; correction takes most of its error."""

    def shifted(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["up"]) @ p["down"]

    params = {"up": floats(16, 32, scale=0.2), "down": floats(32, 8, scale=0.2)}
    data = [3 + 0.05 * floats(32, 16)]
    errors = {}
    for correct, only in (("none", "p/down"), ("bias", "p/up p/down")):
        passes = f'inline,quantize{{only="{only}",weights=int3,correct={correct}}}'
        found = lepton.sensitivity(shifted, params, data[0], data=data, passes=passes, strict=True)
        errors[correct] = {row.name: row.error for row in found.rows}
    assert errors["bias"]["p/down"] < 0.2 * errors["none"]["p/down"]
    alone = 'inline,quantize{only="p/up",weights=int3,correct=bias}'
    model = lepton.compile(shifted, params, data[0], passes=alone, calibration=data)
    exact = np.asarray(jax.jit(shifted)(params, data[0]))
    off = np.linalg.norm(model(data[0]) - exact) / np.linalg.norm(exact)
    assert errors["bias"]["p/up"] == pytest.approx(off, rel=1e-3)


def test_metrics_of_the_user_and_wrong_use() -> None:
    def loss(outputs: Any, batch: tuple[Any, ...]) -> Any:
        return jnp.abs(outputs["large"]).mean() * batch[0].size

    found = lepton.sensitivity(
        program,
        PARAMS,
        TOKENS,
        data=DATA[:1],
        passes='cleanup,quantize{only="p/up",weights=int2,activations=dynamic}',
        metric=loss,
    )
    (row,) = found.rows
    model = lepton.compile(program, PARAMS, DATA[0], passes=str(found.pipeline))
    change = loss(model(DATA[0]), (DATA[0],)) - loss(program(PARAMS, DATA[0]), (DATA[0],))
    assert row.error == pytest.approx(float(change), rel=1e-3)
    with pytest.raises(lepton.UsageError, match="one of keep="):
        found.mixed(keep=1, error=0.1)
    with pytest.raises(lepton.UsageError, match="less than"):
        found.mixed(nbytes=1)
    with pytest.raises(lepton.UsageError, match="nothing is quantised"):
        lepton.sensitivity(program, PARAMS, TOKENS, data=DATA, passes="default")
    with pytest.raises(lepton.CalibrationError, match="data is empty"):
        lepton.sensitivity(program, PARAMS, TOKENS, data=[])


def test_a_model_without_products() -> None:
    """Second moments predict nothing for tables: their errors are measured all the same."""
    passes = "default,quantize{weights=int4}"
    found = lepton.sensitivity(lambda t, i: t[i] * 2.0, PARAMS["table"], TOKENS, data=DATA, passes=passes)
    assert [(row.name, row.estimate, row.error > 0) for row in found.rows] == [("t", None, True)]
