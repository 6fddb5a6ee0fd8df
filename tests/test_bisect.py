from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax._bisect import BisectError, add_arguments, bisect, bisect_command, close_to
from lepton_jax._difference import difference
from lepton_jax.ir import trace
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import Pass, PassContext, register, rewrite, run_rules, unregister
from lepton_jax.rewrite.rule import Outcome, node_rule

X = np.linspace(0.5, 2, 6, dtype=np.float32)


def cos_instead(x: Any) -> Any:
    return jnp.cos(x)


@node_rule("neg")
def neg_neg(node: Any, ctx: PassContext) -> Outcome:
    """-(-x) → x, which is right."""
    inner = node.operands[0].node
    return inner.operands[0] if inner is not None and inner.op == "neg" else None


@node_rule("sin")
def sin_to_cos(node: Any, ctx: PassContext) -> Outcome:
    """sin(x) → cos(x) where x comes from exp, which is wrong."""
    inner = node.operands[0].node
    return rewrite(cos_instead, *node.operands) if inner is not None and inner.op == "exp" else None


@dataclass(frozen=True)
class Wrong(Pass):
    name: ClassVar[str] = "wrong-in-tests"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        run_rules(graph, [neg_neg, sin_to_cos], ctx)


@dataclass(frozen=True)
class Breaks(Pass):
    """Goes right twice, then raises."""

    name: ClassVar[str] = "breaks-in-tests"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for i, node in enumerate(graph.walk()):
            if ctx.fire("count", node) and i == 2:
                raise ArithmeticError("on the third")


@pytest.fixture(autouse=True)
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LEPTON_REPRO_DIR", str(tmp_path / "reproducers"))
    register(Wrong)
    register(Breaks)
    yield tmp_path / "reproducers"
    unregister(Wrong.name)
    unregister(Breaks.name)


def long_chain(x: Any) -> Any:
    for _ in range(20):
        x = jnp.negative(-x) + 1.0
    x = jnp.sin(jnp.exp(x / 30))
    for _ in range(20):
        x = jnp.negative(-x) * 2.0
    return {"out": x}


def test_it_finds_the_one_wrong_application_among_many() -> None:
    asked = 0
    same = close_to(long_chain, (X,), 1e-4)

    def check(optimised: Any) -> bool:
        nonlocal asked
        asked += 1
        return same(optimised)

    culprit = bisect(long_chain, X, check=check, passes="cse,wrong-in-tests,dce")
    assert (culprit.pass_name, culprit.rule, culprit.op) == ("wrong-in-tests", "sin-to-cos", "sin")
    assert culprit.total >= 41
    assert asked <= 9
    assert "test_bisect.py" in culprit.where
    changed = [line for line in culprit.diff.splitlines()[2:] if line[0] in "+-"]
    assert [line[0] + line.split(" = ")[1].split("[")[0] for line in changed] == CHANGED
    assert str(culprit).startswith(
        f"application {culprit.number} of {culprit.total} breaks the check: rule sin-to-cos"
    )


CHANGED = ["-sin", "-neg %23", "+cos", "+neg %new1"]


def test_the_check_may_look_at_gradients() -> None:
    def fun(x: Any) -> Any:
        return jnp.sin(jnp.exp(jnp.negative(-x))).sum()

    want = jax.grad(fun)(X)
    culprit = bisect(
        fun, X, check=lambda f: bool(jnp.allclose(jax.grad(f)(X), want, atol=1e-4)), passes="wrong-in-tests"
    )
    assert culprit.rule == "sin-to-cos"


def test_inside_regions() -> None:
    def fun(x: Any) -> Any:
        return jax.lax.scan(lambda c, r: (jnp.sin(jnp.exp(jnp.negative(-c))) * r, jnp.negative(-r)), x[0], x)

    culprit = bisect(fun, X, check=close_to(fun, (X,), 1e-4), passes="wrong-in-tests")
    assert culprit.rule == "sin-to-cos"
    assert "region body" in culprit.diff or "cos" in culprit.diff


def test_a_pass_that_raises_is_found_and_writes_no_files(passes: Path) -> None:
    def fun(x: Any) -> Any:
        return jnp.sin(jnp.cos(jnp.tan(x))) + 1

    culprit = bisect(fun, X, check=close_to(fun, (X,), 1e-4), passes="breaks-in-tests")
    assert (culprit.pass_name, culprit.number, culprit.total) == ("breaks-in-tests", 3, 3)
    assert "ArithmeticError: on the third" in culprit.diff
    assert not passes.exists()


