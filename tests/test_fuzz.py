from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import fuzz
from lepton_jax.fuzz import arrays, idioms, regions, scalars
from lepton_jax.fuzz.check import Subject, check
from lepton_jax.fuzz.generator import Generator, Maker
from lepton_jax.fuzz.noise import differs, samples
from lepton_jax.fuzz.program import KEY, Block, Statement, make_args, recorded, thrice_the_cotangent
from lepton_jax.fuzz.run import script
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.inline import copy_into
from lepton_jax.rewrite import Pass, PassContext, register, rewrite, run_rules, unregister
from lepton_jax.rewrite.rule import Outcome, node_rule

F32 = fuzz.Type((3, 3), "float32")
MAKERS = [*scalars.MAKERS, *arrays.MAKERS, *idioms.MAKERS, *regions.MAKERS]


# Passes that are wrong, each in its own way


def difference(x: Any, y: Any) -> Any:
    return jnp.subtract(x, y)


@node_rule("add")
def add_to_sub(node: Node, ctx: PassContext) -> Outcome:
    """x + y → x - y"""
    return rewrite(difference, *node.operands)


@dataclass(frozen=True)
class Subtracts(Pass):
    name: ClassVar[str] = "subtracts"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        run_rules(graph, [add_to_sub], ctx)


@dataclass(frozen=True)
class ForgetsRules(Pass):
    name: ClassVar[str] = "forgets-rules"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph.walk()):
            if node.op == "custom_jvp_call" and node.graph is not None and ctx.fire("forget", node):
                outputs = copy_into(node.regions[0], node.operands, node.graph, node)
                for old, new in zip(node.results, outputs, strict=True):
                    old.replace_uses(new)
                node.graph.erase(node)


@dataclass(frozen=True)
class ForgetsEffects(Pass):
    name: ClassVar[str] = "forgets-effects"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph):
            if node.op == "io_callback" and ctx.fire("forget", node):
                graph.erase(node)


@dataclass(frozen=True)
class NeverDone(Pass):
    name: ClassVar[str] = "never-done"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph):
            if node.op == "sin" and ctx.fire("again", node):
                node.set_operand(
                    0, graph.insert(Node("neg", NEG, node.operands, [node.operands[0].aval], {}), node).result
                )


@dataclass(frozen=True)
class Raises(Pass):
    name: ClassVar[str] = "raises-on-sin"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        if any(node.op == "sin" for node in graph.walk()):
            raise ArithmeticError("a sine")


@dataclass(frozen=True)
class LeavesItBroken(Pass):
    name: ClassVar[str] = "leaves-it-broken"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(graph):
            if node.op == "sin" and node.prev is not None and ctx.fire("move", node):
                graph.move(node, next(iter(graph)))


def sums_reordered(x: Any) -> Any:
    return jnp.sum(x[::-1])


@node_rule("reduce_sum", level="reassociate")
def sum_turned(node: Node, ctx: PassContext) -> Outcome:
    """sum(x) → sum(reversed x), which is right but for rounding."""
    if node.rule is not None or node.operands[0].ndim != 1 or node.result.shape != ():
        return None
    return rewrite(sums_reordered, *node.operands)


@dataclass(frozen=True)
class Reorders(Pass):
    name: ClassVar[str] = "reorders"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        run_rules(graph, [sum_turned], ctx)


def doubled(x: Any, y: Any) -> Any:
    return jnp.dot(x, y) * 2


@node_rule("dot_general", must_pay=True)
def dot_to_more(node: Node, ctx: PassContext) -> Outcome:
    """x @ y → 2 (x @ y), which costs more"""
    return rewrite(doubled, *node.operands) if node.rule is None else None


@dataclass(frozen=True)
class NeverPays(Pass):
    name: ClassVar[str] = "never-pays"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        run_rules(graph, [dot_to_more], ctx)


WRONG: list[type[Pass]] = [
    NeverPays,
    Subtracts,
    ForgetsRules,
    ForgetsEffects,
    NeverDone,
    Raises,
    LeavesItBroken,
    Reorders,
]
NEG = jax.make_jaxpr(jnp.negative)(1.0).eqns[0].primitive


