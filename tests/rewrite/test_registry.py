"""Which passes there are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import (
    PRESETS,
    Pass,
    PassContext,
    PipelineError,
    RegistryError,
    get_pass,
    pass_names,
    register,
    registry,
    unregister,
)
from lepton_jax.rewrite.registry import origin_of


@dataclass(frozen=True)
class Mine(Pass):
    """A pass of the tests."""

    name: ClassVar[str] = "mine"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Do nothing."""


def test_register_and_unregister() -> None:
    assert "mine" not in pass_names()
    assert register(Mine) is Mine
    assert register(Mine) is Mine
    assert "mine" in pass_names() and get_pass("mine") is Mine and origin_of("mine") == "registered"
    unregister("mine")
    assert "mine" not in pass_names()
    unregister("mine")


def test_names_are_unique() -> None:
    @dataclass(frozen=True)
    class Other(Mine):
        """Another pass of that name."""

    @dataclass(frozen=True)
    class Cse(Mine):
        """A pass with the name of one that is installed."""

        name: ClassVar[str] = "cse"

    register(Mine)
    try:
        with pytest.raises(RegistryError, match="there is a pass named 'mine' already"):
            register(Other)
        with pytest.raises(RegistryError, match="there is a pass named 'cse' already"):
            register(Cse)
    finally:
        unregister("mine")


def test_names_that_no_pipeline_could_hold() -> None:
    for bad in ("two words", "", "7up", "-minus", "fixpoint", *PRESETS):
        cls = type("Bad", (Mine,), {"name": bad})
        with pytest.raises(RegistryError, match=f"a pass cannot be named {bad!r}"):
            register(cls)


def test_what_is_no_pass() -> None:
    nameless = type("Nameless", (Pass,), {})
    for wrong in (int, nameless, Mine()):
        with pytest.raises(RegistryError, match="is not a Pass with a name"):
            register(wrong)  # type: ignore[arg-type]


def test_a_declared_pass_may_register_itself_too() -> None:
    cls = get_pass("cse")
    try:
        assert register(cls) is cls and get_pass("cse") is cls
    finally:
        unregister("cse")
    assert get_pass("cse") is cls


def test_installed_passes_load_and_say_what_they_are() -> None:
    for name in pass_names():
        cls = get_pass(name)
        assert issubclass(cls, Pass) and cls.name == name and cls.__doc__
        assert origin_of(name) == "lepton-jax", name


def test_unknown_pass() -> None:
    with pytest.raises(
        PipelineError, match=r"there is no pass 'nothing'; the passes are: .*algebra, .*movement"
    ):
        get_pass("nothing")


@pytest.mark.parametrize(
    ("entries", "name", "message"),
    [
        ({"a": ["math:sqrt"]}, "a", r"entry point 'a' \(math:sqrt\) is not a Pass"),
        (
            {"b": ["lepton_jax.passes.simplify.cse:CommonSubexpressions"]},
            "b",
            r"'b' .* is a pass named 'cse'",
        ),
        (
            {"d": ["no_such_module:Pass"]},
            "d",
            r"'d' \(no_such_module:Pass\) cannot be loaded: ModuleNotFoundError",
        ),
        ({"e": ["math:no_such_name"]}, "e", r"'e' \(math:no_such_name\) cannot be loaded: AttributeError"),
        ({"c": ["math:sin", "math:cos"]}, "c", r"two packages declare a pass 'c': math:sin and math:cos"),
    ],
)
def test_bad_entry_points(
    entries: dict[str, list[str]], name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [EntryPoint(key, value, registry.GROUP) for key, values in entries.items() for value in values]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    registry._declared.cache_clear()
    registry._load.cache_clear()
    try:
        with pytest.raises(RegistryError, match=message):
            get_pass(name)
    finally:
        monkeypatch.undo()
        registry._declared.cache_clear()
        registry._load.cache_clear()
