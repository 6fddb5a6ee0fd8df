"""A benchmark made of cases: modules of one package, each with `measure(quick) -> list[Row]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from benchmarks._common import Row, table
from lepton_jax.targets import processor


@dataclass(frozen=True)
class Suite:
    """A command that runs cases and prints their tables.

    Attributes:
        title: of the page that it writes.
        command: as a user types it.
        about: what it says of itself.
        package: where the cases are.
        order: the names of the cases, in the order in which they run.
    """

    title: str
    command: str
    about: str
    package: ModuleType
    order: tuple[str, ...]

    def cases(self) -> list[str]:
        """The names of the cases that are there, in the order in which they run."""
        there = {module.name for module in pkgutil.iter_modules(self.package.__path__)}
        return [name for name in self.order if name in there]

    def measure(self, quick: bool, name: str) -> list[Row]:
        """The rows of a case."""
        case: Any = importlib.import_module(f"{self.package.__name__}.{name}")
        rows: list[Row] = case.measure(quick)
        return rows

    def parser(self) -> argparse.ArgumentParser:
        """The options that all such commands have."""
        parser = argparse.ArgumentParser(
            description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true", help="small sizes, for tests")
        parser.add_argument("--only", choices=self.cases(), help="the case to run; all, if it is left out")
        parser.add_argument("--json", type=Path, help="write the figures to this file too")
        parser.add_argument("--markdown", type=Path, help="write the tables to this page too")
        return parser

    def run(
        self,
        options: argparse.Namespace,
        chosen: Iterable[str] | None = None,
        measure: Callable[[bool, str], list[Row]] | None = None,
        added: str = "",
    ) -> None:
        """Run the cases, print the tables, and write what is asked for.

        Args:
            chosen: the cases; those that the options say, if None.
            measure: what runs a case; `Suite.measure` if None.
            added: options of the command beside those that every such command has.
        """
        if chosen is None:
            chosen = [options.only] if options.only else self.cases()
        print(f"{setting()}\n")
        found: dict[str, list[Row]] = {}
        for name in chosen:
            print(f"## {name}\n", flush=True)
            found[name] = (measure or self.measure)(options.quick, name)
            print(f"{table(found[name])}\n", flush=True)
            jax.clear_caches()
        if options.markdown is not None:
            options.markdown.write_text(self.page(found, added), encoding="utf-8")
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")

    def page(self, found: dict[str, list[Row]], added: str = "") -> str:
        """The tables as a page of the documentation."""
        lines = [f"# {self.title}", "", f"Written by `{self.command}{added}`, {setting()}.", ""]
        for name, rows in found.items():
            if rows:
                lines += [f"## {name}", "", table(rows), ""]
        return "\n".join(lines)


def setting() -> str:
    """Versions and machine, in a line."""
    return f"jax {jax.__version__}, {jax.default_backend()}, {processor.model()}, {os.cpu_count()} cores"
