"""The manager: passes in order, fixpoints, gates, reports, and what happens when a pass fails."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.ir import to_callable
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.rewrite import (
    Pass,
    PassContext,
    PassError,
    PassManager,
    PassWarning,
    Pipeline,
    Report,
    RulePass,
    erase_dead,
    node_rule,
    register,
    unregister,
)
from lepton_jax.rewrite.context import Level
from lepton_jax.targets import get_target

RUNS: list[str] = []
"""The passes of this file that ran, in order."""


@dataclass(frozen=True)
class Fails(Pass):
    """Fails, having half changed the program."""

    name: ClassVar[str] = "fails"
    why: str = "why-not"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Drop every negation, then raise."""
        for node in graph.walk():
            if node.op == "neg" and ctx.fire("drop-negation", node):
                node.result.replace_uses(node.operands[0])
        raise RuntimeError(self.why)


@dataclass(frozen=True)
class AlsoFails(Pass):
    """Fails at once."""

    name: ClassVar[str] = "also-fails"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Raise."""
        raise ZeroDivisionError("nothing to divide")


@dataclass(frozen=True)
class Peels(Pass):
    """Takes one of two negations in a row away with each run."""

    name: ClassVar[str] = "peels"
    idempotent: ClassVar[bool] = False

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Look at the outermost pair only."""
        RUNS.append("peels")
        for node in reversed(graph):
            inner = node.operands[0].node if node.op == "neg" else None
            if inner is not None and inner.op == "neg":
                if ctx.fire("peel", node):
                    node.result.replace_uses(inner.operands[0])
                    erase_dead(node)
                return


