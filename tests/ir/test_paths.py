"""Names of arrays among the arguments, and patterns of them."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from lepton_jax.ir.paths import choose, leaf_paths, matches


class Pair(NamedTuple):
    left: int
    right: int


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("params", "params/dense/kernel", True),
        ("params/dense", "params/dense/kernel", True),
        ("par", "params/dense", False),
        ("params/*/kernel", "params/dense/kernel", True),
        ("params/*/kernel", "params/a/b/kernel", False),
        ("params/.../kernel", "params/a/b/kernel", True),
        ("params/.../kernel", "params/kernel", True),
        (".../kernel", "kernel", True),
        ("...", "x", True),
        ("layer_?", "layer_1/w", True),
        ("layer_?", "layer_12/w", False),
        ("layer_*", "layer_12/w", True),
        ("a.b", "axb", False),
        ("/params/", "params/x", True),
        ("w[0]", "w[0]", True),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


def test_leaves_are_named_by_their_way_through_the_tree() -> None:
    tree = {"b": [1, 2], "a": Pair(3, 4)}
    assert leaf_paths("p", tree) == ["p/a/left", "p/a/right", "p/b/0", "p/b/1"]
    assert leaf_paths("x", 1.0) == ["x"]
    assert leaf_paths("x", None) == []


def test_a_pattern_that_chooses_nothing_is_an_error_that_lists_what_there_is() -> None:
    paths = [f"params/layer_{i}" for i in range(20)]
    assert choose(["params/layer_1", "params/layer_1?"], paths, "params") == frozenset((1, *range(10, 20)))
    with pytest.raises(ValueError, match=r"params: 'param/layer_1' matches none.*layer_0.*and 8 more"):
        choose(["param/layer_1"], paths, "params")
    with pytest.raises(ValueError, match=r"there are none"):
        choose(["x"], [], "params")