@pytest.fixture(autouse=True)
def wrong_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LEPTON_REPRO_DIR", str(tmp_path / "reproducers"))
    for cls in WRONG:
        register(cls)
    yield
    for cls in WRONG:
        unregister(cls.name)


def statement(text: str, *operands: str, name: str = "v", regions: tuple[Block, ...] = ()) -> Statement:
    return Statement((name,), (F32,), text, operands, regions)


def program(
    *statements: Statement, outputs: tuple[str, ...] = ("v",), types: Any = (F32, F32)
) -> fuzz.Program:
    inputs = tuple((f"a{i}", kind) for i, kind in enumerate(types))
    return fuzz.Program(Block("program", inputs, statements, outputs), seed=5)


# Generating


def test_a_seed_says_it_all() -> None:
    first, again, other = fuzz.generate(11), fuzz.generate(11), fuzz.generate(12)
    assert first.source() == again.source()
    assert first.source() != other.source()
    assert [np.shape(x) for x in make_args(first.types, 3)] == [kind.shape for kind in first.types]


@pytest.mark.parametrize("seed", range(100, 106))
def test_programs_run_under_plain_jit_and_by_hand(seed: int) -> None:
    made = fuzz.generate(seed, hostile=seed % 4 == 0)
    args = make_args(made.types, made.seed, made.hostile)
    results = jax.jit(made.function())(*args)
    shapes = jax.eval_shape(made.function(), *args)
    assert [(x.shape, x.dtype) for x in results] == [(x.shape, x.dtype) for x in shapes]
    assert made.size >= len(made.body.statements) > 0


@pytest.mark.parametrize("make", [make for make, _ in MAKERS], ids=lambda make: make.__name__)
def test_every_maker_makes_statements_that_jax_takes(make: Maker) -> None:
    generator = Generator(random.Random(1), 60, MAKERS)
    generator.quiet, generator.straight = False, make.__name__ != "while_loop"
    types = [fuzz.Type((2, 3), d) for d in ("float32", "bfloat16", "int32", "bool", "complex64", "uint8")]
    types += [fuzz.Type((2, 3, 4), "float32"), fuzz.Type((3, 3), "float32"), fuzz.Type((), "int32")]
    types += [fuzz.Type((), "bool"), fuzz.Type((), KEY)]
    inputs = [(f"x{i}", kind) for i, kind in enumerate(types)]
    generator.scope = list(inputs)
    for _ in range(8):
        generator.kind = make.__name__
        make(generator)
    made = tuple(generator.statements)
    assert any(s.kind == make.__name__ for s in made) or make in (scalars.repeated, arrays.chain)
    assert sum(generator.failed.values()) <= 3
    body = Block("program", tuple(inputs), made, tuple(name for s in made for name in s.results))
    whole = fuzz.Program(body, 0)
    assert jax.make_jaxpr(whole.function())(*make_args(whole.types, 0)) is not None


def test_what_the_programs_are_made_of() -> None:
    programs = [fuzz.generate(seed) for seed in range(40)]
    kinds = {s.kind for made in programs for s in made.body.walk()}
    assert kinds >= {
        "scan",
        "cond",
        "fori_loop",
        "jit",
        "checkpoint",
        "vmap",
        "neutral",
        "product",
        "indexed",
    }
    types = {kind.dtype for made in programs for kind in made.types}
    assert types >= {"float32", "bfloat16", "int32", "bool", "complex64", KEY}
    assert any(0 in kind.shape for made in programs for kind in made.types)
    assert any(made.has_effects for made in programs)


# Finding what is wrong

ADD = statement("{0} + {1}", "a0", "a1")
SIN = statement("jnp.sin({0})", "a0")
CUSTOM = Block("f", (("x", F32),), (statement("jnp.sin({0})", "x", name="y"),), ("y",))
FORGOTTEN = statement("twice_the_tangent({f0})({0})", "a0", regions=(CUSTOM,))
EFFECT = Statement((), (), "io_callback(record, None, 7, {0}, ordered=True)", ("a0",))