@dataclass(frozen=True)
class Watches(Pass):
    """Changes nothing."""

    name: ClassVar[str] = "watches"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Remember that it ran."""
        RUNS.append("watches")


@node_rule("sin", level="exact")
def exact_rule(node: Node, ctx: PassContext) -> Any:
    """sin(x) → x, for the sake of the test"""
    return node.operands[0]


@node_rule("cos", level="reassociate")
def reassociating_rule(node: Node, ctx: PassContext) -> Any:
    """cos(x) → x, for the sake of the test"""
    return node.operands[0]


@node_rule("tan", guard=lambda node, ctx: "tangents are dear to us")
def guarded_rule(node: Node, ctx: PassContext) -> Any:
    """Never fires"""
    return node.operands[0]


@dataclass(frozen=True)
class Ruled(RulePass):
    """Three rules of different kinds."""

    name: ClassVar[str] = "ruled"
    rules = (exact_rule, reassociating_rule, guarded_rule)


PASSES = (Fails, AlsoFails, Peels, Watches, Ruled)


@pytest.fixture(autouse=True)
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LEPTON_REPRO_DIR", str(tmp_path))
    RUNS.clear()
    for cls in PASSES:
        register(cls)
    yield
    for cls in PASSES:
        unregister(cls.name)


def negated(x: Any) -> Any:
    jnp.exp(x)
    for _ in range(5):
        x = -x
    return x


def run(pipeline: str, fun: Any = negated, **options: Any) -> tuple[Graph, Report]:
    manager = PassManager(Pipeline.parse(pipeline), get_target("cpu"), **options)
    return manager.run(jax.make_jaxpr(fun)(jnp.float32(2.0)), "negated")


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph]


# Reports


def test_the_report_says_what_was_done() -> None:
    graph, report = run("cse,fixpoint(peels),dce")
    assert graph.name == "negated" and ops(graph) == ["neg"]
    assert (report.equations_before, report.equations_after) == (6, 1)
    assert report.pipeline == "cse,fixpoint(peels),dce" and report.target == "cpu"
    assert [(p.name, p.applied, p.changed) for p in report.passes] == [
        ("cse", {}, False),
        ("peels", {"peel": 1}, True),
        ("peels", {"peel": 1}, True),
        ("peels", {}, False),
        ("dce", {"dead-node": 1}, True),
    ]
    assert report.rules == {"peel": 2, "dead-node": 1} and report.changed
    assert all(p.seconds >= 0 for p in report.passes)
    assert report.pass_seconds >= sum(p.seconds for p in report.passes)
    assert [(a.rule, a.op) for a in report.applications][:2] == [("peel", "neg")] * 2
    assert all("test_manager.py" in a.where for a in report.applications)
    assert not report.misses and not report.skipped


def test_the_report_can_be_read() -> None:
    text = str(run("cse,fixpoint(peels),dce")[1])
    first, second, *rest = text.splitlines()
    assert re.fullmatch(r"6 equations became 1 \(trace \d+ ms, passes \d+ ms, target cpu\)", first)
    assert second == "pipeline: cse,fixpoint(peels),dce"
    assert [line.split()[0] for line in rest] == ["cse", "peels", "dce"]
    assert rest[0].endswith("-") and rest[1].endswith("peel ×2")


def test_an_empty_pipeline_leaves_the_program_verbatim() -> None:
    graph, report = run("none")
    assert graph.is_pristine() and not report.changed and report.passes == []
    assert report.equations_before == report.equations_after == 6


def test_near_misses_are_collected_for_who_asks() -> None:
    assert run("ruled", jnp.tan)[1].misses == []
    (miss,) = run("ruled", jnp.tan, explain=True)[1].misses
    assert (miss.rule, miss.op, miss.reason) == ("guarded-rule", "tan", "tangents are dear to us")


@pytest.mark.parametrize(
    ("level", "fired"), [("exact", {"exact-rule"}), ("reassociate", {"exact-rule", "reassociating-rule"})]
)
def test_the_level_reaches_the_rules(level: Level, fired: set[str]) -> None:
    def f(x: Any) -> Any:
        return jnp.sin(jnp.cos(x))

    assert set(run("ruled", f, level=level)[1].rules) == fired
    assert set(run("ruled{level=exact}", f, level=level)[1].rules) == {"exact-rule"}


# Fixpoints


def test_a_fixpoint_stops_when_nothing_changes() -> None:
    graph, _ = run("fixpoint(peels,watches)")
    assert RUNS == ["peels", "watches", "peels", "watches", "peels"]  # nothing new for the last to see
    assert ops(graph) == ["exp", "neg"]


def test_a_fixpoint_stops_after_its_rounds() -> None:
    run("fixpoint{rounds=1}(peels)")
    assert RUNS == ["peels"]
    RUNS.clear()
    run("fixpoint{rounds=2}(fixpoint{rounds=1}(peels))")
    assert RUNS == ["peels", "peels"]


def test_a_pass_is_not_run_again_on_what_it_left() -> None:
    _, report = run("watches,watches,dce,watches,watches")
    assert RUNS == ["watches", "watches"]
    assert [record.name for record in report.passes] == ["watches", "dce", "watches"]


def test_a_pass_with_other_options_is_another_pass() -> None:
    _, report = run("inline,inline{limit=3},inline")
    assert [record.name for record in report.passes] == ["inline", "inline{limit=3}"]


def test_a_loop_that_vanishes_counts_as_a_change() -> None:
    def f(x: Any) -> Any:
        jax.lax.scan(lambda c, _: (c, None), x, length=3)
        jax.jit(lambda y: y)(x)
        return x

    _, report = run("fixpoint(dce,watches)", f)
    assert RUNS == ["watches"] and report.equations_after == 0


# Gates


def test_a_gate_is_asked_before_each_change() -> None:
    asked: list[tuple[int, str, str]] = []

    def gate(*question: Any) -> bool:
        asked.append(question)
        return True

    run("peels,dce,peels", gate=gate)
    assert asked == [
        (1, "peels", "peel"),
        (2, "dce", "dead-node"),
        (3, "peels", "peel"),
    ]


@pytest.mark.parametrize("forbidden", [1, 2, 3, 4])
def test_a_gate_stops_single_applications(forbidden: int) -> None:
    graph, report = run("fixpoint(peels),dce", gate=lambda number, _pass, _rule: number != forbidden)
    assert sum(report.rules.values()) == len(report.applications)
    np.testing.assert_array_equal(to_callable(graph)(jnp.float32(2.0))[0], -2.0)


def test_a_gate_that_forbids_all_leaves_the_program_verbatim() -> None:
    graph, report = run("max", gate=lambda *_: False)
    assert graph.is_pristine() and not report.changed and report.applications == []


# Failures


def test_a_failing_pass_is_skipped_with_one_warning(tmp_path: Path) -> None:
    with pytest.warns(PassWarning) as caught:
        graph, report = run("peels,fails,dce")
    (warning,) = caught
    (file,) = tmp_path.glob("*.py")
    assert (
        str(warning.message) == f"Lepton skipped pass fails failed: RuntimeError: why-not. Reproducer: {file}"
    )
    assert report.skipped == [f"pass fails failed: RuntimeError: why-not (reproducer: {file})"]
    assert report.pipeline == "peels,dce" and f"skipped: {report.skipped[0]}" in str(report)
    assert ops(graph) == ["neg", "neg", "neg"]  # what it had half done is undone, the others' work stays
    np.testing.assert_array_equal(jax.jit(to_callable(graph))(jnp.float32(2.0))[0], -2.0)
    assert "PIPELINE = 'peels,fails,dce'" in file.read_text()


def test_every_failing_pass_has_its_own_warning() -> None:
    with pytest.warns(PassWarning) as caught:
        _, report = run("fails{why=first},also-fails,dce,fails{why=second}")
    assert [str(w.message).split(".")[0] for w in caught] == [
        "Lepton skipped pass fails{why=first} failed: RuntimeError: first",
        "Lepton skipped pass also-fails failed: ZeroDivisionError: nothing to divide",
    ]
    assert len(report.skipped) == 2 and report.pipeline == "dce"


def test_a_pass_that_fails_in_a_fixpoint() -> None:
    with pytest.warns(PassWarning) as caught:
        graph, report = run("fixpoint(peels,fixpoint(also-fails),fixpoint{rounds=2}(dce,also-fails))")
    assert len(caught) == 1
    assert report.pipeline == "fixpoint(peels,fixpoint{rounds=2}(dce))"
    assert ops(graph) == ["neg"]


def test_strict_raises(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            PassError, match=r"^pass fails\{why=because\} failed: RuntimeError: because\. "
        ) as caught:
            run("peels,fixpoint(fails{why=because}),dce", strict=True)
    (file,) = tmp_path.glob("*.py")
    assert str(caught.value).endswith(f"Reproducer: {file}")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_reproducer_that_cannot_be_written_does_not_hide_the_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(importlib.import_module("lepton_jax.rewrite.reproducer"), "write_reproducer", fail)
    with pytest.warns(PassWarning, match=r"why-not\. Reproducer: none \(OSError: no space left\)"):
        graph, _ = run("fails,dce")
    assert ops(graph) == ["neg"] * 5


def test_interrupts_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Watches, graph: Graph, ctx: PassContext) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watches, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("watches")


def test_the_users_program_runs_without_the_failing_pass() -> None:
    f = lepton.optimize(negated, "default,fails,dce", strict=False)
    with pytest.warns(PassWarning, match="pass fails failed") as caught:
        assert f(jnp.float32(2.0)) == -2.0
    assert f(jnp.float32(3.0)) == -3.0
    assert len(caught) == 1 and len(f.report.skipped) == 1


def test_the_environment_makes_failures_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_STRICT", "1")
    with pytest.raises(PassError, match="pass also-fails failed"):
        lepton.optimize(negated, "also-fails")(1.0)
    monkeypatch.setenv("LEPTON_STRICT", "0")
    with pytest.warns(PassWarning, match="pass also-fails failed"):
        assert lepton.optimize(lambda x: negated(x), "also-fails")(1.0) == -1.0
