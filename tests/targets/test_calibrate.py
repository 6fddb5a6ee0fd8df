"""Measured rates: what is measured, where it is kept, and who uses it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import lepton_jax as lepton
from lepton_jax import cli
from lepton_jax.targets import CPU, calibrate, get_target, records
from lepton_jax.targets.calibrate import SMALL


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that is the test's own."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    return tmp_path


def test_measured_rates_are_used_from_then_on(own_cache: Path) -> None:
    assert get_target() is CPU
    rates, file = calibrate(SMALL)
    assert file is not None and file.is_relative_to(own_cache)
    assert get_target() == rates and rates.platform == "cpu"
    assert dict(get_target().flops) == dict(rates.flops) and rates.flops.keys() >= CPU.flops.keys() - {
        "complex64"
    }
    numbers = [*rates.flops.values(), rates.vector_flops, rates.bytes_per_second]
    assert all(number > 1e6 for number in numbers)
    assert 0 < rates.seconds_per_node < 1e-3 and 0 < rates.seconds_per_iteration < 1e-3
    assert rates.seconds_per_fusion and rates.seconds_per_compiled_iteration
    assert rates.seconds_per_compiled_iteration <= rates.seconds_per_iteration
    ((size, cached),) = rates.caches
    assert size == 8 * SMALL.caches[0] and cached >= rates.bytes_per_second
    assert rates.fresh_bytes_per_second and rates.fresh_bytes_per_second <= rates.bytes_per_second
    file.unlink()
    assert get_target() is CPU


def test_a_named_target_keeps_its_figures() -> None:
    calibrate(SMALL)
    assert get_target("cpu") is CPU


def test_figures_of_another_version_or_machine_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = calibrate(SMALL)
    assert file is not None
    text = file.read_text()
    file.write_text(text.replace("seconds_per_node", "seconds_per_knot"))
    assert get_target() is CPU
    file.write_text(text[: len(text) // 2])
    assert get_target() is CPU
    file.write_text(text)
    assert get_target() is not CPU
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    assert get_target() is CPU


def test_the_rates_decide_what_pays(own_cache: Path) -> None:
    """The report of an optimised function names the target; figures of this machine stand behind it."""
    calibrate(SMALL)
    f = lepton.optimize(lambda x: jnp.sin(x) + 0)
    f(jnp.ones(3))
    assert f.report.target == "cpu"


def test_where_nothing_can_be_written_nothing_breaks(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = own_cache / "file"
    blocked.write_text("")
    monkeypatch.setenv("LEPTON_CACHE", str(blocked / "below"))
    assert records.write("rates", "", 1) is None
    assert records.read("rates", "") is None
    assert get_target() is CPU


def test_records_keep_what_they_are_given(own_cache: Path) -> None:
    path = records.write("kind", "a", {"x": [1, 2.5]})
    assert path is not None and json.loads(path.read_text())["machine"] == records.machine()
    assert records.read("kind", "a") == {"x": [1, 2.5]}
    assert records.read("kind", "b") is None and records.read("other", "a") is None
    assert not list(own_cache.rglob("*.tmp"))


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEPTON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert records.folder() == Path("/some/where/lepton")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert records.folder() == Path.home() / ".cache" / "lepton"


def test_the_command_shows_measured_and_built_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "__defaults__", (SMALL,))
    assert cli.main(["calibrate"]) == 0
    text = capsys.readouterr().out
    assert "float32 products" in text and "built in" in text and "kept in" in text


def test_an_unknown_backend_gets_rules_for_every_backend_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_jax.ir._jax.backend_platform", lambda: "abacus")
    target = get_target()
    assert target.platform == "abacus" and target.name == "abacus"