def test_nothing_to_find() -> None:
    with pytest.raises(BisectError, match="the function itself fails the check"):
        bisect(jnp.sin, X, check=lambda f: False, passes="wrong-in-tests")
    with pytest.raises(BisectError, match="the check passes with all 1 applications of 'wrong-in-tests'"):
        bisect(lambda x: jnp.negative(-x), X, check=lambda f: True, passes="wrong-in-tests")
    with pytest.raises(BisectError, match="all 0 applications"):
        bisect(jnp.tan, X, check=lambda f: True, passes="wrong-in-tests")


def test_an_error_of_the_check_on_the_plain_function_is_shown() -> None:
    def check(f: Any) -> bool:
        raise LookupError("the check is broken")

    with pytest.raises(LookupError, match="the check is broken"):
        bisect(jnp.sin, X, check=check, passes="wrong-in-tests")


MODULE = """
import jax.numpy as jnp

def wrong(x, y):
    return jnp.sin(jnp.exp(-(-x))) + y

def right(x, y):
    return x + y

def make_args():
    return jnp.ones(3), 2.0

def tolerant(f):
    return bool((f(*make_args()) > 1).all())
"""


def command(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "to_bisect.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    options = ["--args", "to_bisect:make_args", "--passes", "wrong-in-tests"]
    assert bisect_command(command("to_bisect:wrong", *options)) == 0
    shown = capsys.readouterr().out
    assert "rule sin-to-cos of pass wrong-in-tests" in shown
    assert "to_bisect.py:5" in shown
    assert "+  %new1: f32[3] = cos" in shown
    assert bisect_command(command("to_bisect:right", *options)) == 1
    assert "the check passes with all 0 applications" in capsys.readouterr().err
    assert bisect_command(command("to_bisect:wrong", *options, "--check", "to_bisect:tolerant")) == 1
    assert "the check passes with all 2 applications" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "expected module:function, got 'wrong'"),
        ("json:nothing", "json has no nothing"),
        ("json:__name__", "json:__name__ is not a function"),
        ("no_such_module_anywhere:f", "No module named 'no_such_module_anywhere'"),
    ],
)
def test_the_command_names_mistakes(
    name: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert bisect_command(command(name, "--args", "json:loads")) == 1
    assert message in capsys.readouterr().err


def test_close_to_compares_every_leaf() -> None:
    def fun(x: Any) -> Any:
        return {"a": x * jnp.inf, "b": (x > 1, jax.random.key(0)), "c": x.astype(jnp.bfloat16)}

    check = close_to(fun, (X,), 1e-4)
    assert check(fun)
    assert check(lambda x: {**fun(x), "c": (x * 1.001).astype(jnp.bfloat16)})
    assert not check(lambda x: {**fun(x), "c": (x * 1.1).astype(jnp.bfloat16)})
    assert not check(lambda x: {**fun(x), "b": (x >= 0.8, jax.random.key(0))})
    assert not check(lambda x: {**fun(x), "b": (x > 1, jax.random.key(1))})
    assert not check(lambda x: {**fun(x), "a": x})


def test_a_difference_keeps_the_names_of_what_did_not_change() -> None:
    def before(x: Any) -> Any:
        y = jax.lax.cond(x[0] > 0, lambda a: jnp.sin(jnp.negative(-a)), lambda a: jnp.tan(jnp.sin(a)), x)
        return jnp.exp(y) + x

    def after(x: Any) -> Any:
        y = jax.lax.cond(x[0] > 0, jnp.sin, lambda a: jnp.tan(jnp.sin(a)), x)
        return jnp.exp(y) + x * 2

    after.__name__ = "before"
    found = difference(trace(before, X).to_text(), trace(after, X).to_text(), context=0)
    changed = [line for line in found.splitlines() if line[0] in "+-" and line[:3] not in ("---", "+++")]
    assert changed == DIFFERENCE
    assert difference(trace(before, X).to_text(), trace(before, X).to_text()) == ""


DIFFERENCE = [
    "-      %1: f32[6] = neg %0",
    "-      %2: f32[6] = neg %1",
    "-      %3: f32[6] = sin[accuracy=None] %2",
    "+      %3: f32[6] = sin[accuracy=None] %0",
    "-  %7: f32[6] = add %6 %0",
    "+  %new1: f32[6] = mul %0 2.0",
    "+  %7: f32[6] = add %6 %new1",
]
