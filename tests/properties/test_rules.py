"""Every rule keeps what its level promises, on programs drawn at random; and none is left out."""

from __future__ import annotations

import jax
import pytest

from tests.properties._families import (
    FAMILIES,
    Family,
    check_alike,
    check_family,
    rules,
)

WITH_64_BITS = [family for family in FAMILIES if family.name in ("choices", "discrete")]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rules_keep_the_meaning(family: Family) -> None:
    count, failures = check_family(family, seed=0, short=True)
    assert count >= len(family.makers)
    assert not failures, "\n\n".join(map(str, failures))


@pytest.mark.parametrize("family", WITH_64_BITS, ids=lambda family: family.name)
def test_rules_keep_the_meaning_of_64_bits(family: Family) -> None:
    with jax.enable_x64(True):
        count, failures = check_family(family, seed=1, x64=True, short=True)
    assert count
    assert not failures, "\n\n".join(map(str, failures))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_only_looks_alike_stays(family: Family) -> None:
    count, failures = check_alike(family, seed=0)
    assert count >= len(family.alike)
    assert not failures, "\n\n".join(map(str, failures))


def test_every_rule_has_makers() -> None:
    known = set(rules())
    made = {name for family in FAMILIES for name, makers in family.makers.items() if makers}
    alike = {name for family in FAMILIES for name, makers in family.alike.items() if makers}
    assert not sorted(known - made), "rules without a maker of programs in tests/properties/makers"
    assert not sorted(known - alike), "rules without a maker of programs that look alike"


def test_every_maker_has_a_rule() -> None:
    named = {
        name for family in FAMILIES for name in (*family.makers, *family.alike) if name not in family.levels
    }
    assert not sorted(named - set(rules()))
