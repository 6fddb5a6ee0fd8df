"""Observers of a pipeline run: dumps, HTML diffs, structural checks."""

from __future__ import annotations

import difflib
import html
from pathlib import Path
from typing import Literal

from lepton_jax.ir.check import check
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite.base import Pass


class Instrument:
    """Is told before and after every pass. Subclass it and override what you need."""

    def before_pipeline(self, graph: Graph) -> None:
        """The graph as imported."""

    def before_pass(self, step: Pass, graph: Graph) -> None:
        """A pass is about to run."""

    def after_pass(self, step: Pass, graph: Graph, changed: bool) -> None:
        """A pass has run."""


class CheckStructure(Instrument):
    """Checks the graph's structure after every pass that changed it.

    Raises:
        GraphError: the pass left the graph broken.
    """

    def after_pass(self, step: Pass, graph: Graph, changed: bool) -> None:
        """Check what the pass left."""
        if changed:
            check(graph)


When = Literal["before", "after", "change"]


class Dump(Instrument):
    """Writes the graph's text to files, one for each pass, named in order.

    Args:
        folder: where; it is made if need be.
        when: `before` each pass, `after` each pass, or only after a `change`.
        diff: write an HTML page that shows what each pass changed, side by side.
    """

    def __init__(self, folder: str | Path, when: When = "change", diff: bool = False) -> None:
        if when not in ("before", "after", "change"):
            raise ValueError(f"when is before, after or change; got {when!r}")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.when = when
        self.diff = diff
        self.count = 0
        self.last = ""

    def before_pipeline(self, graph: Graph) -> None:
        """Write the program as imported."""
        self.last = graph.to_text()
        self.write("imported", self.last)

    def before_pass(self, step: Pass, graph: Graph) -> None:
        """Write the graph if asked to do so before passes."""
        if self.when == "before":
            self.write(f"before-{step.name}", graph.to_text())

    def after_pass(self, step: Pass, graph: Graph, changed: bool) -> None:
        """Write the graph if asked to do so after passes, and the page of differences."""
        if not changed and self.when != "after":
            return
        text = graph.to_text() if changed else self.last
        if self.diff and changed:
            self.path(step.name, "html").write_text(diff_page(str(step), self.last, text), encoding="utf-8")
        if self.when != "before":
            self.write(f"after-{step.name}", text)
        self.last = text

    def write(self, name: str, text: str) -> None:
        """Write one numbered text file."""
        self.path(name, "txt").write_text(text + "\n", encoding="utf-8")
        self.count += 1

    def path(self, name: str, ending: str) -> Path:
        """The file that is next in order."""
        return self.folder / f"{self.count:03d}-{name}.{ending}"


def diff_page(title: str, before: str, after: str) -> str:
    """A self-contained HTML page that shows two graphs side by side, changes marked."""
    table = difflib.HtmlDiff(wrapcolumn=90).make_table(
        before.splitlines(), after.splitlines(), "before", "after", context=True, numlines=2
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title>"
        "<meta name='viewport' content='width=device-width'><style>"
        ":root{color-scheme:light dark}body{font:14px system-ui;margin:2rem}"
        "table{border-collapse:collapse;font:12px ui-monospace,monospace}td{padding:0 .5em}"
        ".diff_add{background:light-dark(#cfc,#264d26)}.diff_chg{background:light-dark(#ffc,#4d4d1f)}"
        ".diff_sub{background:light-dark(#fcc,#4d2626)}.diff_next{display:none}"
        f"</style><h1>{html.escape(title)}</h1>{table}</html>"
    )
