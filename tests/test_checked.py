"""`verify` and `measure`: which program runs, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from tests.api_programs import Breaks, noisy


def test_measure_keeps_a_decision() -> None:
    f = lepton.optimize(noisy, measure=True, verify=True)
    x = jnp.ones((64, 64))
    np.testing.assert_allclose(f(x), noisy(x), rtol=1e-6)
    np.testing.assert_allclose(f(x), noisy(x), rtol=1e-6)
    notes = " ".join(f.report.notes)
    assert "measure:" in notes and "verify: equal" in notes
    np.testing.assert_allclose(jax.jit(f)(x), noisy(x), rtol=1e-6)


def test_a_measured_decision_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    x = jnp.ones((64, 64))

    def decided(passes: str = "default") -> str:
        f = lepton.optimize(noisy, passes, measure=True)
        f.clear_cache()
        np.testing.assert_allclose(f(x), noisy(x), rtol=1e-6)
        return " ".join(f.report.notes)

    assert "before" not in decided()
    assert "measured before on this machine" in decided()
    assert "before" not in decided("cleanup")  # another pipeline is another decision
    for file in tmp_path.rglob("*.json"):
        file.write_text(json.dumps({"value": 0.25}))
    assert "the plain program is kept, 4.00× as fast (measured before" in decided()
    for file in tmp_path.rglob("*.json"):
        file.write_text("broken")
    assert "before" not in decided()


class _Fails(lepton.Pass):
    """A pass that leaves what cannot be evaluated."""

    name = "fails"

    def run(self, graph: lepton.ir.Graph, ctx: lepton.PassContext) -> None:
        for node in graph.walk():
            if node.op == "sin" and ctx.fire("lose-operand", node):
                node.set_operands([])


def test_verify_option_falls_back_to_the_plain_program() -> None:
    x = jnp.ones(3)
    f = lepton.optimize(jnp.sin, lepton.Pipeline((Breaks(),)), verify=True)
    np.testing.assert_allclose(f(x), jnp.sin(x))
    assert any("plain program is kept" in note for note in f.report.notes)


def test_a_program_that_cannot_be_evaluated_is_run_plain() -> None:
    x = jnp.ones(3)
    f = lepton.optimize(lambda x: jnp.sin(x), lepton.Pipeline((_Fails(),)), strict=False)
    with pytest.warns(lepton.PassWarning, match="plain jax.jit"):
        np.testing.assert_allclose(f(x), jnp.sin(x))
    np.testing.assert_allclose(f(x), jnp.sin(x))
    np.testing.assert_allclose(jax.grad(lambda x: f(x).sum())(x), jnp.cos(x))


def test_verify_finds_a_broken_pass() -> None:
    good = lepton.verify(noisy, jnp.ones((2, 3)))
    assert good.ok and good.worst < 64, str(good)
    bad = lepton.verify(lepton.optimize(noisy, lepton.Pipeline((Breaks(),))), jnp.ones((2, 3)))
    assert not bad.ok
    with pytest.raises(lepton.VerificationError, match="times what rounding explains"):
        bad.raise_if_failed()
