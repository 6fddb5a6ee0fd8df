"""What random programs are made of."""

from __future__ import annotations

import random

import jax
import numpy as np
import pytest

from lepton_jax import fuzz
from lepton_jax.fuzz import arrays, idioms, regions, scalars
from lepton_jax.fuzz.generator import Generator, Maker
from lepton_jax.fuzz.program import KEY, Block, make_args

MAKERS = [*scalars.MAKERS, *arrays.MAKERS, *idioms.MAKERS, *regions.MAKERS]


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
