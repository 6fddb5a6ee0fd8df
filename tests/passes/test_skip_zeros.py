"""Rows and columns of zeros are left out of products, where the weights are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from tests.passes._quantize import Case, done, floats, joined, reasons

ROWS = jnp.arange(16) % 3 == 0  # 6 of 16 stay
COLUMNS = jnp.arange(12) % 4 != 1  # 9 of 12 stay
FEW = jnp.arange(12) % 4 == 1  # 3 of 12 stay

BLOCKS = jnp.repeat(jnp.repeat(jnp.eye(4)[:, jnp.array([1, 0, 3])] + jnp.eye(4, 3), 4, 0), 4, 1) > 0

CASES = {
    "blocks": Case(lambda w, x: x @ w, floats(16, 12) * BLOCKS, floats(2, 3, 16)),
    "turned blocks": Case(lambda w, x: w @ x, (floats(16, 12) * BLOCKS).T, floats(16, 5)),
    "rows": Case(lambda w, x: x @ w, floats(16, 12) * ROWS[:, None] * COLUMNS, floats(5, 16)),
    "columns": Case(lambda w, x: jnp.tanh(x @ w), floats(16, 12) * FEW, floats(2, 3, 16)),
    "both": Case(lambda w, x: x @ w.T, (floats(16, 12) * ROWS[:, None] * FEW).T, floats(5, 16)),
    "left": Case(lambda w, x: w @ x, (floats(16, 12) * ROWS[:, None] * FEW).T, floats(16, 5)),
    "nothing": Case(lambda w, x: x @ w, floats(16, 12) * 0, floats(5, 16)),
    "dense": Case(lambda w, x: x @ w, floats(16, 12) * COLUMNS, floats(5, 16)),
    "batch": Case(lambda w, x: jnp.einsum("gbi,gij->gbj", x, w), floats(2, 8, 4) * 0, floats(2, 5, 8)),
    "loop": Case(
        lambda w, x: jax.lax.scan(lambda h, m: (h @ m, None), x, w)[0], floats(2, 8, 8) * 0, floats(5, 8)
    ),
    "pruned": Case(lambda w, x: x @ w, floats(16, 12), floats(5, 16)),
}


def test_smaller_products_give_the_same() -> None:
    """In each place of the weight; what is kept is smaller, and the rest says why it stays."""
    fun, params, x = joined(CASES)
    passes = 'prune{pattern=channel,sparsity=0.75,only="params/pruned"},skip-zeros{least=0,block=4}'
    model = lepton.compile(fun, params, x, passes=passes, strict=True)
    exact = fun(params, x)
    for name, found in model(x).items():
        if name != "pruned":
            np.testing.assert_allclose(found, exact[name], rtol=1e-4, atol=1e-5, err_msg=name)
    gone = np.asarray(model(x)["pruned"] == 0).all(0)
    assert gone.sum() == 9
    np.testing.assert_allclose(model(x)["pruned"][:, ~gone], exact["pruned"][:, ~gone], rtol=1e-4, atol=1e-5)
    sites = [site for site in model.report().passes.sites if site.by == "skip-zeros"]
    assert {name: text for name, text in done(sites).items() if text} == {
        "params/blocks": "2 of 4 blocks of 4 inputs for 4 outputs each",
        "params/turned blocks": "2 of 4 blocks of 4 inputs for 4 outputs each",
        "params/rows": "16 × 12 became 6 × 12",
        "params/columns": "16 × 12 became 16 × 3",
        "params/both": "16 × 12 became 6 × 3",
        "params/left": "16 × 12 became 6 × 3",
        "params/nothing": "16 × 12 became 0 × 0",
        "params/pruned": "16 × 12 became 16 × 3",
    }
    assert reasons(sites) == {
        "params/dense": "16 of 16 rows and 9 of 12 columns are not zero",
        "params/batch": "it is no product with a matrix",
        "params/loop": "it is in a loop or branch",
    }
    sizes = {name.split("/")[-1]: array.size for name, array in model.params.items() if array.ndim > 1}
    assert (sizes["blocks"], sizes["rows"], sizes["both"]) == (96, 72, 18)
    batched: Any = jax.vmap(model)
    found = batched(jax.tree.map(lambda v: v[None], x))["both"][0]
    np.testing.assert_allclose(found, exact["both"], rtol=1e-4, atol=1e-5)


def test_wrong_use() -> None:
    """Weights have to be known; options have ranges."""
    w, x = CASES["rows"].params, CASES["rows"].x
    with pytest.raises(lepton.UsageError, match="looks at the weights"):
        lepton.optimize(lambda w, x: x @ w, "skip-zeros{least=0}", params="w")(w, x)
    with pytest.raises(lepton.UsageError, match="fewer than 1048576"):
        lepton.compile(lambda w, x: x @ w, w, x, passes="skip-zeros")
    for options, words in {
        "most=2.0": "0 to 1",
        "block=-1": "not negative",
        "ops=gather": "for dot_general",
    }.items():
        with pytest.raises(lepton.PipelineError, match=words):
            lepton.optimize(lambda w, x: x @ w, f"skip-zeros{{{options}}}", params="w")
