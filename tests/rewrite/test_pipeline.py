"""The text form of pipelines: it round-trips, and what is wrong is said with what there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import (
    PRESETS,
    Pass,
    PassContext,
    Pipeline,
    PipelineError,
    pass_names,
    register,
    unregister,
)
from lepton_jax.rewrite.pipeline import Fixpoint


@dataclass(frozen=True)
class Everything(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "everything"
    flag: bool = False
    count: int = 3
    rate: float = 0.5
    word: str = "plain"
    kind: Literal["small", "large"] = "small"
    limit: int | None = None

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Particular(Pass):
    """A pass that must be told something, and refuses some values."""

    name: ClassVar[str] = "particular"
    bits: Literal[4, 8]
    where: int | str | None = None
    mood: Literal["very good", "none"] = "none"
    most: float = float("inf")

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        super().__post_init__()
        if self.where == 13:
            raise ValueError("where is any place but 13")

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Unspeakable(Pass):
    """A pass with an option that no text can give."""

    name: ClassVar[str] = "unspeakable"
    axes: tuple[int, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Do nothing."""


@pytest.fixture(autouse=True)
def everything() -> Iterator[None]:
    for cls in (Everything, Particular, Unspeakable):
        register(cls)
    yield
    for cls in (Everything, Particular, Unspeakable):
        unregister(cls.name)


def parse(text: str) -> Pipeline:
    """Parse, and insist that the text form gives the same again."""
    pipeline = Pipeline.parse(text)
    assert Pipeline.parse(str(pipeline)) == pipeline
    return pipeline


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets(preset: str) -> None:
    pipeline = parse(preset)
    assert str(parse(f"dce,{preset}")) == ",".join(filter(None, ["dce", str(pipeline)]))
    assert bool(pipeline.steps) == (preset != "none")


def test_options_of_every_type() -> None:
    text = "everything{flag=true,count=-7,rate=1e-3,word=other-word,kind=large,limit=12}"
    (step,) = parse(text).steps
    assert step == Everything(True, -7, 1e-3, "other-word", "large", 12)
    assert parse("everything{limit=none}") == parse("everything{count=3}") == parse("everything")
    assert str(parse("everything{ count = 4 , flag=false }")) == "everything{count=4}"


def test_texts_that_need_quotes() -> None:
    for word in ("two words", "a/b.*", "", "none", "42", 'say "so"', "back\\slash", "é{,}=", "-x"):
        (step,) = parse(str(Pipeline((Everything(word=word),)))).steps
        assert step == Everything(word=word)
    assert str(parse('everything{word="plain-enough"}')) == "everything{word=plain-enough}"


def test_unions_numbers_in_literals_and_infinities() -> None:
    for step in (
        Particular(4),
        Particular(8, 3, "very good", 1e-30),
        Particular(8, "3", most=float("-inf")),
        Particular(4, "none"),
        Particular(4, "somewhere"),
    ):
        assert parse(str(step)).steps == (step,)
    assert str(Particular(8, "none", most=float("-inf"))) == 'particular{bits=8,where="none",most=-inf}'


def test_an_option_of_a_type_without_text() -> None:
    with pytest.raises(TypeError, match=r"an option of type tuple\[int, \.\.\.\] has no text form"):
        Pipeline.parse("unspeakable{axes=1}")


def test_removal() -> None:
    assert "cse" not in str(parse("default,-cse"))
    assert str(parse("dce,cse,-dce,dce")) == "cse,dce"
    assert str(parse("fixpoint(cse),dce,-cse")) == "dce"
    assert str(parse("fixpoint{rounds=2}(cse,dce),-cse")) == "fixpoint{rounds=2}(dce)"


def test_fixpoints_nest() -> None:
    pipeline = parse("fixpoint{rounds=4}(dce,fixpoint(cse,everything{count=1})),inline")
    outer, last = pipeline.steps
    assert isinstance(outer, Fixpoint) and outer.rounds == 4
    assert isinstance(last, Pass) and last.name == "inline"
    assert [step.name for step in pipeline.passes()] == ["dce", "cse", "everything", "inline"]


