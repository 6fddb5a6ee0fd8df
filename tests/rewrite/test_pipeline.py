"""The text form of pipelines: it round-trips, and what is wrong is said with what there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import PRESETS, Pass, PassContext, Pipeline, PipelineError, pass_names, register, unregister
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


@pytest.fixture(autouse=True)
def everything() -> Iterator[None]:
    register(Everything)
    yield
    unregister("everything")


def parse(text: str) -> Pipeline:
    """Parse, and insist that the text form gives the same again."""
    pipeline = Pipeline.parse(text)
    assert Pipeline.parse(str(pipeline)) == pipeline
    return pipeline


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets(preset: str) -> None:
    pipeline = parse(preset)
    assert str(parse(f"{preset},dce")) == ",".join(filter(None, [str(pipeline), "dce"]))
    assert bool(pipeline.steps) == (preset != "none")


def test_options_of_every_type() -> None:
    text = "everything{flag=true,count=-7,rate=1e-3,word=other-word,kind=large,limit=12}"
    (step,) = parse(text).steps
    assert step == Everything(True, -7, 1e-3, "other-word", "large", 12)
    assert parse("everything{limit=none}") == parse("everything{count=3}") == parse("everything")
    assert str(parse("everything{ count = 4 , flag=false }")) == "everything{count=4}"


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
        return rng.choice([*pass_names(), "cleanup", "default", "max", f"everything{{{','.join(options)}}}"])

    for _ in range(200):
        parse(",".join(item(2) for _ in range(rng.randint(0, 5))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simplfy", r"no pass or preset 'simplfy'; presets: none, cleanup, default, max; passes: algebra, .*movement"),
        ("dce{level=1}", r"pass 'dce' has no option 'level'; its options: none"),
        ("everything{size=1}", r"pass 'everything' has no option 'size'; its options: flag, count, rate, word, kind, limit"),
        ("everything{count=many}", r"option 'count' of pass 'everything' wants int; got 'many'"),
        ("everything{rate=fast}", r"option 'rate' of pass 'everything' wants float; got 'fast'"),
        ("everything{flag=1}", r"option 'flag' of pass 'everything' is true or false; got '1'"),
        ("everything{kind=huge}", r"option 'kind' of pass 'everything' is one of small, large; got 'huge'"),
        ("algebra{level=loose}", r"one of exact, reassociate, approximate; got 'loose'"),
        ("default{rounds=2}", r"the preset 'default' has no options"),
        ("dce,-cse", r"-cse: no pass 'cse' stands before it"),
        ("dce,-typo", r"-typo: there is no pass 'typo'; the passes are: algebra"),
        ("fixpoint()", r"fixpoint\(\) without passes"),
        ("fixpoint{times=3}(dce)", r"one option, rounds=N with N at least 1; got times=3"),
        ("fixpoint{rounds=0}(dce)", r"rounds=N with N at least 1; got rounds=0"),
        ("fixpoint(dce", r"expected ',' but found 'the end'"),
        ("dce cse", r"expected ',' but found 'cse'"),
        ("dce,,cse", r"expected the name of a pass but found ','"),
        ("dce;cse", r"cannot read ';cse'"),
        ("everything{count}", r"expected '=' but found '}'"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(text)
