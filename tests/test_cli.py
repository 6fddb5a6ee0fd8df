"""The command `lepton`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lepton_jax.cli import main
from lepton_jax.rewrite import pass_names


def test_passes_lists_every_pass_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    out = capsys.readouterr().out
    for name in (*pass_names(), "cleanup", "default", "max"):
        assert f"  {name} " in out
    assert "limit=30" in out


@pytest.mark.parametrize("name", ["algebra", "movement"])
def test_rules_says_what_each_rule_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", name]) == 0
    out = capsys.readouterr().out
    assert "(exact; cpu, gpu, tpu" in out
    assert "→" in out
    assert ".py:" in out


def test_rules_of_a_pass_without_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "dce"]) == 0
    assert "not made of rules" in capsys.readouterr().out


def test_unknown_commands_and_passes() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["improve"])
    assert stop.value.code == 2
    with pytest.raises(ValueError, match=r"there is no pass 'nothing'; the passes are: .*algebra"):
        main(["rules", "nothing"])


def test_help_is_quick() -> None:
    """Asking for help does not import what only the demo needs."""
    code = (
        "import sys; from lepton_jax.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'sklearn' not in sys.modules and 'flax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and "bisect" in done.stdout and "fuzz" in done.stdout