@pytest.mark.parametrize(
    ("made", "passes", "kind"),
    [
        (program(ADD), "subtracts", "value"),
        (program(FORGOTTEN), "forgets-rules", "gradient"),
        (program(EFFECT, SIN), "forgets-effects", "effects"),
        (program(SIN), "never-done", "value"),
        (program(statement("jnp.sin({0}) ** 2", "a0")), "never-done", "twice"),
        (program(SIN), "raises-on-sin", "error ArithmeticError"),
        (program(statement("jnp.sin(jnp.exp({0}))", "a0")), "leaves-it-broken", "error GraphError"),
    ],
)
def test_wrong_passes_are_found(made: fuzz.Program, passes: str, kind: str) -> None:
    failure = fuzz.check(made, passes)
    assert failure is not None
    assert failure.kind == kind
    assert fuzz.check(made, passes, only=kind) is not None
    assert fuzz.check(made, "none") is None


def test_vmap_alone_may_be_wrong() -> None:
    def fun(x: Any) -> Any:
        return (jnp.sin(x),)

    subject = Subject(fun, (F32,), seed=0)
    assert fuzz.check(subject, "none", only="vmap") is None
    assert fuzz.check(subject, "raises-on-sin", only="vmap") is not None


def test_rounding_is_no_failure_but_a_little_more_is() -> None:
    cancels = statement(
        "jnp.sum({0}.reshape(-1) * 1e6) + jnp.sum({0}) - jnp.sum({0}.reshape(-1)) * 1e6", "a0"
    )
    assert (
        fuzz.check(program(replace(cancels, types=(fuzz.Type((), "float32"),))), "reorders", only="value")
        is None
    )
    want = np.array([1.0, 2.0], np.float32)
    spread = [want * np.float32(1 + 1e-6), want * np.float32(1 - 1e-6)]
    assert not differs(want, want * np.float32(1 + 4e-6), spread, False)
    assert "2 of 2 elements differ; at [0] 1.0 became" in differs(
        want, want * np.float32(1.001), spread, False
    )


def test_differences() -> None:
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    odd = np.array([nan, inf, -inf, 1, 0], np.float32)
    assert not differs(odd, odd, None, True)
    assert not differs(odd, np.array([0, 0, 0, 1, -0.0], np.float32), None, False)
    assert "3 of 5" in differs(odd, np.array([0, 0, 0, 1, 0], np.float32), None, True)
    assert "at [3] 1.0 became nan" in differs(
        odd, np.array([nan, inf, -inf, nan, 0], np.float32), None, False
    )
    assert differs(np.array([1, 2]), np.array([1, 3]), None, False)
    assert not differs(np.array([1, 2]), np.array([1, 3]), [np.array([1, 3])], False)
    assert not differs(np.ones(2, np.float32), odd[:2], [odd[:2]], False)
    assert "became float16[2]" in differs(odd[:2], odd[:2].astype(np.float16), None, False)
    assert differs(np.array([1j]), np.array([1 + 1j]), None, False)


def test_noise_shows_what_is_ill_conditioned() -> None:
    def fun(x: Any, n: Any, k: Any) -> Any:
        def step(c: Any, r: Any) -> Any:
            return jnp.sin(c) + r, c

        run = jax.lax.scan(step, x[0], x)[0]
        loop = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 1.5), (0, x[0]))[1]
        branch = jax.lax.cond(n > 0, jnp.cos, jnp.sin, x[1])
        return run, loop, branch, (x + 1e4) - 1e4, n * 2, jax.random.bits(k), jnp.floor(x * 0 + 1)

    args = [np.linspace(0.1, 1, 3, dtype=np.float32), np.int32(2), jax.random.key(0)]
    closed = jax.make_jaxpr(fun)(*args)
    runs = samples(closed, args)
    spread = [np.ptp(np.stack(column).astype(np.float64), axis=0).max() for column in zip(*runs, strict=True)]
    assert all(0 < s < 1e-5 for s in spread[:3])
    assert 1e-3 < spread[3] < 1e-1
    assert spread[4:6] == [0, 0]
    assert spread[6] == 1


def test_constants_that_jax_drops_in_tracing_are_dropped_around_it_too() -> None:
    def fun(x: Any) -> tuple[Any, ...]:
        def inner(x: Any) -> Any:
            def g(v: Any) -> Any:
                jnp.sort(v[np.array([0])])  # nobody reads it, and only JAX can drop its indices from g
                return (jnp.sin(v),)

            return thrice_the_cotangent(g)(x)

        return tuple(jax.checkpoint(inner)(x))

    assert check(Subject(fun, (fuzz.Type((3,), "float32"),), 0), only="twice") is None


