"""Observers of a pipeline run: in which order they are told, what they write, what they find."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.ir import to_callable
from lepton_jax.ir.graph import Graph
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.rewrite import (
    CheckStructure,
    Dump,
    Instrument,
    Pass,
    PassContext,
    PassError,
    PassManager,
    PassWarning,
    Pipeline,
    register,
    unregister,
)
from lepton_jax.rewrite.instruments import diff_page
from lepton_jax.targets import get_target


@dataclass(frozen=True)
class Renames(Pass):
    """Turns sines into cosines: a change that keeps the graph sound."""

    name: ClassVar[str] = "renames"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Only the names in the text are of interest here."""
        for node in graph.walk():
            if node.op == "sin" and ctx.fire("rename", node):
                node.op = "sine"
                graph.touch()


@dataclass(frozen=True)
class Breaks(Pass):
    """Lets a node read a value that comes later."""

    name: ClassVar[str] = "breaks"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """The last node's result becomes the first node's operand."""
        first, *_, last = graph
        if ctx.fire("break", first):
            first.set_operand(0, last.results[0])


@pytest.fixture(autouse=True)
def passes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LEPTON_REPRO_DIR", str(tmp_path_factory.mktemp("reproducers")))
    for cls in (Renames, Breaks):
        register(cls)
    yield
    for cls in (Renames, Breaks):
        unregister(cls.name)


def program() -> Any:
    def f(x: Any) -> Any:
        jnp.tan(x)
        return jnp.sin(x) + 1

    return jax.make_jaxpr(f)(jnp.float32(1.0))


BEFORE = from_jaxpr(program()).to_text()


def run(pipeline: str, *instruments: Instrument, strict: bool = True) -> Graph:
    manager = PassManager(Pipeline.parse(pipeline), get_target("cpu"), strict=strict, instruments=instruments)
    return manager.run(program())[0]