def test_random_pipelines_round_trip() -> None:
    rng = random.Random(0)

    def item(depth: int) -> str:
        if depth and rng.random() < 0.3:
            inner = ",".join(item(depth - 1) for _ in range(rng.randint(1, 3)))
            return f"fixpoint{rng.choice(['', '{rounds=3}'])}({inner})"
        options = rng.sample(
            ["flag=true", f"count={rng.randint(-9, 9)}", f"rate={rng.random()}", "kind=large", "limit=5"], 2
        )
        names = [name for name in pass_names() if name != "particular"]
        others = [f"everything{{{','.join(options)}}}", 'particular{bits=8,where="a, b"}']
        return rng.choice([*names, "cleanup", "default", "max", *others])

    for _ in range(200):
        parse(",".join(item(2) for _ in range(rng.randint(0, 5))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "simplfy",
            r"no pass or preset 'simplfy'; presets: none, cleanup, default, deploy, max; passes: .*movement",
        ),
        ("dce{level=1}", r"pass 'dce' has no option 'level'; its options: none"),
        (
            "everything{size=1}",
            r"pass 'everything' has no option 'size'; its options: flag, count, rate, word, kind, limit",
        ),
        ("everything{count=many}", r"option 'count' of pass 'everything' wants int; got 'many'"),
        ("everything{rate=fast}", r"option 'rate' of pass 'everything' wants float; got 'fast'"),
        ("everything{flag=1}", r"option 'flag' of pass 'everything' is true or false; got '1'"),
        ("everything{kind=huge}", r"option 'kind' of pass 'everything' is one of small, large; got 'huge'"),
        ("algebra{level=loose}", r"one of exact, reassociate, approximate; got 'loose'"),
        ("default{rounds=2}", r"the preset 'default' has no options"),
        ("dce,-cse", r"-cse: no pass 'cse' stands before it"),
        ("dce,-typo", r"-typo: there is no pass 'typo'; the passes are: .*algebra"),
        ("fixpoint()", r"fixpoint\(\) without passes"),
        ("fixpoint{times=3}(dce)", r"one option, rounds=N with N at least 1; got times=3"),
        ("fixpoint{rounds=0}(dce)", r"rounds=N with N at least 1; got rounds=0"),
        ("fixpoint(dce", r"expected ',' but found 'the end'"),
        ("dce cse", r"expected ',' but found 'cse'"),
        ("dce,,cse", r"expected the name of a pass but found ','"),
        ("dce;cse", r"cannot read ';cse'"),
        ("everything{count}", r"expected '=' but found '}'"),
        ("everything{count=}", r"expected a value of 'count' but found '}'"),
        ("everything{word=,}", r"expected a value of 'word' but found ','"),
        ("everything{count=1", r"expected ',' but found 'the end'"),
        ("everything{count=1,count=2}", r"option 'count' is given twice"),
        ("everything{limit=few}", r"option 'limit' of pass 'everything' wants none or int; got 'few'"),
        ('everything{word="open}', r"cannot read '\"open}'"),
        ("everything{word=a/b}", r"cannot read '/b}' .*; paths and patterns are quoted: only="),
        ("particular", r"pass 'particular' needs the option 'bits'"),
        ("particular{bits=5}", r"option 'bits' of pass 'particular' is one of 4, 8; got '5'"),
        ("particular{bits=4,where=13}", r"pass 'particular': where is any place but 13"),
        ("particular{bits=4,mood=bad}", r"is one of \"very good\", \"none\"; got 'bad'"),
        ("fixpoint{rounds=²}(dce)", r"cannot read '²}\(dce\)'"),
        ("fixpoint(", r"expected the name of a pass but found 'the end'"),
        ("dce)", r"expected ',' but found '\)'"),
        ("-dce", r"-dce: no pass 'dce' stands before it"),
        ("dce,-fixpoint", r"-fixpoint: there is no pass 'fixpoint'"),
        ("7up", r"expected the name of a pass but found '7up'"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(text)


def test_values_given_in_python_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"bits is one of 4, 8, not 5"):
        Particular(bits=5)  # type: ignore[arg-type]