def test_what_plain_jax_cannot_run_is_invalid() -> None:
    with pytest.raises(fuzz.Invalid, match="ncompatible"):
        fuzz.check(program(statement("{0} + jnp.ones(7)", "a0")), "none")


def test_effects_are_recorded_in_order() -> None:
    made = program(EFFECT, replace(EFFECT, template=EFFECT.template.replace("7", "8")), SIN)
    _, effects = recorded(lambda: jax.jit(made.function())(*make_args(made.types, 0)))
    assert [tag for tag, _ in effects] == [7, 8]
    assert made.has_effects


# Making it small


def test_shrinking_keeps_what_matters() -> None:
    made = next(p for p in map(fuzz.generate, range(50, 200)) if "jnp.tanh(" in p.source() and p.size > 10)

    def fails(candidate: fuzz.Program) -> bool:
        try:
            text = str(jax.make_jaxpr(candidate.function())(*make_args(candidate.types, 0)))
        except Exception:
            return False
        return " tanh" in text

    small = fuzz.shrink(made, fails, seconds=40)
    assert fails(small)
    assert sum(s.kind != "constant" for s in small.body.walk()) <= 3
    assert small.size < made.size / 2


def test_a_found_failure_is_small_and_its_file_shows_it(tmp_path: Path) -> None:
    told: list[int] = []
    result = fuzz.run(
        2,
        77,
        passes="subtracts",
        out=tmp_path,
        size=12,
        shrink_seconds=20,
        on_program=lambda s, _: told.append(s),
    )
    assert told == [77, 78]
    assert not result.ok
    found = result.failures[0]
    assert found.failure.kind == "value"
    assert found.program.size <= 5
    assert found.file is not None
    assert f"seed {found.program.seed}: " in str(result)
    text = found.file.read_text()
    assert text.startswith("# Found by `lepton fuzz`. Run this file to see:\n# value: result 0: ")
    with pytest.raises(SystemExit, match="still fails: value"):
        exec(compile(text, str(found.file), "exec"), {"__name__": "__main__"})
    mended = text.replace('"subtracts"', '"none"')
    exec(compile(mended, str(found.file), "exec"), {"__name__": "__main__"})


def test_rewrites_that_do_not_pay_here_are_checked_too() -> None:
    made = program(statement("{0} @ {0}", "a0"))
    assert fuzz.check(made, "never-pays", only="value") is None
    failure = fuzz.check(made, "never-pays", only="value", regardless=True)
    assert failure is not None and failure.kind == "value"
    result = fuzz.run(1, 0, passes="never-pays", regardless=True, target="gpu", size=4)
    assert result.programs + result.invalid == 1


def test_a_file_says_how_the_failure_was_found() -> None:
    text = script(
        program(statement("{0} @ {0}", "a0")), fuzz.Failure("value", "x"), "cse", "exact", {"target": "gpu"}
    )
    assert '"cse", "exact", seed=' in text and "target='gpu'" in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    fuzz.add_arguments(parser)
    options = ["--seed", "3", "--size", "6", "--out", str(tmp_path / "none"), "--passes", "none"]
    assert fuzz.fuzz_command(parser.parse_args(["--count", "2", *options])) == 0
    assert capsys.readouterr().out.startswith("2 programs in ")
    assert not (tmp_path / "none").exists()
    assert fuzz.fuzz_command(parser.parse_args(["--count", "9", "--seconds", "0", *options])) == 0
    assert capsys.readouterr().out.startswith("0 programs in ")


@pytest.mark.parametrize("first", [1240])
def test_ten_random_programs(first: int) -> None:
    """The short run; `lepton fuzz` is the long one."""
    result = fuzz.run(10, first, size=12, shrink_seconds=5)
    assert result.ok, str(result) + "".join(f"\n{f.program.source()}\n{f.failure}" for f in result.failures)
    assert result.programs + result.invalid == 10
    assert result.invalid <= 1
