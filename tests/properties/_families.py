"""The makers of all rules, and the rules there are."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import jax

from lepton_jax import passes
from lepton_jax.rewrite import Rule
from lepton_jax.rewrite.context import Level
from tests.properties import makers
from tests.properties._apply import Instance, apply
from tests.properties._check import Failure, check
from tests.properties._draw import Draw, Makers


@dataclass(frozen=True)
class Family:
    """The makers of some rules of one pass.

    Attributes:
        name: of the module.
        passes: the pass that the rules are in, with options.
        makers: programs in which they fire.
        alike: programs that look as if they fired.
        levels: of what the pass does without a rule in its list.
    """

    name: str
    passes: str
    makers: Makers
    alike: Makers
    levels: dict[str, Level]


def families() -> list[Family]:
    """All there are, in order of their names."""
    found = []
    for info in pkgutil.iter_modules(makers.__path__):
        module: Any = importlib.import_module(f"{makers.__name__}.{info.name}")
        levels = getattr(module, "LEVELS", {})
        found.append(Family(info.name, module.PASS, module.MAKERS, module.ALIKE, levels))
    return found


@functools.cache
def rules() -> dict[str, Rule]:
    """Every rule of every pass, by name."""
    found: dict[str, Rule] = {}
    for info in pkgutil.walk_packages(passes.__path__, f"{passes.__name__}."):
        for rule in vars(importlib.import_module(info.name)).values():
            for each in rule if isinstance(rule, tuple) else (rule,):
                if isinstance(each, Rule):
                    assert found.setdefault(each.name, each) is each, f"two rules are called {each.name}"
    return found


FAMILIES: Final = families()


def instances(family: Family, seed: int, x64: bool, alike: bool = False) -> Iterator[Instance]:
    """One program for each maker of a family, before and after its rule."""
    known = rules()
    for rule, given in (family.alike if alike else family.makers).items():
        level: Level = known[rule].level if rule in known else family.levels[rule]
        for number, make in enumerate(given):
            drawn = (seed, zlib.crc32(rule.encode()), number, x64, alike)
            program = make(Draw(drawn, x64))
            yield apply(program, family.passes, rule, level, drawn, loosest=alike)


def check_family(
    family: Family, seed: int, x64: bool = False, short: bool = False
) -> tuple[int, list[Failure]]:
    """How many programs there were, and what was wrong with them.

    Args:
        short: compare gradients of one program for each rule only; with `x64`, leave out programs without
            arguments of 64 bits.
    """
    made = list(instances(family, seed, x64))
    if short:
        made = _fewer(made, x64)
    unmoved = [Failure(i, "rule", "any", "it did not fire") for i in made if not i.fired]
    moved = [i for i in made if i.fired]
    wrong = check(moved, (seed, zlib.crc32(family.name.encode()), x64))
    return len(made), [*unmoved, *wrong]


def _fewer(made: list[Instance], x64: bool) -> list[Instance]:
    """What the short run compares."""
    found, differentiated = [], set()
    for instance in made:
        program = instance.program
        if x64 and all(leaf.dtype.itemsize < 8 for leaf in jax.tree.leaves(program.args)):
            continue
        if instance.rule in differentiated:
            instance = replace(instance, program=replace(program, grad=False))
        elif instance.moving:
            differentiated.add(instance.rule)
        found.append(instance)
    return found


def check_alike(family: Family, seed: int, x64: bool = False) -> tuple[int, list[Failure]]:
    """How many programs looked alike, and in which of them the rule fired."""
    made = list(instances(family, seed, x64, alike=True))
    return len(made), [Failure(i, "rule", "any", "it fired") for i in made if i.fired]