class Log(Instrument):
    """Remembers what it is told."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name = name
        self.events = events

    def before_pipeline(self, graph: Graph) -> None:
        self.events.append(f"{self.name}: pipeline, {graph.num_nodes()} nodes")

    def before_pass(self, step: Pass, graph: Graph) -> None:
        self.events.append(f"{self.name}: before {step}, {graph.num_nodes()} nodes")

    def after_pass(self, step: Pass, graph: Graph, changed: bool) -> None:
        self.events.append(f"{self.name}: after {step}, {graph.num_nodes()} nodes, {changed}")


def test_the_order_of_events() -> None:
    events: list[str] = []
    run("cse,dce,fixpoint(inline{limit=3})", Log("a", events), Log("b", events))
    assert events == [
        "a: pipeline, 3 nodes",
        "b: pipeline, 3 nodes",
        "a: before cse, 3 nodes",
        "b: before cse, 3 nodes",
        "a: after cse, 3 nodes, False",
        "b: after cse, 3 nodes, False",
        "a: before dce, 3 nodes",
        "b: before dce, 3 nodes",
        "a: after dce, 2 nodes, True",
        "b: after dce, 2 nodes, True",
        "a: before inline{limit=3}, 2 nodes",
        "b: before inline{limit=3}, 2 nodes",
        "a: after inline{limit=3}, 2 nodes, False",
        "b: after inline{limit=3}, 2 nodes, False",
    ]


def test_an_instrument_may_leave_everything_out() -> None:
    assert run("dce", Instrument()).num_nodes() == 2


# Dumps


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def test_dump_on_change(tmp_path: Path) -> None:
    run("cse,dce,cse,renames", Dump(tmp_path / "made" / "for it"))
    written = files(tmp_path / "made" / "for it")
    assert list(written) == ["000-imported.txt", "001-after-dce.txt", "002-after-renames.txt"]
    assert written["000-imported.txt"] == BEFORE + "\n"
    assert "tan" in BEFORE and "tan" not in written["001-after-dce.txt"]
    assert "sin[" in written["001-after-dce.txt"] and "sine[" in written["002-after-renames.txt"]


def test_dump_after_every_pass(tmp_path: Path) -> None:
    run("cse,dce,inline", Dump(tmp_path, "after"))
    written = files(tmp_path)
    assert list(written) == [
        "000-imported.txt",
        "001-after-cse.txt",
        "002-after-dce.txt",
        "003-after-inline.txt",
    ]
    assert written["001-after-cse.txt"] == written["000-imported.txt"]
    assert written["003-after-inline.txt"] == written["002-after-dce.txt"] != written["001-after-cse.txt"]


def test_dump_before_every_pass(tmp_path: Path) -> None:
    run("cse,dce,inline", Dump(tmp_path, "before"))
    written = files(tmp_path)
    assert list(written) == [
        "000-imported.txt",
        "001-before-cse.txt",
        "002-before-dce.txt",
        "003-before-inline.txt",
    ]
    assert written["002-before-dce.txt"] == BEFORE + "\n"
    assert "tan" not in written["003-before-inline.txt"]


@pytest.mark.parametrize("when", ["before", "after", "change"])
def test_a_page_shows_what_each_pass_changed(when: Any, tmp_path: Path) -> None:
    run("cse,dce,renames", Dump(tmp_path, when, diff=True))
    pages = {name: text for name, text in files(tmp_path).items() if name.endswith(".html")}
    assert [name.split("-")[1] for name in pages] == ["dce.html", "renames.html"]
    dce, renames = pages.values()
    assert "<h1>dce</h1>" in dce and "tan" in dce and "diff_sub" in dce
    assert (
        "<h1>renames</h1>" in renames
        and '<span class="diff_add">e</span>' in renames
        and "tan" not in renames
    )
    if when != "before":
        assert (
            [name.split("-")[0] for name in pages] == ["001", "002"] if when == "change" else ["002", "003"]
        )


def test_the_page_is_whole_and_escapes_what_it_shows() -> None:
    page = diff_page("fold{limit=<9>}", "%1 = jit[name='<lambda>'] %0", "%1 = sin %0")
    assert page.startswith("<!doctype html>") and page.endswith("</html>")
    assert "fold{limit=&lt;9&gt;}" in page and "&lt;lambda&gt;" in page
    assert "<lambda>" not in page and "src=" not in page and "http" not in page


def test_dump_says_when_it_can_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="when is before, after or change; got 'later'"):
        Dump(tmp_path, "later")  # type: ignore[arg-type]


def test_dump_goes_on_after_a_pass_that_fails(tmp_path: Path) -> None:
    with pytest.warns(PassWarning, match="breaks"):
        run("dce,breaks,renames", CheckStructure(), Dump(tmp_path), strict=False)
    assert list(files(tmp_path)) == [
        "000-imported.txt",
        "001-after-dce.txt",
        "002-imported.txt",
        "003-after-dce.txt",
        "004-after-renames.txt",
    ]


# Structure


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    with pytest.raises(
        PassError, match=r"pass breaks failed: GraphError: .*comes later.*Reproducer: .*\.py"
    ) as caught:
        run("dce,breaks,cse", CheckStructure())
    assert type(caught.value.__cause__).__name__ == "GraphError"


def test_a_pass_that_breaks_the_graph_is_skipped() -> None:
    with pytest.warns(PassWarning, match=r"skipped pass breaks failed: GraphError") as caught:
        graph = run("breaks,dce", CheckStructure(), strict=False)
    assert len(caught) == 1
    assert [node.op for node in graph] == ["sin", "add"]
    np.testing.assert_allclose(to_callable(graph)(2.0)[0], np.sin(2.0) + 1, rtol=1e-6)


def test_what_has_not_changed_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Graph] = []
    monkeypatch.setattr(importlib.import_module("lepton_jax.rewrite.instruments"), "check", checked.append)
    run("cse,dce,inline", CheckStructure())
    assert len(checked) == 1
